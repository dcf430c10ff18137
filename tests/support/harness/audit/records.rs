//! What was found of the published messages, and its comparison with what was published. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Published;

/// Ids listed in one problem.
pub const MAX_LISTED_IDS: usize = 5;

/// The ids that were found, by place.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Processed orders in the ledger.
    pub processed: HashSet<String>,
    /// Cancelled orders in the ledger.
    pub cancelled: HashSet<String>,
    /// Events in the ledger.
    pub events: HashSet<String>,
    /// Dead letters in the ledger.
    pub recorded_dead_letters: HashSet<String>,
    /// Dead letters in their queue.
    pub dead_letters: HashSet<String>,
    /// Messages in the unrouted queue.
    pub unrouted: HashSet<String>,
    /// Dead letters that were replayed, and processed then; also those whose order was processed by another delivery.
    pub replayed: HashSet<String>,
    /// The same of unrouted messages.
    pub replayed_unrouted: HashSet<String>,
    /// How often messages were replayed, by id.
    pub replays: HashMap<String, usize>,
}

impl Records {
    /// Whether an id is in the ledger, or in the dead letter queue.
    fn is_settled(&self, id: &String) -> bool {
        [&self.processed, &self.cancelled, &self.events, &self.dead_letters].iter().any(|ids| ids.contains(id))
    }

    /// Whether a dead letter was replayed, and was processed or is unrouted now.
    fn has_left(&self, id: &String) -> bool {
        self.replayed.contains(id) || self.replays.contains_key(id) && self.unrouted.contains(id)
    }

    /// Orders and events that are unrouted and nowhere else: the first number counts orders, the second one events.
    pub fn only_unrouted(&self) -> (u64, u64) {
        let only = self.unrouted.iter().filter(|id| !self.is_settled(id));
        only.fold((0, 0), |(orders, events), id| match id.contains('/') {
            false => (orders + 1, events),
            true => (orders, events + 1),
        })
    }

    /// The orders that are unrouted and nowhere else.
    pub fn only_unrouted_orders(&self) -> HashSet<String> {
        self.unrouted.iter().filter(|id| !self.is_settled(id) && !id.contains('/')).cloned().collect()
    }

    /// Messages that are unrouted, and settled as well: they were published more than once.
    pub fn unrouted_and_settled(&self) -> u64 {
        self.unrouted.iter().filter(|id| self.is_settled(id)).count() as u64
    }

    /// Checks that each published message is in exactly one place, and that no others exist. Returns what is wrong.
    pub fn problems(&self, published: &Published) -> Vec<String> {
        let mut problems = Problems::default();
        self.compare_orders(published, &mut problems);
        self.compare_events(published, &mut problems);
        problems.0
    }

    fn compare_orders(&self, published: &Published, problems: &mut Problems) {
        let Published { prefix, orders, unroutable, .. } = published;
        let routable: HashSet<String> = (1..=*orders).map(|number| format!("{prefix}ord-{number}")).collect();
        let unroutable: HashSet<String> = (1..=*unroutable).map(|number| format!("{prefix}typo-{number}")).collect();
        let settled = [&self.processed, &self.dead_letters, &self.cancelled];
        let settled: HashSet<String> = settled.into_iter().flatten().cloned().collect();
        let lost = routable.iter().filter(|id| !settled.contains(*id) && !self.unrouted.contains(*id));
        problems.add("orders are missing: neither processed nor dead-lettered nor unrouted", lost);
        problems.add("orders were both processed and dead-lettered", self.processed.intersection(&self.dead_letters));
        problems.add("orders were not cancelled", published.cancelled.difference(&self.cancelled));
        problems.add("orders were cancelled by nobody", self.cancelled.difference(&published.cancelled));
        let rerouted: HashSet<String> = unroutable.intersection(&self.replayed_unrouted).cloned().collect();
        let known: HashSet<String> = routable.union(&rerouted).cloned().collect();
        problems.add("orders exist that were never published", settled.difference(&known));
        let unrouted: HashSet<String> = self.unrouted.union(&self.replayed_unrouted).cloned().collect();
        problems.add("unroutable orders are not in the unrouted queue", unroutable.difference(&unrouted));
        let replayed = self.replayed.iter().chain(&rerouted);
        problems.add("replayed orders are neither processed nor cancelled", replayed.filter(|id| !self.is_settled(id)));
        let unexplained = self
            .unrouted
            .difference(&unroutable)
            .filter(|id| !published.may_be_unrouted(id, self.events.contains(*id)))
            // A replay publishes during a gap, too.
            .filter(|id| published.gaps.is_empty() || !self.replays.contains_key(*id));
        problems.add("messages are unrouted, and no fault that happened explains it", unexplained);
        problems.add(
            "messages in the dead letter queue are not in the ledger",
            self.dead_letters.difference(&self.recorded_dead_letters),
        );
        problems.add(
            "dead letters in the ledger are not in the dead letter queue",
            self.recorded_dead_letters.difference(&self.dead_letters).filter(|id| !self.has_left(id)),
        );
    }

    /// Checks that a notification and an analytics event are recorded for each processed order, the same once more for each that was
    /// cancelled after that, an analytics event for each dead-lettered one, also if it was replayed later, and each event that others published.
    fn compare_events(&self, published: &Published, problems: &mut Problems) {
        let emitted = |id: &String| [format!("{id}/notification/processed"), format!("{id}/analytics/processed")];
        let left = self.recorded_dead_letters.iter().filter(|id| self.has_left(id));
        let failed = self.dead_letters.iter().chain(&self.replayed).chain(left);
        let failed = failed.map(|id| format!("{id}/analytics/failed"));
        let revoked = |id: &String| [format!("{id}/notification/cancelled"), format!("{id}/analytics/cancelled")];
        let processed = self.processed.iter().chain(&self.cancelled).flat_map(emitted);
        let cancelled = self.cancelled.iter().flat_map(revoked);
        let expected: HashSet<String> = processed.chain(cancelled).chain(failed).collect();
        let missing: HashSet<&String> = expected.difference(&self.events).collect();
        let lost = missing.iter().filter(|id| !self.unrouted.contains(**id)).copied();
        problems.add("events about orders are neither recorded nor unrouted", lost);
        let recorded = (expected.len() - missing.len()) as u64;
        let by_others = self.events.len() as u64 - recorded;
        let expected_of_others = published.notifications + published.analytics;
        if by_others != expected_of_others {
            problems.0.push(format!("{by_others} events by others are recorded, {expected_of_others} were published"));
        }
    }
}

/// What is wrong.
#[derive(Default)]
pub struct Problems(pub Vec<String>);

impl Problems {
    /// Adds one sentence about these ids, if there are any.
    pub fn add<'a>(&mut self, what: &str, ids: impl Iterator<Item = &'a String>) {
        let ids: BTreeSet<&String> = ids.collect();
        if !ids.is_empty() {
            let named: Vec<_> = ids.iter().take(MAX_LISTED_IDS).map(|id| id.as_str()).collect();
            self.0.push(format!("{} {what}, such as {}", ids.len(), named.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RoutingGap;
    use super::*;

    /// A complete run of 20 orders, of which one was dead-lettered.
    fn complete() -> (Published, Records) {
        let mut records = Records::default();
        for number in 1..=20 {
            let id = format!("ord-{number}");
            if number == 13 {
                records.events.insert(format!("{id}/analytics/failed"));
                records.recorded_dead_letters.insert(id.clone());
                records.dead_letters.insert(id);
            } else {
                records.events.insert(format!("{id}/notification/processed"));
                records.events.insert(format!("{id}/analytics/processed"));
                records.processed.insert(id);
            }
        }
        (Published::orders(20), records)
    }

    /// Removes an order with its events, as if it had never arrived.
    fn lose(records: &mut Records, order: &str) {
        records.processed.remove(order);
        records.events.retain(|event| !event.starts_with(&format!("{order}/")));
    }

    fn passes(published: &Published, records: &Records) -> bool {
        records.problems(published).is_empty()
    }

    fn gap(queue: &'static str, published_before: u64, published_until: u64) -> RoutingGap {
        RoutingGap {
            queues: vec![queue],
            published_before,
            published_until: Some(published_until),
            ..RoutingGap::default()
        }
    }

    #[test]
    fn a_lost_order_or_event_fails_the_audit_whatever_faults_happened() {
        let (mut published, records) = complete();
        assert!(passes(&published, &records), "{:?}", records.problems(&published));
        published.gaps.push(gap("order_queue", 0, 20));
        assert!(passes(&published, &records));
        type Change = fn(&mut Records);
        let changes: [(&str, Change); 8] = [
            ("an order is lost", |records| lose(records, "ord-7")),
            ("a dead letter is lost", |records| {
                records.dead_letters.remove("ord-13");
            }),
            ("a dead letter is not recorded", |records| {
                records.recorded_dead_letters.remove("ord-13");
            }),
            ("a notification is lost", |records| {
                records.events.remove("ord-7/notification/processed");
            }),
            ("the event of a failure is lost", |records| {
                records.events.remove("ord-13/analytics/failed");
            }),
            ("an order is processed and dead-lettered", |records| {
                records.processed.insert("ord-13".to_owned());
            }),
            ("an order was never published", |records| {
                records.processed.insert("ord-21".to_owned());
            }),
            ("an event was never published", |records| {
                records.events.insert("ord-21/analytics/processed".to_owned());
            }),
        ];
        for (what, change) in changes {
            let mut changed = records.clone();
            change(&mut changed);
            assert!(!passes(&published, &changed), "{what}");
        }
    }

    #[test]
    fn an_order_is_unrouted_only_if_a_binding_for_it_was_missing_while_it_was_under_way() {
        let (mut published, mut records) = complete();
        lose(&mut records, "ord-7");
        records.unrouted.insert("ord-7".to_owned());
        let mut passes_with = |gap| {
            published.gaps = vec![gap];
            passes(&published, &records)
        };
        assert!(passes_with(gap("order_queue", 6, 7)));
        assert!(passes_with(gap("failed_order_queue", 6, 7)), "its failure was unrouted");
        assert!(!passes_with(gap("order_queue", 7, 20)), "it was settled before");
        assert!(!passes_with(gap("order_queue", 0, 6)), "it was published later");
        assert!(!passes_with(gap("priority_order_queue", 6, 7)), "it is not urgent");
        assert!(!passes_with(gap("analytics_queue", 6, 7)), "it is no event");
        let unsettled = RoutingGap { unsettled: ["ord-7".to_owned()].into(), ..gap("order_queue", 10, 20) };
        assert!(passes_with(unsettled), "it was published before, and not settled");
        published.gaps.clear();
        assert!(!passes(&published, &records), "no fault happened");
    }

    #[test]
    fn a_repeated_event_that_is_recorded_may_be_unrouted_while_the_binding_of_its_queue_is_missing() {
        let (mut published, mut records) = complete();
        records.unrouted.insert("ord-13/analytics/failed".to_owned());
        assert!(!passes(&published, &records), "no fault happened");
        for (queue, published_before, published_until, passes_with) in
            [("analytics_queue", 15, 17, true), ("order_queue", 15, 17, false), ("analytics_queue", 10, 12, false)]
        {
            published.gaps = vec![gap(queue, published_before, published_until)];
            assert_eq!(passes(&published, &records), passes_with, "{queue} {published_until}");
        }
        published.gaps = vec![gap("analytics_queue", 15, 17)];
        records.events.remove("ord-13/analytics/failed");
        assert!(!passes(&published, &records), "it is lost");
    }

    #[test]
    fn unrouted_messages_count_apart_from_those_that_were_settled_as_well() {
        let (mut published, mut records) = complete();
        lose(&mut records, "ord-7");
        records.events.remove("ord-8/notification/processed");
        let unrouted = ["ord-7", "ord-8/notification/processed", "ord-9", "ord-9/analytics/processed"];
        records.unrouted = unrouted.map(str::to_owned).into();
        let all = ["order_queue", "notification_queue", "analytics_queue"];
        published.gaps = all.map(|queue| gap(queue, 6, 9)).to_vec();
        assert!(passes(&published, &records), "{:?}", records.problems(&published));
        assert_eq!((records.only_unrouted(), records.unrouted_and_settled()), ((1, 1), 2));
    }
}
