//! How many messages were dead-lettered within a time, by consumer and reason, from counters that only grow. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;

/// Counts of one consumer and reason.
pub(super) type DeadLetterKey = (String, String);

/// How finely times are kept: the window has this many parts, so its memory is limited.
const PARTS: u32 = 60;

/// The growth within the window.
#[derive(Debug, Default)]
pub(super) struct DeadLetterWindow {
    /// The counters at the last observation; `None` before the first.
    counters: Option<BTreeMap<DeadLetterKey, u64>>,
    /// When they grew, and by how much.
    growth: BTreeMap<DeadLetterKey, VecDeque<(Timestamp, u64)>>,
}

/// What was dead-lettered within the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Growth {
    pub count: u64,
    /// When the first of them was observed.
    pub since: Timestamp,
}

impl DeadLetterWindow {
    /// Takes the counters' present values. What they had before the first call does not count: it happened before.
    pub fn observe(&mut self, counters: BTreeMap<DeadLetterKey, u64>, now: Timestamp, window: Duration) {
        let former = self.counters.replace(counters.clone());
        if let Some(former) = former {
            for (key, count) in counters {
                let more = count.saturating_sub(former.get(&key).copied().unwrap_or(0));
                if more > 0 {
                    self.add(key, more, now, window / PARTS);
                }
            }
        }
        let begin = now.checked_sub(window).unwrap_or(Timestamp::MIN);
        for growth in self.growth.values_mut() {
            while growth.front().is_some_and(|(at, _)| *at <= begin) {
                growth.pop_front();
            }
        }
        self.growth.retain(|_, growth| !growth.is_empty());
    }

    fn add(&mut self, key: DeadLetterKey, more: u64, now: Timestamp, part: Duration) {
        let growth = self.growth.entry(key).or_default();
        let is_within = |at: Timestamp| now.duration_since(at).unsigned_abs() < part;
        match growth.back_mut() {
            Some((at, count)) if is_within(*at) => *count += more,
            Some(_) | None => growth.push_back((now, more)),
        }
    }

    /// The counts within the window that are at least `limit`.
    pub fn at_least(&self, limit: u64) -> impl Iterator<Item = (&DeadLetterKey, Growth)> {
        self.growth.iter().filter_map(move |(key, growth)| {
            let count = growth.iter().map(|(_, count)| count).sum();
            let since = growth.front()?.0;
            (count >= limit).then_some((key, Growth { count, since }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn counters(count: u64) -> BTreeMap<DeadLetterKey, u64> {
        [(("order".to_owned(), "permanent".to_owned()), count)].into()
    }

    fn counts(window: &DeadLetterWindow, limit: u64) -> Vec<(u64, i64)> {
        window.at_least(limit).map(|(_, growth)| (growth.count, growth.since.as_second())).collect()
    }

    #[test]
    fn only_what_is_dead_lettered_while_the_daemon_runs_and_within_the_window_counts() {
        let mut window = DeadLetterWindow::default();
        window.observe(counters(7), at(0), WINDOW);
        assert!(counts(&window, 1).is_empty(), "before the first observation");
        window.observe(counters(9), at(10), WINDOW);
        window.observe(counters(12), at(100), WINDOW);
        assert_eq!((counts(&window, 5), counts(&window, 6)), (vec![(5, 10)], vec![]));
        window.observe(counters(12), at(611), WINDOW);
        assert_eq!(counts(&window, 1), [(3, 100)]);
        window.observe(counters(12), at(701), WINDOW);
        assert!(counts(&window, 1).is_empty());
    }

    #[test]
    fn a_stream_of_dead_letters_takes_limited_memory() {
        let mut window = DeadLetterWindow::default();
        for second in 0..5_000 {
            window.observe(counters(second), at(second.cast_signed()), WINDOW);
        }
        assert!(window.growth.values().all(|growth| growth.len() <= PARTS as usize + 1));
        assert!((580..=600).contains(&counts(&window, 1)[0].0), "{:?}", counts(&window, 1));
    }
}
