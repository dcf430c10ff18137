//! What the store of dead letters says, as causes of alerts: dead letters that wait, unrouted messages, replays that stopped by
//! themselves. Pure.
//!
//! Texts have counts, sums and codes, and nothing about customers.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::cause::{Cause, cause};
use super::dead_letters::Growth;
use super::settings::DeadLetterLimit;
use crate::config::duration;
use crate::domain::ExactSum;
use crate::ledger::{LetterSource, LetterState, StoppedReplay, UnresolvedDeadLetters, UnresolvedSum};

/// How long a dead letter may be open, as in `OrderdDeadLettersWaiting`.
const MAX_OPEN: SignedDuration = SignedDuration::from_hours(24);
/// The most currencies in a text.
const MAX_CURRENCIES_SHOWN: usize = 5;

/// What the store has, as it was last added up.
#[derive(Debug, Clone, Default)]
pub struct StoredState {
    /// Dead letters that are neither replayed nor discarded, and replays that stopped by themselves.
    pub unresolved: UnresolvedDeadLetters,
    /// Whether the store could be read the last time.
    pub is_current: bool,
}

impl StoredState {
    /// The open ones that were taken from a queue.
    fn open_of(&self, source: LetterSource) -> impl Iterator<Item = &UnresolvedSum> {
        self.unresolved.sums.iter().filter(move |sum| sum.source == source && sum.state == LetterState::Open)
    }

    /// How many are open, and what the orders among them cost.
    fn at_stake(&self, source: LetterSource) -> String {
        let mut money = BTreeMap::<&str, ExactSum>::new();
        for (currency, sum) in self.open_of(source).flat_map(|sum| &sum.money) {
            money.entry(currency).or_default().add(*sum);
        }
        let count: u64 = self.open_of(source).map(|sum| sum.messages).sum();
        let shown: Vec<String> =
            money.iter().take(MAX_CURRENCIES_SHOWN).map(|(currency, sum)| format!("{sum} {currency}")).collect();
        let more = if money.len() > MAX_CURRENCIES_SHOWN { ", and other currencies" } else { "" };
        match &shown[..] {
            [] => format!("{count} open"),
            shown => format!("{count} open, at stake: {}{more}", shown.join(", ")),
        }
    }
}

/// Of each queue whose oldest dead letter has been open for too long.
pub(super) fn waiting_causes(
    stored: &StoredState,
    scope: &str,
    open_after: Duration,
    now: Timestamp,
) -> impl Iterator<Item = Cause> {
    LetterSource::ALL.iter().filter_map(move |source| {
        let oldest = stored.unresolved.oldest_of(*source)?;
        let since = oldest.checked_add(MAX_OPEN).ok().filter(|since| *since < now)?;
        let source_name = source.as_str();
        let title = format!("A dead letter from {source_name:?} has been open for more than a day");
        let detail = format!(
            "{}; the oldest failed at {oldest:.0}. `orderd dead-letters list --source {source_name} --group` shows why",
            stored.at_stake(*source)
        );
        let id = ["dead_letters_waiting", source_name];
        Some(Cause { wait: open_after, ..cause(scope, &id, &title, &detail, since) })
    })
}

/// Messages that matched no binding, and were stored within the window.
pub(super) fn unrouted_cause(growth: &Growth, stored: &StoredState, limit: DeadLetterLimit, scope: &str) -> Cause {
    let source = LetterSource::UnroutedQueue;
    let detail = format!(
        "{} in the last {}; in the store: {}. `orderd dead-letters list --source {} --group` shows their routing keys",
        growth.count,
        duration::format(limit.window),
        stored.at_stake(source),
        source.as_str()
    );
    cause(scope, &["unrouted"], "Messages matched no binding and were stored", &detail, growth.since)
}

/// Of each replay that stopped by itself lately.
pub(super) fn replay_causes(stored: &StoredState, scope: &str, now: Timestamp) -> impl Iterator<Item = Cause> {
    stored.unresolved.stopped_lately(now).map(move |StoppedReplay { id, reason, detail, at }| {
        let why = match reason.as_str() {
            "too_many_failed" => "too many of its dead letters failed again",
            "refused" => "the broker refuses what it publishes",
            other => other,
        };
        let text = detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
        let detail =
            format!("What it had not published is open again{text}. `orderd dead-letters replays {id}` has more");
        let title = format!("Replay {id} stopped: {why}");
        cause(scope, &["replay_stopped", &id.to_string()], &title, &detail, at.unwrap_or(now))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const NOW: i64 = 100_010;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn sum(source: LetterSource, state: LetterState, oldest: i64) -> UnresolvedSum {
        UnresolvedSum {
            source,
            reason: "permanent".to_owned(),
            state,
            messages: 2,
            money: [("EUR".to_owned(), "170.50".parse().unwrap())].into(),
            oldest: at(oldest),
        }
    }

    fn stopped(id: i64, reason: &str, at: Option<Timestamp>) -> StoppedReplay {
        StoppedReplay { id, reason: reason.to_owned(), detail: Some("ACCESS_REFUSED\r\n".to_owned()), at }
    }

    /// With one cause of each kind at second 100,010.
    pub fn stored() -> StoredState {
        let sums = vec![sum(LetterSource::DeadLetterQueue, LetterState::Open, 5)];
        let stopped = vec![stopped(7, "refused", Some(at(NOW - 60)))];
        StoredState { unresolved: UnresolvedDeadLetters { sums, stopped }, is_current: true }
    }

    fn of_sums(sums: Vec<UnresolvedSum>) -> Vec<Cause> {
        let stored = StoredState { unresolved: UnresolvedDeadLetters { sums, stopped: Vec::new() }, is_current: true };
        waiting_causes(&stored, "virtual host /", Duration::ZERO, at(NOW)).collect()
    }

    #[test]
    fn a_dead_letter_that_has_been_open_for_more_than_a_day_is_an_alert_with_the_count_and_the_money_at_stake() {
        use LetterSource::{DeadLetterQueue, UnroutedQueue};
        let causes = of_sums(vec![
            sum(DeadLetterQueue, LetterState::Open, 5),
            sum(DeadLetterQueue, LetterState::Open, 90_000),
            sum(UnroutedQueue, LetterState::Open, NOW - 86_400),
        ]);
        let [cause] = &causes[..] else { panic!("{causes:?}") };
        assert_eq!((&*cause.id, cause.since), ("dead_letters_waiting/dead_letter_queue", at(86_405)));
        assert!(cause.detail.starts_with("4 open, at stake: 341.00 EUR; "), "{cause:?}");
    }

    #[test]
    fn what_a_person_has_put_aside_or_is_being_replayed_does_not_wait() {
        let held = sum(LetterSource::DeadLetterQueue, LetterState::Held, 5);
        let replaying = sum(LetterSource::DeadLetterQueue, LetterState::Replaying, 5);
        assert_eq!(of_sums(vec![held, replaying]), []);
    }

    #[test]
    fn a_replay_that_stopped_by_itself_is_an_alert_for_a_day() {
        let of = |replay| {
            let unresolved = UnresolvedDeadLetters { sums: Vec::new(), stopped: vec![replay] };
            let stored = StoredState { unresolved, is_current: true };
            replay_causes(&stored, "virtual host /", at(NOW)).next()
        };
        let cause = of(stopped(3, "refused", Some(at(NOW - 86_399)))).unwrap();
        assert!(cause.id == "replay_stopped/3" && cause.detail.contains("ACCESS_REFUSED\\r\\n"), "{cause:?}");
        assert!(of(stopped(3, "too_many_failed", None)).is_some(), "it is still stopping");
        assert!(of(stopped(3, "refused", Some(at(NOW - 86_400)))).is_none());
    }
}
