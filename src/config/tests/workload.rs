//! Queues, consumers and how they depend on each other.

use super::*;

#[test]
fn a_delivery_may_be_held_for_each_of_its_attempts_and_an_outage() {
    let holds = valid(&default_with("\nimmediate = 1\n", "\nimmediate = 4\n")).longest_holds();
    assert_eq!(holds["order_queue"], Duration::from_secs(5 * 30 + 300));
    assert_eq!(holds["failed_order_queue"], Duration::from_secs(600));
    let steps = "[[consumers.order.steps]]\nname = \"charge\"\nhttp = { url = \"http://127.0.0.1:1/\" }\ntimeout = \"20s\"\n\
                 undo = { http = { url = \"http://127.0.0.1:1/\" }, timeout = \"2m\" }\n";
    let holds = valid(&format!("{}\n{steps}", default_with("\nimmediate = 1\n", "\nimmediate = 4\n"))).longest_holds();
    assert_eq!(holds["order_queue"], Duration::from_secs(5 * (30 + 120) + 300), "with the undo, which is longer");
}

#[test]
fn events_of_steps_that_no_queue_is_bound_for_are_warned_of() {
    let with = |emits: &str| {
        let step = "[[consumers.order.steps]]\nname = \"ship\"\nhttp = { url = \"http://127.0.0.1:1/\" }";
        warnings(&format!("{DEFAULT_FILE}\n{step}\nemits = [{emits}]\n"))
    };
    assert_eq!(with("\"order.#\", \"order.notification.sms\""), [""; 0]);
    let found = with("\"order.notification.sms\", \"shop.labels.*\"");
    assert!(
        found.len() == 1 && found[0].contains("consumers.order.steps: a step emits \"shop.labels.*\""),
        "{found:?}"
    );
}

#[test]
fn a_longer_retry_after_than_all_delays_is_warned_of() {
    let with = |limit: &str| {
        let step = "[[consumers.order.steps]]\nname = \"ship\"\nhttp = { url = \"http://127.0.0.1:1/\" }";
        warnings(&format!("{DEFAULT_FILE}\n{step}\n{limit}\n"))
    };
    for enough in ["", "retry_after_max = \"1m\""] {
        assert_eq!(with(enough), [""; 0], "{enough}");
    }
    let found = with("retry_after_max = \"10m\"");
    assert!(found.len() == 1 && found[0].starts_with("consumers.order.steps[0].retry_after_max: is 10m"), "{found:?}");
}

#[test]
fn every_queue_has_one_consumer_and_every_consumer_a_queue() {
    for (from, to, expected) in [
        (
            "queue = \"order_queue\"",
            "queue = \"oder_queue\"",
            "consumers.order.queue: must be one of [queues], is \"oder_queue\"; did you mean \"order_queue\"?",
        ),
        ("queue = \"order_queue\"\n", "", "consumers.order.queue: is missing: name one of [queues]"),
        (
            "[queues.order_queue]",
            "[queues.other]\n# x\nbindings = [\"x\"]\n[queues.order_queue]",
            "queues.other: has no consumer, so its orders would never be processed",
        ),
        (
            "[queues.order_queue]",
            "[queues.Order-Queue]\nbindings = [\"x\"]\n[queues.order_queue]",
            "queues.Order-Queue: must be named in lower-case letters, digits and underscores",
        ),
        (
            "[queues.order_queue]",
            "[queues.dead_letter_queue]\nbindings = [\"x\"]\n[queues.order_queue]",
            "queues.dead_letter_queue: must have another name: orderd itself declares a queue of this name",
        ),
    ] {
        let found = problems(&default_with(from, to));
        assert_eq!(found[0], expected);
    }
    let shared = default_with("queue = \"notification_queue\"", "queue = \"analytics_queue\"");
    assert!(problems(&shared)[0].contains("is already the queue of consumer \"analytics\""), "{:?}", problems(&shared));
}

#[test]
fn failures_reach_exactly_one_queue() {
    for (from, to, expected) in [
        (
            "handler = \"failed\"",
            "handler = \"order\"",
            "consumers: one must have the handler \"failed\", which retries or dead-letters failed messages",
        ),
        (
            "handler = \"analytics\"",
            "handler = \"failed\"",
            "consumers.failed.handler: \"failed\" is already the handler of consumer \"analytics\"; exactly one consumer may have it",
        ),
        (
            "bindings = [\"order.failed.#\"]",
            "bindings = [\"order.failed.order\"]",
            "queues.failed_order_queue.bindings: must match \"order.failed.analytics\", the routing key of failures: add \"order.failed.#\"",
        ),
        (
            "bindings = [\"order.normal.*\"]",
            "bindings = [\"order.*.*\"]",
            "queues.order_queue.bindings[0]: must not match \"order.failed.analytics\", is \"order.*.*\": failures must reach queue \"failed_order_queue\" only",
        ),
        (
            "[ledger]",
            "[consumers.failed.retry]\n[ledger]",
            "consumers.failed.retry: has no effect on the failed-order consumer: remove it",
        ),
        (
            "handler = \"analytics\"",
            "handler = \"analytic\"",
            "consumers.analytics.handler: must be one of \"order\", \"notification\", \"analytics\", \"failed\" and \"steps\", is \"analytic\"; did you mean \"analytics\"?",
        ),
    ] {
        let found = problems(&default_with(from, to));
        assert!(found.contains(&expected.to_owned()), "{found:#?}");
    }
}

#[test]
fn an_unknown_handler_does_not_hide_unknown_keys() {
    let file = default_with("\nhandler = \"order\"\n", "\nhandler = \"ordr\"\nwrokers = 4\nfauls = 3\n");
    let problems = problems(&file);
    let expected = [
        "consumers.order.handler: must be one of \"order\", \"notification\", \"analytics\", \"failed\" and \"steps\", is \"ordr\"; did you mean \"order\"?",
        "consumers.order.wrokers: unknown key; did you mean \"workers\"?",
        "consumers.order.fauls: unknown key; did you mean \"faults\"?",
    ];
    assert_eq!(problems, expected, "faults is a key of some handler, so it is not reported");
}

#[test]
fn a_file_with_only_queues_or_only_consumers_does_not_get_the_default_ones() {
    let found = problems("[queues.a]\nbindings = [\"a\"]\n");
    assert!(found[0].starts_with("consumers: is missing"), "{found:?}");
    let found = problems("[consumers.order]\nworkers = 3\n");
    assert!(found.iter().any(|problem| problem.starts_with("queues: is missing")), "{found:?}");
}

#[test]
fn attempts_that_could_exceed_the_brokers_ack_timeout_cause_a_warning() {
    let text = default_with("\ntimeout = \"30s\"\n", "\ntimeout = \"15m\"\n");
    let (_, warnings) = load(&text, &[]).expect("15 minutes are allowed");
    assert!(
        warnings.iter().any(|warning| warning.contains("retry.immediate: allows 2 attempts of 15m")),
        "{warnings:?}"
    );
}
