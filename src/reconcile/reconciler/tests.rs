//! The reconciler's findings for sequences of answers from a broker.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::queue_roles::tests::config;
use super::*;

const LIMITS: Limits = Limits {
    lag: Duration::from_secs(10),
    event_retention: Duration::from_secs(100),
    details_every: Duration::from_secs(30),
};
const QUEUE: &str = "order_queue";
const RETRY: &str = "order_queue.retry.10s";

/// A reconciler with a clock, orderd's counts and the broker's totals.
struct TestEnv {
    reconciler: Reconciler,
    roles: QueueRoles,
    second: u32,
    view: BrokerView,
    local: LocalCounts,
}

impl TestEnv {
    fn new() -> Self {
        let roles = QueueRoles::new(&config());
        let mut view = BrokerView::default();
        for name in roles.declared() {
            view.queues.insert(name.to_owned(), QueueView::unknown(roles.role_of(name).unwrap()));
        }
        let local = LocalCounts {
            counts: config().consumers.values().map(|c| (c.queue.clone(), DeliveryCounts::default())).collect(),
            publisher_connection: 1,
            ..LocalCounts::default()
        };
        TestEnv { reconciler: Reconciler::new(&roles, LIMITS, "t".to_owned()), roles, second: 0, view, local }
    }

    fn now(&self) -> Moment {
        Moment {
            elapsed: Duration::from_secs(self.second.into()),
            wall: Timestamp::from_second(self.second.into()).unwrap(),
        }
    }

    fn counts(&mut self, queue: &str) -> &mut DeliveryCounts {
        self.local.counts.get_mut(queue).unwrap()
    }

    fn totals(&mut self, queue: &str, ready: u64, unacked: u64, consumers: Option<u64>) {
        let queue = self.view.queues.get_mut(queue).unwrap();
        (queue.ready, queue.unacked, queue.consumers) = (Some(ready), Some(unacked), consumers);
    }

    /// Lets seconds pass during which the broker keeps giving the same answer about one queue.
    fn pass(&mut self, seconds: u32, queue: &str, answer: &Value) -> &mut Self {
        for _ in 0..seconds {
            self.second += 1;
            let now = self.now();
            self.reconciler.record_local_counts(now, &self.local);
            self.reconciler.compare_totals(now.elapsed, now, &self.view);
            let detail: Detail = serde_json::from_value(answer.clone()).unwrap();
            let role = self.roles.role_of(queue).unwrap();
            self.reconciler.compare_detail(now.elapsed, now, queue, &role, &detail, &self.local);
            let _ = self.reconciler.take_changes(now);
        }
        self
    }

    /// Queue, kind and number of messages of each finding.
    fn found(&self) -> Vec<(String, FindingKind, Option<u64>)> {
        self.reconciler.findings().into_iter().map(|found| (found.queue.unwrap(), found.kind, found.messages)).collect()
    }
}

fn work_queue(tag: &str, stats: Value) -> Value {
    json!({"consumers": 1, "consumer_details": [{"consumer_tag": tag}], "message_stats": stats})
}

fn single(queue: &str, kind: FindingKind, messages: u64) -> Vec<(String, FindingKind, Option<u64>)> {
    vec![(queue.to_owned(), kind, Some(messages))]
}

#[test]
fn a_healthy_queue_has_no_findings() {
    let mut env = TestEnv::new();
    env.totals(QUEUE, 0, 2, Some(1));
    for n in 0..200 {
        (env.counts(QUEUE).deliveries, env.counts(QUEUE).completed) = (3 * n + 2, 3 * n);
        env.pass(1, QUEUE, &work_queue("t1", json!({"deliver": 3 * n + 2, "ack": 3 * n, "publish": 3 * n + 2})));
    }
    assert_eq!(env.pass(100, QUEUE, &work_queue("t1", json!({"deliver": 599, "ack": 597}))).found(), []);
}

#[test]
fn acks_of_other_clients_are_found_and_the_finding_expires() {
    let mut env = TestEnv::new();
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 5, "ack": 5})));
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 5, "ack": 9})));
    assert_eq!(env.found(), single(QUEUE, FindingKind::AckedByOthers, 4));
    assert_eq!(env.pass(100, QUEUE, &work_queue("t1", json!({"deliver": 5, "ack": 9}))).found(), []);
}

#[test]
fn acks_of_several_consumers_are_not_compared() {
    let two = |acks: u64| {
        json!({"consumers": 2, "consumer_details": [{"consumer_tag": "t1"}, {"consumer_tag": "u"}],
            "message_stats": {"ack": acks}})
    };
    let mut env = TestEnv::new();
    assert_eq!(env.pass(40, QUEUE, &two(5)).pass(80, QUEUE, &two(900)).found(), []);
}

#[test]
fn acks_of_a_departed_instance_are_not_attributed_to_the_remaining_one() {
    let two = |acks: u64| {
        json!({"consumers": 2, "consumer_details": [{"consumer_tag": "t1"}, {"consumer_tag": "u"}],
            "message_stats": {"deliver": acks, "ack": acks}})
    };
    let mut env = TestEnv::new();
    *env.counts(QUEUE) = DeliveryCounts { deliveries: 5, completed: 5, ..DeliveryCounts::default() };
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 5, "ack": 5})));
    // The other instance is seen only once, and its last acks are counted after it has left.
    env.pass(1, QUEUE, &two(400)).pass(8, QUEUE, &work_queue("t1", json!({"deliver": 800, "ack": 800})));
    env.pass(60, QUEUE, &work_queue("t1", json!({"deliver": 900, "ack": 900})));
    assert_eq!(env.found(), []);
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 900, "ack": 903})));
    assert_eq!(env.found(), single(QUEUE, FindingKind::AckedByOthers, 3), "compared again");
}

#[test]
fn acks_of_the_only_consuming_instance_are_not_compared_by_one_that_does_not_consume() {
    let mut env = TestEnv::new();
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 5, "ack": 5})));
    env.totals(QUEUE, 0, 50, Some(1));
    for n in 1..60 {
        env.pass(1, QUEUE, &work_queue("u1", json!({"deliver": 10 * n, "ack": 9 * n})));
    }
    assert_eq!(env.pass(60, QUEUE, &work_queue("u1", json!({"deliver": 600, "ack": 550}))).found(), []);
}

#[test]
fn acks_and_deliveries_that_never_arrive_are_found() {
    let mut env = TestEnv::new();
    *env.counts(QUEUE) = DeliveryCounts { deliveries: 50, completed: 50, ..DeliveryCounts::default() };
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 50, "ack": 50})));
    *env.counts(QUEUE) = DeliveryCounts { deliveries: 60, completed: 60, ..DeliveryCounts::default() };
    env.pass(40, QUEUE, &work_queue("t1", json!({"deliver": 63, "ack": 58})));
    let expected =
        [single(QUEUE, FindingKind::AcksMissing, 2), single(QUEUE, FindingKind::DeliveriesMissing, 3)].concat();
    assert_eq!(env.found(), expected);
}

#[test]
fn messages_taken_by_other_clients_are_found_once_and_earlier_ones_are_not() {
    let mut env = TestEnv::new();
    env.pass(5, QUEUE, &work_queue("t1", json!({"get": 7})));
    assert_eq!(env.found(), []);
    env.pass(5, QUEUE, &work_queue("t1", json!({"get": 9, "get_no_ack": 1})));
    assert_eq!(env.found(), single(QUEUE, FindingKind::TakenByOthers, 3));
    // The broker's counter is reset, and then returns to its former value.
    let mut env = TestEnv::new();
    env.pass(5, QUEUE, &work_queue("t1", json!({"get": 7}))).pass(3, QUEUE, &work_queue("t1", json!({"get": 1})));
    assert_eq!(env.pass(50, QUEUE, &work_queue("t1", json!({"get": 7}))).found(), []);
}

#[test]
fn unacked_messages_that_orderd_does_not_hold_are_found_only_once_counts_stop_changing() {
    let mut env = TestEnv::new();
    env.totals(QUEUE, 0, 5, Some(1));
    for n in 0..60 {
        // Under load, the two counts are not of the same moment.
        (env.counts(QUEUE).deliveries, env.counts(QUEUE).completed) = (n, n);
        env.pass(1, QUEUE, &work_queue("t1", json!({"deliver": n, "ack": n})));
    }
    assert_eq!(env.found(), []);
    let still = work_queue("t1", json!({"deliver": 59, "ack": 59}));
    assert_eq!(env.pass(10, QUEUE, &still).found(), []);
    assert_eq!(env.pass(15, QUEUE, &still).found(), single(QUEUE, FindingKind::UnackedNotHeld, 5));
    env.counts(QUEUE).deliveries += 5;
    assert_eq!(env.pass(15, QUEUE, &still).found(), [], "they have arrived");
}

#[test]
fn waiting_messages_without_a_consumer_are_found_once_that_lasts() {
    let unconsumed = json!({"consumers": 0, "consumer_details": []});
    let mut env = TestEnv::new();
    env.totals(QUEUE, 3, 0, None);
    assert_eq!(env.pass(60, QUEUE, &unconsumed).found(), [], "the number of consumers is unknown");
    env.totals(QUEUE, 0, 0, Some(0));
    assert_eq!(env.pass(60, QUEUE, &unconsumed).found(), [], "no message waits");
    env.totals(QUEUE, 3, 0, Some(0));
    assert_eq!(env.pass(10, QUEUE, &unconsumed).found(), []);
    assert_eq!(env.pass(1, QUEUE, &unconsumed).found(), single(QUEUE, FindingKind::NoConsumer, 3));
    env.totals(QUEUE, 3, 0, Some(1));
    assert_eq!(env.pass(1, QUEUE, &unconsumed).found(), []);
}

#[test]
fn the_findings_of_a_deleted_queue_end() {
    let unconsumed = json!({"consumers": 0});
    let mut env = TestEnv::new();
    env.totals(QUEUE, 3, 0, Some(0));
    assert_eq!(env.pass(11, QUEUE, &unconsumed).found(), single(QUEUE, FindingKind::NoConsumer, 3));
    env.view.queues.remove(QUEUE);
    env.reconciler.forget_queue(QUEUE);
    let other = "analytics_queue";
    env.pass(11, other, &json!({}));
    assert_eq!(env.found(), []);
}

#[test]
fn dead_letters_whose_number_never_falls_are_stuck_and_fluctuating_ones_are_not() {
    let held = |count: u64| json!({"messages_ready": 0, "messages_dlx": count, "consumers": 1});
    for (queue, kind) in [(QUEUE, FindingKind::DeadLettersHeld), (RETRY, FindingKind::RetriesOverdue)] {
        let mut env = TestEnv::new();
        for second in 0..200 {
            env.pass(1, queue, &held(32 - second % 5));
        }
        assert_eq!(env.found(), [], "fluctuating");
        assert_eq!(env.pass(25, queue, &held(30)).pass(10, queue, &held(31)).found(), single(queue, kind, 31));
        assert_eq!(env.pass(1, queue, &held(0)).found(), []);
    }
}

#[test]
fn messages_past_their_delay_are_found() {
    let there = |ready: u64, published: u64| json!({"messages_ready": ready, "message_stats": {"publish": published}});
    let mut env = TestEnv::new();
    for n in 10..200 {
        env.counts("failed_order_queue").retried = n;
        env.pass(1, RETRY, &there(10, n));
    }
    assert_eq!(env.found(), [], "ten seconds' worth wait for ten seconds");
    assert_eq!(env.pass(85, RETRY, &there(10, 199)).found(), single(RETRY, FindingKind::RetriesOverdue, 10));
    assert_eq!(env.pass(1, RETRY, &there(0, 199)).found(), []);
}

#[test]
fn confirmed_retries_that_the_broker_never_counts_are_found() {
    let there = |published: u64| json!({"messages_ready": 0, "message_stats": {"publish": published}});
    let mut env = TestEnv::new();
    env.counts("failed_order_queue").retried = 5;
    env.pass(40, RETRY, &there(5));
    env.counts("failed_order_queue").retried = 9;
    assert_eq!(env.pass(40, RETRY, &there(9)).found(), []);
    env.counts("failed_order_queue").retried = 12;
    env.pass(40, RETRY, &there(10));
    assert_eq!(env.found(), single(RETRY_QUEUES, FindingKind::PublishesMissing, 2));
}

#[test]
fn failures_that_return_to_their_queue_are_not_missed_in_the_retry_queues() {
    let there = json!({"messages_ready": 0, "message_stats": {"publish": 5}});
    let mut env = TestEnv::new();
    env.counts("failed_order_queue").retried = 5;
    env.pass(40, RETRY, &there);
    env.counts("failed_order_queue").returned = 3;
    assert_eq!(env.pass(80, RETRY, &there).found(), []);
}

#[test]
fn a_failed_undo_is_found_for_a_day() {
    let mut env = TestEnv::new();
    env.pass(1, QUEUE, &json!({}));
    assert_eq!(env.found(), []);
    env.local.failed_undos = FailedUndos { messages: 2, last: Some(env.now().wall) };
    assert_eq!(env.pass(1, QUEUE, &json!({})).found(), single("dead_letter_queue", FindingKind::UndoFailed, 2));
    env.second += 86_300;
    assert_eq!(env.pass(1, QUEUE, &json!({})).found(), single("dead_letter_queue", FindingKind::UndoFailed, 2));
    env.second += 200;
    assert_eq!(env.pass(1, QUEUE, &json!({})).found(), []);
}

#[test]
fn the_first_use_of_a_retry_queue_is_no_gap() {
    let other = "order_queue.retry.1m";
    let there = |published: u64| json!({"messages_ready": 0, "message_stats": {"publish": published}});
    let mut env = TestEnv::new();
    env.counts("failed_order_queue").retried = 5;
    env.pass(20, RETRY, &there(5)).pass(20, other, &json!({"messages_ready": 0})).pass(30, RETRY, &there(5));
    env.counts("failed_order_queue").retried = 7;
    env.pass(3, other, &there(2)).pass(30, RETRY, &there(5)).pass(30, other, &there(2));
    assert_eq!(env.found(), []);
}

#[test]
fn forwarded_and_dead_lettered_messages_are_compared_although_others_may_publish_too() {
    for (queue, own) in [("failed_order_queue", QUEUE), ("dead_letter_queue", "failed_order_queue")] {
        let there = |published: u64| json!({"message_stats": {"publish": published}});
        let mut env = TestEnv::new();
        let sent = |env: &mut TestEnv, count: u64| {
            let counts = env.counts(own);
            (counts.forwarded, counts.dead_lettered) = if own == QUEUE { (count, 0) } else { (0, count) };
        };
        sent(&mut env, 5);
        env.pass(40, queue, &there(5)).pass(40, queue, &there(8));
        assert_eq!(env.found(), [], "{queue}: three published by others");
        sent(&mut env, 9);
        env.pass(40, queue, &there(11));
        assert_eq!(env.found(), single(queue, FindingKind::PublishesMissing, 1), "{queue}");
    }
}

#[test]
fn a_broker_without_statistics_leads_to_no_findings() {
    let mut env = TestEnv::new();
    for n in 0..300 {
        env.counts(QUEUE).deliveries = n;
        env.counts(QUEUE).completed = n;
        env.counts("failed_order_queue").retried = n;
        env.pass(1, [QUEUE, RETRY, "dead_letter_queue"][n as usize % 3], &json!({"messages_ready": 4}));
    }
    assert_eq!(env.found(), []);
}

#[test]
fn messages_waiting_for_a_paused_consumer_are_reported_as_such() {
    let mut env = TestEnv::new();
    env.totals(QUEUE, 7, 0, Some(0));
    env.local.paused = [(QUEUE.to_owned(), Timestamp::UNIX_EPOCH)].into();
    env.pass(40, QUEUE, &json!({"consumers": 0, "consumer_details": []}));
    assert_eq!(env.found(), single(QUEUE, FindingKind::ConsumerPaused, 7));
    assert!(env.reconciler.findings()[0].detail.contains("orderd resume order"));
    env.totals(QUEUE, 7, 0, Some(1));
    env.pass(40, QUEUE, &json!({"consumers": 1, "consumer_details": [{"consumer_tag": "another's"}]}));
    assert_eq!(env.found(), [], "another instance consumes the queue");
    env.totals(QUEUE, 7, 0, Some(0));
    env.local.paused.clear();
    env.pass(40, QUEUE, &json!({"consumers": 0, "consumer_details": []}));
    assert_eq!(env.found(), single(QUEUE, FindingKind::NoConsumer, 7), "resumed, but not consumed");
}
