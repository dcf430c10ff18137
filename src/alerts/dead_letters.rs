//! How many messages were dead-lettered within a time, by consumer, reason and code, from counters that only grow. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;

/// Counts of one consumer, reason and code.
pub(super) type DeadLetterKey = (String, String, String);

/// That of messages that matched no binding: they have no consumer.
pub fn unrouted_key() -> DeadLetterKey {
    (String::new(), "unrouted".to_owned(), String::new())
}

/// How finely times are kept: the window has this many parts, so its memory is limited.
const PARTS: u32 = 60;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// For display, and for what instances share.
    pub wall: Timestamp,
    /// The time since the process began to observe: for what only it remembers, because the other clock may be set.
    pub uptime: Duration,
}

/// The growth within the window.
#[derive(Debug, Default)]
pub(super) struct DeadLetterWindow {
    /// The counters at the last observation.
    counters: BTreeMap<DeadLetterKey, u64>,
    /// When they grew, and by how much.
    growth: BTreeMap<DeadLetterKey, VecDeque<(Moment, u64)>>,
}

/// What was dead-lettered of a consumer for one reason within the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Growth {
    pub count: u64,
    /// The same by code.
    pub codes: BTreeMap<String, u64>,
    /// When the first of them was observed.
    pub since: Timestamp,
}

impl DeadLetterWindow {
    /// What these counters have already does not count.
    pub fn skip(&mut self, counters: BTreeMap<DeadLetterKey, u64>) {
        *self = DeadLetterWindow { counters, growth: BTreeMap::new() };
    }

    /// Takes the counters' present values. They begin at 0 with the process.
    pub fn observe(&mut self, counters: BTreeMap<DeadLetterKey, u64>, now: Moment, window: Duration) {
        let former = std::mem::replace(&mut self.counters, counters.clone());
        for (key, count) in counters {
            let more = count.saturating_sub(former.get(&key).copied().unwrap_or(0));
            if more > 0 {
                self.add(key, more, now, window / PARTS);
            }
        }
        for growth in self.growth.values_mut() {
            while growth.front().is_some_and(|(at, _)| at.uptime.saturating_add(window) <= now.uptime) {
                growth.pop_front();
            }
        }
        self.growth.retain(|_, growth| !growth.is_empty());
    }

    fn add(&mut self, key: DeadLetterKey, more: u64, now: Moment, part: Duration) {
        let growth = self.growth.entry(key).or_default();
        match growth.back_mut() {
            Some((at, count)) if now.uptime.saturating_sub(at.uptime) < part => *count += more,
            Some(_) | None => growth.push_back((now, more)),
        }
    }

    /// The counts within the window, by consumer and reason.
    pub fn grown(&self) -> BTreeMap<(&str, &str), Growth> {
        let mut grown = BTreeMap::<(&str, &str), Growth>::new();
        for ((consumer, reason, code), growth) in &self.growth {
            let Some((first, _)) = growth.front() else { continue };
            let count: u64 = growth.iter().map(|(_, count)| count).sum();
            let none = || Growth { count: 0, codes: BTreeMap::new(), since: first.wall };
            let all = grown.entry((consumer, reason)).or_insert_with(none);
            all.count += count;
            all.since = all.since.min(first.wall);
            *all.codes.entry(code.clone()).or_default() += count;
        }
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    /// The wall clock is set back by an hour at second 300.
    fn at(second: u64) -> Moment {
        let wall = if second < 300 { 10_000 + second } else { 6_400 + second };
        Moment { wall: Timestamp::from_second(wall.cast_signed()).unwrap(), uptime: Duration::from_secs(second) }
    }

    fn counters(count: u64) -> BTreeMap<DeadLetterKey, u64> {
        of_code("invalid_address", count)
    }

    fn of_code(code: &str, count: u64) -> BTreeMap<DeadLetterKey, u64> {
        [(("order".to_owned(), "permanent".to_owned(), code.to_owned()), count)].into()
    }

    fn counts(window: &DeadLetterWindow) -> Vec<(u64, i64)> {
        window.grown().values().map(|growth| (growth.count, growth.since.as_second() - 10_000)).collect()
    }

    #[test]
    fn the_dead_letters_of_one_reason_are_counted_together_and_by_code() {
        let mut window = DeadLetterWindow::default();
        window.observe(of_code("invalid_address", 2), at(10), WINDOW);
        let both = of_code("invalid_address", 3).into_iter().chain(of_code("unknown_channel", 2)).collect();
        window.observe(both, at(100), WINDOW);
        assert_eq!(counts(&window), [(5, 10)]);
        let codes = [("invalid_address".to_owned(), 3), ("unknown_channel".to_owned(), 2)].into();
        assert_eq!(window.grown()[&("order", "permanent")].codes, codes);
    }

    #[test]
    fn what_is_dead_lettered_before_the_first_observation_counts_and_only_within_the_window() {
        let mut window = DeadLetterWindow::default();
        window.observe(counters(2), at(10), WINDOW);
        window.observe(counters(5), at(100), WINDOW);
        assert_eq!(counts(&window), [(5, 10)]);
        window.observe(counters(5), at(611), WINDOW);
        assert_eq!(counts(&window), [(3, 100)], "although the clock was set back");
        window.observe(counters(5), at(701), WINDOW);
        assert!(counts(&window).is_empty());
    }

    #[test]
    fn what_was_dead_lettered_before_alerts_were_configured_does_not_count() {
        let mut window = DeadLetterWindow::default();
        window.skip(counters(7));
        window.observe(counters(7), at(10), WINDOW);
        assert!(counts(&window).is_empty());
        window.observe(counters(8), at(20), WINDOW);
        assert_eq!(counts(&window), [(1, 20)]);
    }

    #[test]
    fn a_stream_of_dead_letters_takes_limited_memory() {
        let mut window = DeadLetterWindow::default();
        for second in 0..5_000 {
            window.observe(counters(second), at(second), WINDOW);
        }
        assert!(window.growth.values().all(|growth| growth.len() <= PARTS as usize + 1));
        assert!((580..=600).contains(&counts(&window)[0].0), "{:?}", counts(&window));
    }
}
