//! The failed-order handler with the ledger in memory: what it publishes and records for failed messages.

use std::time::Duration;

use jiff::SignedDuration;

use super::*;
use crate::config::MessageKind;
use crate::domain::OrderId;
use crate::handlers::step_run::message_hash;
use crate::ledger::conformance::{accept, at, finish, order};
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{
    CallOutcome, ClaimAnswer, ClaimPurpose, EndedCall, LedgerReader, LedgerWriter, MessageHash, NewCancellation,
    RunClaim, RunKey, RunMessage, RunRecord, RunState, StepAction, StepCallEntry,
};
use crate::message::{DeliveryId, HeaderValue, Headers, Message, PublishError, Sender, names};
use crate::metrics::HandlerOutcome::DeadLetteredByBroker;
use crate::metrics::{ChannelCounters, StepCounters};
use crate::pipeline::{LedgerAccess, StepAccess, StepServices};
use crate::recovery::{ClaimNote, RetryPolicy};
use crate::wait_budget::WaitBudget;

fn delivery(missing_bytes: usize) -> Delivery {
    Delivery {
        id: DeliveryId { connection: 1, tag: 1 },
        exchange: "orders".to_owned(),
        routing_key: "order.failed.order".to_owned(),
        redelivered: false,
        message: Message { headers: Headers::new(), body: "{\"id\": 7".into(), missing_bytes, ..Message::default() },
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
    let (format, has_steps, is_configured) = (Some(Format::Own), true, true);
    let order = OriginConsumer { name: "order".into(), policy, format, has_steps, is_configured };
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
    let output = handler.dead_letter_without_copy(input(&whole), "406 too large").await.unwrap().unwrap();
    assert_eq!(recorded(&output), ("cannot_publish", "permanent"));
    assert!(output.emit.is_empty() && matches!(output.outcome, DeadLetteredByBroker { .. }), "{output:?}");
}

/// What a worker offers.
struct TestServices<'a> {
    memory: &'a MemoryLedger,
    counters: StepCounters,
    channels: ChannelCounters,
    queue: Arc<str>,
    waits: WaitBudget,
    note: ClaimNote,
}

impl<'a> TestServices<'a> {
    fn new(memory: &'a MemoryLedger) -> Self {
        let (counters, channels) = (StepCounters::default(), ChannelCounters::default());
        let waits = WaitBudget::new(Duration::from_secs(1));
        TestServices { memory, counters, channels, queue: "order_queue".into(), waits, note: ClaimNote::default() }
    }
}

impl StepServices for TestServices<'_> {
    fn publish(&self, _events: Arc<[crate::message::Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn ledger(&self) -> &dyn LedgerWriter {
        self.memory
    }

    fn counters(&self) -> &StepCounters {
        &self.counters
    }

    fn channels(&self) -> &ChannelCounters {
        &self.channels
    }

    fn max_hold(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn waits(&self) -> &WaitBudget {
        &self.waits
    }

    fn queue(&self) -> &Arc<str> {
        &self.queue
    }

    fn note(&self) -> &ClaimNote {
        &self.note
    }

    fn shared(&self) -> crate::pipeline::SharedServices {
        unreachable!("only deliveries of notifications need it")
    }
}

/// A copy that orderd published after a failure in the order queue with this code, which is that of its kind for most.
fn failed_copy(body: &str, code: &str) -> Delivery {
    let kind = match code {
        ID_CONFLICT => "permanent",
        STEPS_IN_PROGRESS => "transient",
        kind => kind,
    };
    let mut copy = delivery(0);
    copy.message.body = body.to_owned().into();
    for (name, text) in [
        ("x-origin-queue", "order_queue"),
        ("x-failure-kind", kind),
        ("x-failure-code", code),
        ("x-failure-reason", "it failed"),
    ] {
        copy.message.headers.insert(name.to_owned(), HeaderValue::Text(text.to_owned()));
    }
    copy
}

async fn handle(handler: &FailedHandler, memory: &MemoryLedger, delivery: &Delivery) -> HandlerOutput {
    let services = TestServices::new(memory);
    let input = HandlerInput {
        delivery,
        provenance: &Provenance { sender: Sender::Own, is_copy: true, generated: None, cloud_event: None },
        consumer: &FAILED,
        bindings: &[],
        retries: 0,
        ledger: LedgerAccess::without_deadline(memory),
        steps: StepAccess(Some(&services)),
    };
    handler.handle(input).await.unwrap()
}

/// The order that [`order`] is, with this customer.
fn body(id: &str, customer: &str) -> String {
    format!(
        r#"{{"id":"{id}","product":"Laptop","quantity":3,"price":"400.00","currency":"EUR","customer_id":"{customer}"}}"#
    )
}

fn header<'a>(output: &'a HandlerOutput, name: &str) -> &'a str {
    output.emit[0].message.headers[name].as_text().unwrap()
}

#[tokio::test]
async fn a_failed_order_is_prevented_only_if_it_is_the_cancelled_one_and_no_other_message_with_its_id_is_lost() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    memory.record(accept(order("cancelled"))).await.unwrap();
    memory.record(accept(order("revoked"))).await.unwrap();
    memory.record(finish("revoked")).await.unwrap();
    for id in ["cancelled", "revoked", "unknown"] {
        let id = OrderId::new(id).unwrap();
        memory.cancel_order(NewCancellation { id, consumer: "order".into(), at: at(4_000) }).await.unwrap();
    }
    let prevented = HandlerOutcome::Prevented;
    for id in ["unknown", "cancelled", "revoked"] {
        for kind in ["delivery_limit", "panicked", "timed_out"] {
            let same = handle(&handler, &memory, &failed_copy(&body(id, "7"), kind)).await;
            assert_eq!((same.outcome, same.emit.len()), (prevented.clone(), 0), "{id} {kind}");
        }
        let mut truncated = failed_copy(&body(id, "7"), "permanent");
        truncated.message.missing_bytes = 1;
        for other in [
            failed_copy(&body(id, "8"), "delivery_limit"),
            failed_copy(&body(id, "8"), "panicked"),
            failed_copy(&body(id, "7").replace("\"quantity\":3", "\"quantity\":0"), "permanent"),
            failed_copy(&body(id, "7").replace("\"400.00\"", "true"), "malformed"),
            failed_copy(&body(id, "7").replace("EUR", "EUR\0"), "malformed"),
            failed_copy(&format!(r#"{{"order":{{"id":"{id}"}}}}"#), "malformed"),
            failed_copy(&format!(r#"{{"id":"{id}""#), "malformed"),
            failed_copy(&format!(r#"{{"id":"{id}"}}"#), "malformed"),
            failed_copy(&body(id, "7"), ID_CONFLICT),
            truncated,
        ] {
            let kept = handle(&handler, &memory, &other).await.outcome;
            let is_kept = matches!(kept, HandlerOutcome::DeadLettered { .. } | DeadLetteredByBroker { .. });
            assert!(is_kept, "{id}: {kept:?}: {other:?}");
        }
    }
}

/// An order whose charge is done, by another instance.
async fn charge(memory: &MemoryLedger, id: &str) {
    charge_for(memory, id, [7; 32]).await;
}

/// The same with the message that is this order.
async fn charge_for(memory: &MemoryLedger, id: &str, hash: MessageHash) {
    let key = RunKey { scope: String::new(), identity: id.to_owned() };
    let first = Some(StepCallEntry {
        step: "charge".to_owned(),
        action: StepAction::Do,
        position: 0,
        undoable: true,
        retries: 0,
    });
    let message = RunMessage { queue: "order_queue".into(), hash };
    let purpose = ClaimPurpose::Work { message, is_new: true, replayed_at: None, takes_over: false, first };
    let (owner, accepted) = ("another".into(), Some(Box::new(order(id))));
    let claim = RunClaim { key: key.clone(), purpose, owner, at: at(3_000), until: at(4_000), order: accepted };
    assert!(matches!(memory.claim_run(claim).await.unwrap(), ClaimAnswer::Granted(_)));
    let outcome = CallOutcome::Done { result: "1".to_owned() };
    let ended = EndedCall { step: "charge".to_owned(), action: StepAction::Do, outcome };
    let record = RunRecord {
        key,
        fence: 1,
        at: at(3_500),
        until: Some(at(4_000)),
        ended: Some(ended),
        next: None,
        state: None,
        failure: None,
        dead_lettered: false,
    };
    memory.record_run(record).await.unwrap();
}

/// A killed process may have been finishing the order, whose lease lasts for as long as a delivery may be held. The broker delivers
/// both again: the order, and a copy of an earlier delivery that had failed.
#[tokio::test]
async fn an_order_that_was_being_finished_by_a_killed_process_does_not_wait_for_the_decision_on_its_failed_copy() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    let copy = failed_copy(&body("finishing", "7"), "permanent");
    charge_for(&memory, "finishing", message_hash(&copy.message)).await;
    let key = RunKey { scope: String::new(), identity: "finishing".to_owned() };
    let now = Timestamp::now();
    let record = RunRecord {
        key,
        fence: 1,
        at: now,
        until: Some(now.saturating_add(SignedDuration::from_mins(5)).unwrap()),
        ended: None,
        next: None,
        state: Some(RunState::Done),
        failure: None,
        dead_lettered: false,
    };
    memory.record_run(record).await.unwrap();
    let mut deciding = std::pin::pin!(handle(&handler, &memory, &copy));
    let finishing = async {
        // While it waits for the lease, the worker of the order gets the claim.
        drop(handler.claims.claim(MessageKind::Order, "/finishing").await);
        memory.record(finish("finishing")).await.unwrap();
    };
    tokio::select! {
        biased;
        output = &mut deciding => panic!("it decides while another process may be finishing the order: {output:?}"),
        () = finishing => {}
    }
    let outcome = deciding.await.outcome;
    assert!(matches!(outcome, HandlerOutcome::DeadLettered { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_cancellation_that_is_dead_lettered_before_it_could_undo_anything_says_what_is_left_to_undo() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    for id in ["cancelled", "unreached"] {
        charge(&memory, id).await;
    }
    memory.record(accept(order("without steps"))).await.unwrap();
    for id in ["cancelled", "without steps"] {
        let id = OrderId::new(id).unwrap();
        memory.cancel_order(NewCancellation { id, consumer: "order".into(), at: at(5_000) }).await.unwrap();
    }
    let cancellation = |id: &str| failed_copy(&format!(r#"{{"id":"{id}","event":"cancelled"}}"#), "delivery_limit");
    // Also when it is delivered again.
    for _ in 0..2 {
        let output = handle(&handler, &memory, &cancellation("cancelled")).await;
        assert_eq!(header(&output, "x-dead-letter-reason"), "undo_failed");
        assert_eq!(header(&output, "x-failure-code"), "undo_failed");
        let reason = header(&output, "x-failure-reason");
        assert!(reason.starts_with("left to be undone: charge; delivery_limit: "), "{reason}");
    }
    // The format of the consumer that it was passed on to reads another id.
    let mut passed_on = cancellation("web-cancelled");
    passed_on.message.headers.insert(names::CANCELS.to_owned(), "cancelled".into());
    let output = handle(&handler, &memory, &passed_on).await;
    assert!(header(&output, "x-failure-reason").starts_with("left to be undone: charge; "));
    // It has not reached the ledger, so nothing is to be undone.
    for id in ["unreached", "without steps", "never seen"] {
        let output = handle(&handler, &memory, &cancellation(id)).await;
        assert_eq!(header(&output, "x-dead-letter-reason"), "delivery_limit", "{id}");
    }
    let totals = memory.totals().await.unwrap().dead_letters;
    assert_eq!(totals, [("undo_failed".to_owned(), 1), ("delivery_limit".to_owned(), 3)].into());
}

#[tokio::test]
async fn a_message_that_was_refused_before_it_called_steps_undoes_nothing_of_an_order_with_the_same_body() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    let own = failed_copy(&body("o", "7"), "permanent");
    charge_for(&memory, "o", message_hash(&own.message)).await;
    let changes: [fn(&mut Message); 7] = [
        |message| message.properties.message_type = Some("order.updated".to_owned()),
        |message| message.properties.content_type = Some("application/cloudevents-batch+json".to_owned()),
        |message| message.properties.content_encoding = Some("utf-16".to_owned()),
        |message| drop(message.headers.insert("ce-specversion".to_owned(), "0.3".into())),
        |message| drop(message.headers.insert("cloudEvents_type".to_owned(), "order.updated".into())),
        |message| drop(message.headers.insert(names::ORIGIN_QUEUE.to_owned(), "priority_order_queue".into())),
        |message| message.body = body("o", "8").into(),
    ];
    for (nth, change) in changes.into_iter().enumerate() {
        for code in ["malformed", "permanent", ID_CONFLICT] {
            let mut other = failed_copy(&body("o", "7"), code);
            change(&mut other.message);
            let outcome = handle(&handler, &memory, &other).await.outcome;
            assert!(matches!(outcome, HandlerOutcome::DeadLettered { .. }), "{nth} {code}: {outcome:?}");
        }
    }
    let own = handle(&handler, &memory, &own).await;
    assert_eq!(own.outcome, HandlerOutcome::Returned);
    assert_eq!(own.emit[0].message.headers["x-undo"], HeaderValue::Bool(true));
}

#[tokio::test]
async fn a_copy_of_an_order_whose_steps_another_consumer_calls_is_dead_lettered_and_the_order_has_not_failed() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    charge(&memory, "o").await;
    for (code, is_reported, status) in [(STEPS_IN_PROGRESS, false, "accepted"), ("transient", true, "failed")] {
        let output = handle(&handler, &memory, &failed_copy(&body("o", "7"), code)).await;
        assert!(matches!(output.outcome, HandlerOutcome::DeadLettered { .. }), "{code}: {output:?}");
        let found = memory.trace("o").await.unwrap().order.unwrap().status;
        assert_eq!((output.report.is_some(), &*found), (is_reported, status));
    }
}

/// Whatever the configuration reads from the message now.
#[tokio::test]
async fn the_run_that_a_copy_states_is_undone_or_named_in_the_dead_letter() {
    let (handler, memory) = (handler(), MemoryLedger::default());
    let stating = |id: &str, mut message: Delivery| {
        let run = format!("1/{}//{id}", "07".repeat(32));
        message.message.headers.insert(names::RUN.to_owned(), HeaderValue::Text(run));
        message
    };
    for id in ["renamed", "unreadable", "too large", "no copy"] {
        charge(&memory, id).await;
    }
    for (id, body) in [("renamed", body("new-id", "7")), ("unreadable", "{}".to_owned())] {
        let output = handle(&handler, &memory, &stating(id, failed_copy(&body, "malformed"))).await;
        assert_eq!(output.outcome, HandlerOutcome::Returned, "{id}");
        assert!(output.emit[0].message.headers.contains_key(names::RUN));
    }
    let mut too_large = stating("too large", failed_copy("{", "transient"));
    too_large.message.missing_bytes = 60 << 20;
    let output = handle(&handler, &memory, &too_large).await;
    let reason = DeadLetterReason::UndoFailed;
    let by_broker = |identity: &str| {
        let letter = DeadLetterFacts { code: "undo_failed".to_owned(), identity: identity.to_owned() };
        DeadLetteredByBroker { consumer: Some("order".into()), reason, letter: letter.into() }
    };
    assert_eq!(output.outcome, by_broker("too large"));
    let trace = memory.trace("too large").await.unwrap();
    let left = serde_json::to_string(&trace.steps).unwrap();
    assert!(left.contains("left to be undone: charge; body_too_large"), "{left}");
    assert_eq!(trace.order.unwrap().status, "failed");

    let no_copy = stating("no copy", failed_copy(&body("no copy", "7"), "transient"));
    let services = TestServices::new(&memory);
    let input = HandlerInput {
        delivery: &no_copy,
        provenance: &Provenance { sender: Sender::Own, is_copy: true, generated: None, cloud_event: None },
        consumer: &FAILED,
        bindings: &[],
        retries: 0,
        ledger: LedgerAccess::without_deadline(&memory),
        steps: StepAccess(Some(&services)),
    };
    let output = handler.dead_letter_without_copy(input, "406 too large").await.unwrap().unwrap();
    assert_eq!(recorded(&output), ("undo_failed", "permanent"));
    assert_eq!((output.outcome, output.emit.len()), (by_broker("no copy"), 0));
}
