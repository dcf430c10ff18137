//! Compares a counter of the broker with one of orderd's that must grow with it, and reports when they diverge.
//! Pure: times are arguments.
//!
//! The broker's counter is stale: an answer shows its value at some moment of the last `lag`. A single sample therefore
//! only gives a lower and an upper bound of the offset, which is the broker's counter minus orderd's. As long as no message
//! is lost, the offset never changes, so the bounds of all samples must overlap. If they do not, messages are missing, and
//! the distance between the bounds is the gap. Under load the bounds are wide. When traffic pauses they narrow to one
//! number, and even a single missing message is detected.
//!
//! ```text
//! orderd at (sample − lag)  ≤  orderd's counter at the moment that the sample shows  ≤  orderd at (sample + lag)
//! ```
//! The `lag` on the right gives deliveries that the broker has already counted time to arrive.

use std::collections::VecDeque;
use std::time::Duration;

/// For how many lags a counter that went back may still return to its former value (a dip). After that, it has been reset.
const DIP_LAGS: u32 = 10;

/// Both counters, read at about the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountSample {
    /// When the broker was asked; if several answers are added up, when the first was. Monotonic, like `read_at`.
    pub asked_at: Duration,
    /// When the broker had answered and `own` was read.
    pub read_at: Duration,
    /// orderd's counter. Starts at 0 and only grows.
    pub own: u64,
    /// The broker's counter and the context it belongs to, such as one connection. Counts of different contexts are not
    /// compared, because messages in flight are redelivered and settled again after a lost connection. `None`: only
    /// orderd's counter was read.
    pub broker: Option<(String, u64)>,
}

/// How far the broker's counter has diverged from orderd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The broker has counted at least this many more.
    More(u64),
    /// The broker has counted at least this many fewer.
    Fewer(u64),
}

impl Gap {
    /// By how much it exceeds a gap in the same direction that was reported before.
    fn growth_since(self, reported: Option<Gap>) -> Option<Gap> {
        let (gap, more): (fn(u64) -> Gap, u64) = match (self, reported) {
            (Gap::More(now), Some(Gap::More(before))) => (Gap::More, now.saturating_sub(before)),
            (Gap::More(now), Some(Gap::Fewer(_)) | None) => (Gap::More, now),
            (Gap::Fewer(now), Some(Gap::Fewer(before))) => (Gap::Fewer, now.saturating_sub(before)),
            (Gap::Fewer(now), Some(Gap::More(_)) | None) => (Gap::Fewer, now),
        };
        (more > 0).then(|| gap(more))
    }
}

/// How the two counters relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountRelation {
    /// They grow together.
    Equal,
    /// The broker's counter grows at least as much as orderd's; other clients may add to it.
    AtLeast,
}

/// Bounds of the offset: the broker's counter minus orderd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OffsetBounds {
    lowest: i128,
    highest: i128,
}

impl OffsetBounds {
    fn intersect(self, other: OffsetBounds) -> Option<OffsetBounds> {
        let both = OffsetBounds { lowest: self.lowest.max(other.lowest), highest: self.highest.min(other.highest) };
        (both.lowest <= both.highest).then_some(both)
    }
}

/// Compares one counter of the broker with one of orderd's over time.
#[derive(Debug)]
pub struct CountComparison {
    lag: Duration,
    relation: CountRelation,
    samples: VecDeque<CountSample>,
    /// How many of the first samples have been evaluated.
    evaluated: usize,
    state: ComparisonState,
}

/// What the evaluated samples have shown.
#[derive(Debug, Default)]
struct ComparisonState {
    context: String,
    /// The broker's last counter value.
    count: u64,
    offset: Option<OffsetBounds>,
    /// The offset before the broker's counter went back, and until when the counter may return to it. It returns if a node of
    /// a cluster only failed to report its share for a while.
    before_reset: Option<(OffsetBounds, Duration)>,
    /// The gap that the last sample showed. It is reported once a second sample confirms it.
    suspected: Option<Gap>,
    /// The gap that has been reported.
    reported: Option<Gap>,
}

/// A sample and the bounds of the offset that follow from it.
struct EvaluatedSample<'s> {
    read_at: Duration,
    /// Until when a counter that goes back now may return to its former value.
    dip_until: Duration,
    context: &'s str,
    count: u64,
    offset: OffsetBounds,
}

impl CountComparison {
    /// For counters that the broker reports up to `lag` late.
    pub fn new(lag: Duration, relation: CountRelation) -> Self {
        CountComparison { lag, relation, samples: VecDeque::new(), evaluated: 0, state: ComparisonState::default() }
    }

    /// Adds a sample, in order of time, and evaluates those that are old enough. Returns by how much a gap has grown
    /// since it was last reported.
    pub fn add(&mut self, sample: CountSample) -> Option<Gap> {
        // More frequent samples of orderd's own counter would not narrow the bounds noticeably.
        let is_dense = self.samples.back().is_some_and(|last| sample.read_at < last.read_at + self.lag / 16);
        if sample.broker.is_none() && is_dense {
            return None;
        }
        self.samples.push_back(sample);
        let mut found = None;
        while let Some(next) = self.samples.get(self.evaluated) {
            let Some(own_after) = self.own_after(next) else { break };
            found = self.evaluate(self.evaluated, own_after).or(found);
            self.evaluated += 1;
        }
        self.discard_old_samples();
        found
    }

    /// orderd's counter at least `lag` after a sample, when everything that the broker had counted must have arrived. `None`:
    /// that time has not come.
    fn own_after(&self, sample: &CountSample) -> Option<u64> {
        let late_enough = sample.read_at + self.lag;
        self.samples.iter().find(|later| later.read_at >= late_enough).map(|later| later.own)
    }

    fn evaluate(&mut self, index: usize, own_after: u64) -> Option<Gap> {
        let sample = &self.samples[index];
        let (context, count) = sample.broker.as_ref()?;
        let earliest = sample.asked_at.saturating_sub(self.lag);
        let latest = sample.read_at + self.lag;
        let own_before = self
            .samples
            .iter()
            .take_while(|earlier| earlier.read_at <= earliest)
            .last()
            .map_or(0, |earlier| earlier.own);
        let nearby = self.samples.iter().filter(|other| other.read_at >= earliest && other.asked_at <= latest);
        let mut contexts = nearby.filter_map(|other| other.broker.as_ref().map(|(context, _)| context));
        if contexts.any(|other| other != context) {
            return None;
        }
        let offset = OffsetBounds {
            lowest: i128::from(*count) - i128::from(own_after),
            highest: i128::from(*count) - i128::from(own_before),
        };
        let dip_until = sample.read_at + DIP_LAGS * self.lag;
        let evaluated = EvaluatedSample { read_at: sample.read_at, dip_until, context, count: *count, offset };
        self.state.apply(&evaluated, self.relation)
    }

    /// Keeps what later evaluations may need: the unevaluated samples, and one from at least `lag` before the first.
    fn discard_old_samples(&mut self) {
        let Some(oldest) = self.samples.get(self.evaluated).or(self.samples.back()) else { return };
        let needed = oldest.asked_at.saturating_sub(self.lag);
        while self.evaluated > 0 && self.samples.get(1).is_some_and(|second| second.read_at <= needed) {
            self.samples.pop_front();
            self.evaluated -= 1;
        }
    }
}

impl ComparisonState {
    fn apply(&mut self, sample: &EvaluatedSample<'_>, relation: CountRelation) -> Option<Gap> {
        let EvaluatedSample { context, count, offset, .. } = *sample;
        if self.context != context {
            *self = ComparisonState { context: context.to_owned(), ..ComparisonState::default() };
        }
        let before = std::mem::replace(&mut self.count, count);
        let Some(known) = self.offset else {
            self.offset = Some(offset);
            return None;
        };
        if count < before {
            self.start_over(known, sample);
            return None;
        }
        if let Some(both) = known.intersect(offset) {
            (self.offset, self.suspected, self.reported) = (Some(both), None, None);
            return None;
        }
        let gap = if offset.lowest > known.highest {
            Gap::More(to_count(offset.lowest - known.highest))
        } else {
            Gap::Fewer(to_count(known.lowest - offset.highest))
        };
        match (gap, relation) {
            (Gap::More(_), CountRelation::AtLeast) => {
                self.offset = Some(offset);
                return None;
            }
            (Gap::More(_), CountRelation::Equal) => {
                if let Some(both) = self.offset_after_dip(sample) {
                    (self.offset, self.before_reset, self.suspected) = (Some(both), None, None);
                    return None;
                }
            }
            // At least the counter's whole former value is missing, so it was reset to 0 between the two samples.
            (Gap::Fewer(missing), _) if missing >= before => {
                self.start_over(known, sample);
                return None;
            }
            (Gap::Fewer(_), _) => {}
        }
        self.suspect(gap)
    }

    /// Reports a gap once a second sample confirms it, and again when it grows. The known offset is kept, so that a
    /// part of the gap that wide bounds have hidden is reported later.
    fn suspect(&mut self, gap: Gap) -> Option<Gap> {
        let is_confirmed = matches!(
            (self.suspected.replace(gap), gap),
            (Some(Gap::More(_)), Gap::More(_)) | (Some(Gap::Fewer(_)), Gap::Fewer(_))
        );
        let growth = gap.growth_since(self.reported).filter(|_| is_confirmed)?;
        self.reported = Some(gap);
        Some(growth)
    }

    /// The offset if the counter has returned to its value from before a reset.
    fn offset_after_dip(&self, sample: &EvaluatedSample<'_>) -> Option<OffsetBounds> {
        let (before, until) = self.before_reset?;
        before.intersect(sample.offset).filter(|_| sample.read_at < until)
    }

    fn start_over(&mut self, known: OffsetBounds, sample: &EvaluatedSample<'_>) {
        if self.before_reset.is_none_or(|(_, until)| sample.read_at >= until) {
            self.before_reset = Some((known, sample.dip_until));
        }
        (self.offset, self.suspected, self.reported) = (Some(sample.offset), None, None);
    }
}

fn to_count(difference: i128) -> u64 {
    u64::try_from(difference).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
