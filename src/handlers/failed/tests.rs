//! The failed-order handler with the ledger in memory: what it publishes and records for failed messages.

use super::*;
use crate::ledger::LedgerReader;
use crate::ledger::memory::MemoryLedger;
use crate::message::{DeliveryId, HeaderValue, Headers, Message, Sender};
use crate::metrics::HandlerOutcome::DeadLetteredByBroker;
use crate::pipeline::{LedgerAccess, StepAccess};

fn delivery(unread: usize) -> Delivery {
    Delivery {
        id: DeliveryId { connection: 1, tag: 1 },
        exchange: "orders".to_owned(),
        routing_key: "order.failed.order".to_owned(),
        redelivered: false,
        message: Message { headers: Headers::new(), body: "{\"id\": 7".into(), unread, ..Message::default() },
    }
}

fn recorded(output: &HandlerOutput) -> (&str, &str) {
    match &output.record {
        Some(LedgerEntry::DeadLetter(letter)) => (&letter.attempt.code, letter.attempt.kind),
        other => panic!("expected a dead letter, got {other:?}"),
    }
}

static FAILED: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| "failed".into());

/// Of no retries, for orders with steps.
fn handler() -> FailedHandler {
    let policy = RetryPolicy { immediate: 0, delays: Vec::new(), max_age: std::time::Duration::from_secs(3600) };
    let order = OriginConsumer { name: "order".into(), policy, format: Some(Format::Own), has_steps: true };
    let (_sender, origin_consumers) = watch::channel(BTreeMap::from([("order_queue".to_owned(), order)]));
    let names = Arc::new(ExchangeNames::new("orders"));
    FailedHandler { names, origin_consumers, claims: Arc::default(), max_body: 1 << 20 }
}

#[tokio::test]
async fn a_message_that_only_a_header_says_to_have_failed_returns_once_before_its_steps_are_undone() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    let dead = |queue: &str, reason: &str| {
        let text = |text: &str| HeaderValue::Text(text.to_owned());
        let death = [("queue", text(queue)), ("reason", text(reason)), ("exchange", text("orders"))];
        let death = death.map(|(name, value)| (name.to_owned(), value)).into();
        let mut dead = delivery(0);
        dead.message.headers.insert("x-death".to_owned(), HeaderValue::List(vec![HeaderValue::Table(death)]));
        dead
    };
    for (queue, reason, is_copy, expected) in [
        ("order_queue", "delivery_limit", false, "returned"),
        ("order_queue", "rejected", false, "returned"),
        ("order_queue", "rejected", true, "the ledger is asked"),
        ("unknown_queue", "rejected", false, "dead-lettered"),
    ] {
        let delivery = dead(queue, reason);
        let input = HandlerInput {
            delivery: &delivery,
            provenance: &Provenance { sender: Sender::Unverified, is_copy, generated: None, cloud_event: None },
            consumer: &FAILED,
            bindings: &[],
            retries: 0,
            ledger: LedgerAccess::without_deadline(&memory),
            steps: StepAccess::default(),
        };
        let found = match handler.recover(input).await {
            Ok(HandlerOutput { outcome: HandlerOutcome::Returned, emit, .. }) => {
                assert_eq!((&*emit[0].exchange, &*emit[0].routing_key), ("orders.requeue", "order_queue"));
                assert!(!emit[0].message.headers.contains_key("x-undo"));
                "returned"
            }
            Ok(HandlerOutput { outcome: HandlerOutcome::DeadLettered { .. }, .. }) => "dead-lettered",
            Err(HandlerError::Interrupted(_)) => "the ledger is asked",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{queue} {reason}");
    }
}

#[tokio::test]
async fn what_cannot_be_published_as_a_copy_is_recorded_with_its_reason_and_dead_lettered_by_the_broker() {
    let (_sender, origin_consumers) = watch::channel(BTreeMap::new());
    let handler = FailedHandler {
        names: Arc::new(ExchangeNames::new("orders")),
        origin_consumers,
        claims: Arc::default(),
        max_body: 1 << 20,
    };
    let (too_large, whole) = (delivery(60 << 20), delivery(0));
    let provenance = &Provenance { sender: Sender::Own, is_copy: false, generated: None, cloud_event: None };
    let memory = MemoryLedger::default();
    let ledger = LedgerAccess::without_deadline(&memory);
    let input = |delivery| HandlerInput {
        delivery,
        provenance,
        consumer: &FAILED,
        bindings: &[],
        retries: 0,
        ledger,
        steps: StepAccess::default(),
    };
    let output = handler.recover(input(&too_large)).await.unwrap();
    assert_eq!(recorded(&output), (BODY_TOO_LARGE, "permanent"));
    let output = handler.handle(input(&too_large)).await.unwrap();
    assert!(output.record.is_none(), "it is recorded before the broker moves the message");
    assert!(output.log.is_some(), "it is logged after that");
    assert_eq!(memory.totals().await.unwrap().dead_letters.values().sum::<u64>(), 1);
    assert!(output.emit.is_empty() && matches!(output.outcome, DeadLetteredByBroker { .. }), "{output:?}");
    let output = handler.dead_letter_without_copy(input(&whole), "406 too large").unwrap();
    assert_eq!(recorded(&output), ("cannot_publish", "permanent"));
    assert!(output.emit.is_empty() && matches!(output.outcome, DeadLetteredByBroker { .. }), "{output:?}");
}
