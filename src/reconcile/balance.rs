//! Holds one count of the broker against one of orderd's, which grow together, and tells when they have come apart.
//! Pure: times are arguments.
//!
//! The broker's count is old: a reading shows some moment of the last `lag`. So one reading says only that
//! broker − orderd, the offset, lies between two bounds; while nothing is lost the offset never changes, so that the
//! bounds of all readings must have a moment in common. If they have none, messages are missing, and how many is the gap.
//! While messages flow the bounds are wide; as soon as they pause they close on one number, and one message shows.
//!
//! ```text
//! orderd at (reading − lag) ≤ orderd's count at the moment the reading shows ≤ orderd at (reading + lag)
//! ```
//! The second `lag` lets deliveries arrive that the broker has counted as handed out.

use std::collections::VecDeque;
use std::time::Duration;

/// After so many lags, a count that went back has not merely dipped.
const NO_DIP: u32 = 10;

/// What is read at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// When the broker was asked; of several answers that are added up, the oldest. Time since some fixed moment.
    pub from: Duration,
    /// When it had answered and `own` was read.
    pub at: Duration,
    /// orderd's count. Starts at 0 and only grows.
    pub own: u64,
    /// The broker's count, and in which connection's time: counts of different contexts are not compared, for what was
    /// on its way is settled anew after a lost connection. `None`: only orderd's count was read.
    pub broker: Option<(String, u64)>,
}

/// The broker's count has left orderd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The broker has counted so many more, at least.
    More(u64),
    /// The broker has counted so many fewer, at least.
    Fewer(u64),
}

impl Gap {
    /// How much larger it is than another one, in the same direction.
    fn beyond(self, told: Option<Gap>) -> Option<Gap> {
        let (gap, more): (fn(u64) -> Gap, u64) = match (self, told) {
            (Gap::More(now), Some(Gap::More(before))) => (Gap::More, now.saturating_sub(before)),
            (Gap::More(now), Some(Gap::Fewer(_)) | None) => (Gap::More, now),
            (Gap::Fewer(now), Some(Gap::Fewer(before))) => (Gap::Fewer, now.saturating_sub(before)),
            (Gap::Fewer(now), Some(Gap::More(_)) | None) => (Gap::Fewer, now),
        };
        (more > 0).then(|| gap(more))
    }
}

/// How the counts must be to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// They grow together.
    Equal,
    /// The broker's grows at least as orderd's; others add to it.
    AtLeast,
}

/// What the offset broker − orderd can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offset {
    lowest: i128,
    highest: i128,
}

impl Offset {
    fn and(self, other: Offset) -> Option<Offset> {
        let both = Offset { lowest: self.lowest.max(other.lowest), highest: self.highest.min(other.highest) };
        (both.lowest <= both.highest).then_some(both)
    }
}

/// A count of the broker and one of orderd's.
#[derive(Debug)]
pub struct Balance {
    lag: Duration,
    rule: Rule,
    readings: VecDeque<Reading>,
    /// Readings judged, of those kept.
    judged: usize,
    state: State,
}

/// What was learnt from the readings judged.
#[derive(Debug, Default)]
struct State {
    context: String,
    /// The last count of the broker.
    count: u64,
    offset: Option<Offset>,
    /// The offset before the broker's count went back, and until when it may come back: perhaps one node of a cluster did not tell its
    /// share.
    before_reset: Option<(Offset, Duration)>,
    /// The gap that the last reading showed; only a second one makes it one.
    suspected: Option<Gap>,
    /// The gap that has been told.
    told: Option<Gap>,
}

/// A reading and what it says.
struct Judged<'r> {
    at: Duration,
    /// Until when a count that goes back now may come back to where it was.
    dip_until: Duration,
    context: &'r str,
    count: u64,
    offset: Offset,
}

impl Balance {
    /// Counts that the broker tells up to `lag` late.
    pub fn new(lag: Duration, rule: Rule) -> Self {
        Balance { lag, rule, readings: VecDeque::new(), judged: 0, state: State::default() }
    }

    /// Takes a reading, in order of time, and judges those that are old enough. Returns by how much a gap has opened
    /// since it was told before, if it has.
    pub fn read(&mut self, reading: Reading) -> Option<Gap> {
        // More of orderd's own counts than these make nothing clearer.
        let is_crowded = self.readings.back().is_some_and(|last| reading.at < last.at + self.lag / 16);
        if reading.broker.is_none() && is_crowded {
            return None;
        }
        self.readings.push_back(reading);
        let mut found = None;
        while let Some(next) = self.readings.get(self.judged) {
            let Some(settled) = self.own_after(next) else { break };
            found = self.reconciler(self.judged, settled).or(found);
            self.judged += 1;
        }
        self.forget();
        found
    }

    /// orderd's count at least `lag` after a reading, when all that the broker had counted then must have arrived.
    fn own_after(&self, reading: &Reading) -> Option<u64> {
        let late_enough = reading.at + self.lag;
        self.readings.iter().find(|later| later.at >= late_enough).map(|later| later.own)
    }

    fn reconciler(&mut self, index: usize, own_after: u64) -> Option<Gap> {
        let reading = &self.readings[index];
        let (context, count) = reading.broker.as_ref()?;
        let earliest = reading.from.saturating_sub(self.lag);
        let latest = reading.at + self.lag;
        let own_before =
            self.readings.iter().take_while(|earlier| earlier.at <= earliest).last().map_or(0, |earlier| earlier.own);
        let around = self.readings.iter().filter(|other| other.at >= earliest && other.from <= latest);
        let mut contexts = around.filter_map(|other| other.broker.as_ref().map(|(context, _)| context));
        if contexts.any(|other| other != context) {
            return None;
        }
        let offset = Offset {
            lowest: i128::from(*count) - i128::from(own_after),
            highest: i128::from(*count) - i128::from(own_before),
        };
        let dip_until = reading.at + NO_DIP * self.lag;
        let judged = Judged { at: reading.at, dip_until, context, count: *count, offset };
        self.state.take(&judged, self.rule)
    }

    /// Keeps what later judgements can need: one reading from before `lag` before the first one not judged.
    fn forget(&mut self) {
        let Some(oldest) = self.readings.get(self.judged).or(self.readings.back()) else { return };
        let needed = oldest.from.saturating_sub(self.lag);
        while self.judged > 0 && self.readings.get(1).is_some_and(|second| second.at <= needed) {
            self.readings.pop_front();
            self.judged -= 1;
        }
    }
}

impl State {
    fn take(&mut self, reading: &Judged<'_>, rule: Rule) -> Option<Gap> {
        let Judged { context, count, offset, .. } = *reading;
        if self.context != context {
            *self = State { context: context.to_owned(), ..State::default() };
        }
        let before = std::mem::replace(&mut self.count, count);
        let Some(known) = self.offset else {
            self.offset = Some(offset);
            return None;
        };
        if count < before {
            return self.start_over(known, reading);
        }
        if let Some(both) = known.and(offset) {
            (self.offset, self.suspected, self.told) = (Some(both), None, None);
            return None;
        }
        let gap = if offset.lowest > known.highest {
            Gap::More(positive(offset.lowest - known.highest))
        } else {
            Gap::Fewer(positive(known.lowest - offset.highest))
        };
        match (gap, rule) {
            (Gap::More(_), Rule::AtLeast) => {
                self.offset = Some(offset);
                return None;
            }
            (Gap::More(_), Rule::Equal) => {
                if let Some(both) = self.before_dip(reading) {
                    (self.offset, self.before_reset, self.suspected) = (Some(both), None, None);
                    return None;
                }
            }
            // As much as if the broker had begun again at 0 after the reading before: so it has.
            (Gap::Fewer(missing), _) if missing >= before => return self.start_over(known, reading),
            (Gap::Fewer(_), _) => {}
        }
        self.suspect(gap)
    }

    /// A gap is told when a second reading shows it, and again when it grows. The offset known stays what it was, so that
    /// what bounds too wide have hidden shows later.
    fn suspect(&mut self, gap: Gap) -> Option<Gap> {
        let is_second = matches!(
            (self.suspected.replace(gap), gap),
            (Some(Gap::More(_)), Gap::More(_)) | (Some(Gap::Fewer(_)), Gap::Fewer(_))
        );
        let grown = gap.beyond(self.told).filter(|_| is_second)?;
        self.told = Some(gap);
        Some(grown)
    }

    /// The offset, if the count had only dipped.
    fn before_dip(&self, reading: &Judged<'_>) -> Option<Offset> {
        let (before, until) = self.before_reset?;
        before.and(reading.offset).filter(|_| reading.at < until)
    }

    fn start_over(&mut self, known: Offset, reading: &Judged<'_>) -> Option<Gap> {
        if self.before_reset.is_none_or(|(_, until)| reading.at >= until) {
            self.before_reset = Some((known, reading.dip_until));
        }
        (self.offset, self.suspected, self.told) = (Some(reading.offset), None, None);
        None
    }
}

fn positive(gap: i128) -> u64 {
    u64::try_from(gap).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
