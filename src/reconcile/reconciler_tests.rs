//! The reconciler against sequences of answers as a broker gives them: decision tables over time.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::roles::tests::config;
use super::*;

const LIMITS: Limits = Limits {
    lag: Duration::from_secs(10),
    remembered: Duration::from_secs(100),
    details_every: Duration::from_secs(30),
};
const QUEUE: &str = "order_queue";
const RETRY: &str = "order_queue.retry.10s";

/// A reconciler, a clock, and a broker's queue.
struct Court {
    reconciler: Reconciler,
    roles: Roles,
    second: u32,
    view: BrokerView,
    own: LocalCounts,
}

impl Court {
    fn new() -> Self {
        let roles = Roles::new(&config());
        let mut view = BrokerView::default();
        for name in roles.declared() {
            view.queues.insert(name.to_owned(), QueueView::unknown(roles.of(name).unwrap()));
        }
        let own = LocalCounts {
            counts: config().consumers.values().map(|c| (c.queue.clone(), DeliveryCounts::default())).collect(),
            publisher_connection: 1,
            ..LocalCounts::default()
        };
        Court { reconciler: Reconciler::new(&roles, LIMITS, "t".to_owned()), roles, second: 0, view, own }
    }

    fn now(&self) -> Moment {
        Moment {
            elapsed: Duration::from_secs(self.second.into()),
            wall: Timestamp::from_second(self.second.into()).unwrap(),
        }
    }

    fn counts(&mut self, queue: &str) -> &mut DeliveryCounts {
        self.own.counts.get_mut(queue).unwrap()
    }

    fn totals(&mut self, queue: &str, ready: u64, unacked: u64, consumers: Option<u64>) {
        let queue = self.view.queues.get_mut(queue).unwrap();
        (queue.ready, queue.unacked, queue.consumers) = (Some(ready), Some(unacked), consumers);
    }

    /// Lets seconds pass in which the broker answers the same about one queue.
    fn pass(&mut self, seconds: u32, queue: &str, answer: &Value) -> &mut Self {
        for _ in 0..seconds {
            self.second += 1;
            let now = self.now();
            self.reconciler.own(now, &self.own);
            self.reconciler.totals(now.elapsed, now, &self.view, &self.roles);
            let detail: Detail = serde_json::from_value(answer.clone()).unwrap();
            let role = self.roles.of(queue).unwrap();
            self.reconciler.detail(now.elapsed, now, queue, &role, &detail, &self.own);
            let _ = self.reconciler.changes(now);
        }
        self
    }

    fn found(&self) -> Vec<(String, FindingKind, Option<u64>)> {
        self.reconciler.findings().into_iter().map(|found| (found.queue, found.kind, found.messages)).collect()
    }
}

fn work(tag: &str, stats: Value) -> Value {
    json!({"consumers": 1, "consumer_details": [{"consumer_tag": tag}], "message_stats": stats})
}

fn one(queue: &str, kind: FindingKind, messages: u64) -> Vec<(String, FindingKind, Option<u64>)> {
    vec![(queue.to_owned(), kind, Some(messages))]
}

#[test]
fn a_queue_in_order_has_no_findings() {
    let mut court = Court::new();
    court.totals(QUEUE, 0, 2, Some(1));
    for n in 0..200 {
        (court.counts(QUEUE).deliveries, court.counts(QUEUE).completed) = (3 * n + 2, 3 * n);
        court.pass(1, QUEUE, &work("t1", json!({"deliver": 3 * n + 2, "ack": 3 * n, "publish": 3 * n + 2})));
    }
    assert_eq!(court.pass(100, QUEUE, &work("t1", json!({"deliver": 599, "ack": 597}))).found(), []);
}

#[test]
fn acks_that_are_not_ours_are_found_and_forgotten_after_a_while() {
    let mut court = Court::new();
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 5, "ack": 5})));
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 5, "ack": 9})));
    assert_eq!(court.found(), one(QUEUE, FindingKind::AckedByOthers, 4));
    assert_eq!(court.pass(100, QUEUE, &work("t1", json!({"deliver": 5, "ack": 9}))).found(), []);
}

#[test]
fn acks_of_several_consumers_are_not_compared() {
    let two = |acks: u64| {
        json!({"consumers": 2, "consumer_details": [{"consumer_tag": "t1"}, {"consumer_tag": "u"}],
            "message_stats": {"ack": acks}})
    };
    let mut court = Court::new();
    assert_eq!(court.pass(40, QUEUE, &two(5)).pass(80, QUEUE, &two(900)).found(), []);
}

#[test]
fn what_other_instances_acked_is_not_held_against_the_one_that_is_left_alone_again() {
    let two = |acks: u64| {
        json!({"consumers": 2, "consumer_details": [{"consumer_tag": "t1"}, {"consumer_tag": "u"}],
            "message_stats": {"deliver": acks, "ack": acks}})
    };
    let mut court = Court::new();
    *court.counts(QUEUE) = DeliveryCounts { deliveries: 5, completed: 5, ..DeliveryCounts::default() };
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 5, "ack": 5})));
    // Seen once only, and what it acked last is counted after it has gone.
    court.pass(1, QUEUE, &two(400)).pass(8, QUEUE, &work("t1", json!({"deliver": 800, "ack": 800})));
    court.pass(60, QUEUE, &work("t1", json!({"deliver": 900, "ack": 900})));
    assert_eq!(court.found(), []);
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 900, "ack": 903})));
    assert_eq!(court.found(), one(QUEUE, FindingKind::AckedByOthers, 3), "it is judged again");
}

#[test]
fn what_another_instance_does_alone_is_not_held_against_one_that_does_not_consume() {
    let mut court = Court::new();
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 5, "ack": 5})));
    court.totals(QUEUE, 0, 50, Some(1));
    for n in 1..60 {
        court.pass(1, QUEUE, &work("u1", json!({"deliver": 10 * n, "ack": 9 * n})));
    }
    assert_eq!(court.pass(60, QUEUE, &work("u1", json!({"deliver": 600, "ack": 550}))).found(), []);
}

#[test]
fn acks_that_never_arrive_and_deliveries_that_never_come_are_found() {
    let mut court = Court::new();
    *court.counts(QUEUE) = DeliveryCounts { deliveries: 50, completed: 50, ..DeliveryCounts::default() };
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 50, "ack": 50})));
    *court.counts(QUEUE) = DeliveryCounts { deliveries: 60, completed: 60, ..DeliveryCounts::default() };
    court.pass(40, QUEUE, &work("t1", json!({"deliver": 63, "ack": 58})));
    let expected = [one(QUEUE, FindingKind::AcksMissing, 2), one(QUEUE, FindingKind::DeliveriesMissing, 3)].concat();
    assert_eq!(court.found(), expected);
}

#[test]
fn messages_taken_otherwise_are_found_once_and_not_those_from_before() {
    let mut court = Court::new();
    court.pass(5, QUEUE, &work("t1", json!({"get": 7})));
    assert_eq!(court.found(), []);
    court.pass(5, QUEUE, &work("t1", json!({"get": 9, "get_no_ack": 1})));
    assert_eq!(court.found(), one(QUEUE, FindingKind::TakenOtherwise, 3));
    // The broker counts anew, and then again as before.
    let mut court = Court::new();
    court.pass(5, QUEUE, &work("t1", json!({"get": 7}))).pass(3, QUEUE, &work("t1", json!({"get": 1})));
    assert_eq!(court.pass(50, QUEUE, &work("t1", json!({"get": 7}))).found(), []);
}

#[test]
fn unacked_messages_that_nobody_holds_are_found_only_once_nothing_moves() {
    let mut court = Court::new();
    court.totals(QUEUE, 0, 5, Some(1));
    for n in 0..60 {
        // Busy: the counts are not of one moment.
        (court.counts(QUEUE).deliveries, court.counts(QUEUE).completed) = (n, n);
        court.pass(1, QUEUE, &work("t1", json!({"deliver": n, "ack": n})));
    }
    assert_eq!(court.found(), []);
    let still = work("t1", json!({"deliver": 59, "ack": 59}));
    assert_eq!(court.pass(10, QUEUE, &still).found(), []);
    assert_eq!(court.pass(15, QUEUE, &still).found(), one(QUEUE, FindingKind::UnackedNotHeld, 5));
    court.counts(QUEUE).deliveries += 5;
    assert_eq!(court.pass(15, QUEUE, &still).found(), [], "they have arrived");
}

#[test]
fn waiting_messages_without_a_consumer_are_found_once_it_lasts() {
    let nobody = json!({"consumers": 0, "consumer_details": []});
    let mut court = Court::new();
    court.totals(QUEUE, 3, 0, None);
    assert_eq!(court.pass(60, QUEUE, &nobody).found(), [], "how many consumers is not told yet");
    court.totals(QUEUE, 0, 0, Some(0));
    assert_eq!(court.pass(60, QUEUE, &nobody).found(), [], "nothing waits");
    court.totals(QUEUE, 3, 0, Some(0));
    assert_eq!(court.pass(10, QUEUE, &nobody).found(), []);
    assert_eq!(court.pass(1, QUEUE, &nobody).found(), one(QUEUE, FindingKind::NoConsumer, 3));
    court.totals(QUEUE, 3, 0, Some(1));
    assert_eq!(court.pass(1, QUEUE, &nobody).found(), []);
}

#[test]
fn a_queue_that_is_deleted_is_found_and_its_other_findings_end() {
    let nobody = json!({"consumers": 0});
    let mut court = Court::new();
    court.totals(QUEUE, 3, 0, Some(0));
    assert_eq!(court.pass(11, QUEUE, &nobody).found(), one(QUEUE, FindingKind::NoConsumer, 3));
    court.view.queues.remove(QUEUE);
    court.view.missing_queues.push(QUEUE.to_owned());
    court.reconciler.gone(QUEUE);
    let other = "analytics_queue";
    court.pass(11, other, &json!({}));
    assert_eq!(court.found(), [(QUEUE.to_owned(), FindingKind::QueueMissing, None)]);
    court.view.missing_queues.clear();
    assert_eq!(court.pass(1, other, &json!({})).found(), []);
}

#[test]
fn dead_letters_that_never_get_fewer_are_stuck_and_those_that_come_and_go_are_not() {
    let held = |count: u64| json!({"messages_ready": 0, "messages_dlx": count, "consumers": 1});
    for (queue, kind) in [(QUEUE, FindingKind::DeadLettersHeld), (RETRY, FindingKind::RetriesOverdue)] {
        let mut court = Court::new();
        for second in 0..200 {
            court.pass(1, queue, &held(32 - second % 5));
        }
        assert_eq!(court.found(), [], "busy");
        assert_eq!(court.pass(25, queue, &held(30)).pass(10, queue, &held(31)).found(), one(queue, kind, 31));
        assert_eq!(court.pass(1, queue, &held(0)).found(), []);
    }
}

#[test]
fn messages_past_their_delay_are_found() {
    let there = |ready: u64, published: u64| json!({"messages_ready": ready, "message_stats": {"publish": published}});
    let mut court = Court::new();
    for n in 10..200 {
        court.counts("failed_order_queue").retried = n;
        court.pass(1, RETRY, &there(10, n));
    }
    assert_eq!(court.found(), [], "ten seconds' worth wait for ten seconds");
    assert_eq!(court.pass(85, RETRY, &there(10, 199)).found(), one(RETRY, FindingKind::RetriesOverdue, 10));
    assert_eq!(court.pass(1, RETRY, &there(0, 199)).found(), []);
}

#[test]
fn retries_confirmed_and_never_counted_are_found() {
    let there = |published: u64| json!({"messages_ready": 0, "message_stats": {"publish": published}});
    let mut court = Court::new();
    court.counts("failed_order_queue").retried = 5;
    court.pass(40, RETRY, &there(5));
    court.counts("failed_order_queue").retried = 9;
    assert_eq!(court.pass(40, RETRY, &there(9)).found(), []);
    court.counts("failed_order_queue").retried = 12;
    court.pass(40, RETRY, &there(10));
    assert_eq!(court.found(), one(RETRY_QUEUES, FindingKind::PublishesMissing, 2));
}

#[test]
fn a_retry_queue_that_is_used_for_the_first_time_is_no_gap() {
    let other = "order_queue.retry.1m";
    let there = |published: u64| json!({"messages_ready": 0, "message_stats": {"publish": published}});
    let mut court = Court::new();
    court.counts("failed_order_queue").retried = 5;
    court.pass(20, RETRY, &there(5)).pass(20, other, &json!({"messages_ready": 0})).pass(30, RETRY, &there(5));
    court.counts("failed_order_queue").retried = 7;
    court.pass(3, other, &there(2)).pass(30, RETRY, &there(5)).pass(30, other, &there(2));
    assert_eq!(court.found(), []);
}

#[test]
fn failures_handed_on_and_dead_lettered_messages_are_compared_and_others_may_publish_too() {
    for (queue, own) in [("failed_order_queue", QUEUE), ("dead_letter_queue", "failed_order_queue")] {
        let there = |published: u64| json!({"message_stats": {"publish": published}});
        let mut court = Court::new();
        let sent = |court: &mut Court, count: u64| {
            let counts = court.counts(own);
            (counts.forwarded, counts.dead_lettered) = if own == QUEUE { (count, 0) } else { (0, count) };
        };
        sent(&mut court, 5);
        court.pass(40, queue, &there(5)).pass(40, queue, &there(8));
        assert_eq!(court.found(), [], "{queue}: three of others");
        sent(&mut court, 9);
        court.pass(40, queue, &there(11));
        assert_eq!(court.found(), one(queue, FindingKind::PublishesMissing, 1), "{queue}");
    }
}

#[test]
fn a_broker_without_statistics_leads_to_no_findings() {
    let mut court = Court::new();
    for n in 0..300 {
        court.counts(QUEUE).deliveries = n;
        court.counts(QUEUE).completed = n;
        court.counts("failed_order_queue").retried = n;
        court.pass(1, [QUEUE, RETRY, "dead_letter_queue"][n as usize % 3], &json!({"messages_ready": 4}));
    }
    assert_eq!(court.found(), []);
}

#[test]
fn messages_that_wait_for_a_paused_consumer_are_said_to_and_are_no_error() {
    let mut court = Court::new();
    court.totals(QUEUE, 7, 0, Some(0));
    court.own.paused = [(QUEUE.to_owned(), Timestamp::UNIX_EPOCH)].into();
    court.pass(40, QUEUE, &json!({"consumers": 0, "consumer_details": []}));
    assert_eq!(court.found(), one(QUEUE, FindingKind::ConsumerPaused, 7));
    assert!(court.reconciler.findings()[0].detail.contains("orderd resume order"));
    court.totals(QUEUE, 7, 0, Some(1));
    court.pass(40, QUEUE, &json!({"consumers": 1, "consumer_details": [{"consumer_tag": "another's"}]}));
    assert_eq!(court.found(), [], "another instance works on them");
    court.totals(QUEUE, 7, 0, Some(0));
    court.own.paused.clear();
    court.pass(40, QUEUE, &json!({"consumers": 0, "consumer_details": []}));
    assert_eq!(court.found(), one(QUEUE, FindingKind::NoConsumer, 7), "resumed, and still nobody there");
}
