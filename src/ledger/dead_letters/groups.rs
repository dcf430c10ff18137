//! Adds messages up by their cause. Pure, in bounded memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::new::{LetterSource, LetterState};
use super::query::{
    DeadLetterGroup, DeadLetterGroups, MAX_GROUPS, StoppedReplay, UnresolvedDeadLetters, UnresolvedSum,
};
use crate::domain::ExactSum;

/// Why a message was dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cause {
    /// The queue that it was taken from.
    pub source: LetterSource,
    /// Why it was there.
    pub reason: String,
    /// The consumer that failed. Empty: none.
    pub consumer: String,
    /// The failure's stable code.
    pub code: String,
    /// The routing key, if it is from `unrouted_queue`.
    pub routing_key: Option<String>,
}

/// One message, as far as it is added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Its number.
    pub id: i64,
    /// Its state.
    pub state: LetterState,
    /// Why it was dead-lettered.
    pub cause: Cause,
    /// What the order costs, with its currency.
    pub total: Option<(String, ExactSum)>,
    /// When it failed.
    pub failed_at: Timestamp,
}

/// The groups so far.
#[derive(Debug, Default)]
pub struct GroupBuilder {
    groups: HashMap<Cause, DeadLetterGroup>,
    messages: u64,
}

impl GroupBuilder {
    /// Adds a message.
    pub fn add(&mut self, letter: Counted) {
        let Counted { id, state: _, cause, total, failed_at } = letter;
        self.messages += 1;
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&cause) {
            return;
        }
        let group = self.groups.entry(cause.clone()).or_insert_with(|| DeadLetterGroup {
            source: cause.source,
            reason: cause.reason,
            consumer: Some(cause.consumer).filter(|consumer| !consumer.is_empty()),
            code: cause.code,
            routing_key: cause.routing_key,
            messages: 0,
            oldest: failed_at,
            newest: failed_at,
            money: BTreeMap::new(),
            example: id,
            note: None,
        });
        group.messages += 1;
        group.oldest = group.oldest.min(failed_at);
        group.newest = group.newest.max(failed_at);
        group.example = group.example.max(id);
        add_money(&mut group.money, total);
    }

    /// The groups, those with the most messages first.
    pub fn finish(self) -> DeadLetterGroups {
        let mut groups: Vec<_> = self.groups.into_values().collect();
        groups.sort_by(|a, b| {
            let key = |group: &DeadLetterGroup| (Reverse(group.messages), Reverse(group.example));
            key(a).cmp(&key(b))
        });
        DeadLetterGroups { groups, messages: self.messages, hidden: 0 }
    }
}

/// The sums of unresolved messages so far.
#[derive(Debug, Default)]
pub(in crate::ledger) struct UnresolvedBuilder {
    sums: BTreeMap<(LetterSource, String, LetterState), UnresolvedSum>,
}

impl UnresolvedBuilder {
    pub fn add(&mut self, letter: Counted) {
        let Counted { state, cause: Cause { source, reason, .. }, total, failed_at: oldest, .. } = letter;
        let (messages, money) = (0, BTreeMap::new());
        let new = || UnresolvedSum { source, reason: reason.clone(), state, messages, money, oldest };
        let sum = self.sums.entry((source, reason.clone(), state)).or_insert_with(new);
        sum.messages += 1;
        sum.oldest = sum.oldest.min(oldest);
        add_money(&mut sum.money, total);
    }

    /// With the replays that stopped by themselves.
    pub fn finish(self, stopped: Vec<StoppedReplay>) -> UnresolvedDeadLetters {
        UnresolvedDeadLetters { sums: self.sums.into_values().collect(), stopped }
    }
}

fn add_money(money: &mut BTreeMap<String, ExactSum>, total: Option<(String, ExactSum)>) {
    if let Some((currency, total)) = total {
        money.entry(currency).or_default().add(total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: i64, code: &str, total: Option<(&str, &str)>) -> Counted {
        let cause = Cause {
            source: LetterSource::DeadLetterQueue,
            reason: "permanent".to_owned(),
            consumer: "order".to_owned(),
            code: code.to_owned(),
            routing_key: None,
        };
        let total = total.map(|(currency, total)| (currency.to_owned(), total.parse().unwrap()));
        Counted { id, state: LetterState::Open, cause, total, failed_at: Timestamp::from_second(id).unwrap() }
    }

    #[test]
    fn a_group_has_its_messages_their_ages_their_money_and_one_example() {
        let mut groups = GroupBuilder::default();
        groups.add(letter(1, "card_expired", Some(("EUR", "0.10"))));
        groups.add(letter(3, "card_expired", Some(("EUR", "0.20"))));
        groups.add(letter(2, "card_expired", Some(("USD", "5"))));
        groups.add(letter(4, "other", None));
        let DeadLetterGroups { groups, messages, hidden: _ } = groups.finish();
        assert_eq!((messages, groups.len()), (4, 2));
        let first = &groups[0];
        assert_eq!((first.code.as_str(), first.messages, first.example), ("card_expired", 3, 3));
        assert_eq!((first.oldest.as_second(), first.newest.as_second()), (1, 3));
        let money: Vec<_> = first.money.iter().map(|(currency, sum)| format!("{currency} {sum}")).collect();
        assert_eq!(money, ["EUR 0.30", "USD 5"]);
    }

    #[test]
    fn groups_beyond_the_limit_are_counted_and_not_kept() {
        let mut groups = GroupBuilder::default();
        let all = i64::try_from(MAX_GROUPS).unwrap() + 5;
        (0..all).for_each(|id| groups.add(letter(id, &id.to_string(), None)));
        let DeadLetterGroups { groups, messages, hidden: _ } = groups.finish();
        assert_eq!((groups.len(), messages), (MAX_GROUPS, all.cast_unsigned()));
    }
}
