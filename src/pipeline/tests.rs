//! Pools against fakes of a queue, the publisher and the ledger. What a real broker does is tested in `tests/broker`.

mod ending;
mod failures;
mod flow_control;
mod outages;
mod publishing;
mod subscriptions;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ConsumerContext, DecompressedBytes, DeferredLog, Handler, HandlerError, HandlerInput, HandlerOutput, Intake,
    IntakeGate, OnFailure, Pool, PublishOutage, RateLimiter,
};
use crate::domain::OrderId;
use crate::gate::Gate;
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{LedgerEntry, LedgerMaintenance, LedgerWriter, OutageCause};
use crate::message::{
    Consumer, Delivery, DeliveryId, ExchangeNames, HeaderValue, Headers, LossCause, Message, Publication, PublishError,
    Publisher, SettleError, Settlement, Settler, SubscribeError, Subscription, Unpublished, names,
};
use crate::metrics::{Counters, HandlerOutcome, PoolState, conservation};
use crate::recovery::{DeadLetterReason, Failure, FailureKind, RetryPolicy};
use crate::shutdown::Shutdown;

type Settled = Arc<Mutex<Vec<(u64, Settlement)>>>;
type Feed = mpsc::UnboundedSender<Delivery>;
type Open = Arc<Mutex<Option<()>>>;

/// The queue that the pool consumes. The test feeds the latest subscription.
#[derive(Default)]
struct FakeQueue {
    /// How many of the next attempts to subscribe fail.
    refusals: AtomicUsize,
    prefetches: Mutex<Vec<u16>>,
    feeds: Mutex<Vec<Feed>>,
    /// For each subscription: `Some` while its stream continues.
    open: Mutex<Vec<Open>>,
    /// For each subscription: cancelled when it is lost.
    ends: Mutex<Vec<CancellationToken>>,
    subscribed: Notify,
    /// If set, the next attempt to subscribe waits for it after the deliveries have started.
    subscribe_gate: Mutex<Option<Arc<Notify>>>,
    settled: Settled,
    changed: Arc<Notify>,
    /// Why subscriptions from now on will have been lost.
    loss_cause: Mutex<Option<LossCause>>,
    /// How long the broker has not answered on subscriptions from now on.
    unanswered: Mutex<Duration>,
}

struct FakeSettler {
    settled: Settled,
    changed: Arc<Notify>,
    open: Open,
    ended: CancellationToken,
    loss_cause: LossCause,
    unanswered: Duration,
}

impl Settler for FakeSettler {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        self.settled.lock().unwrap().push((delivery.tag, settlement));
        self.changed.notify_one();
    }
    fn ended(&self) -> BoxFuture<'static, LossCause> {
        let (ended, cause) = (self.ended.clone(), self.loss_cause.clone());
        Box::pin(async move {
            ended.cancelled().await;
            cause
        })
    }
    fn unanswered(&self) -> Duration {
        self.unanswered
    }
    fn was_ended_by_broker(&self) -> bool {
        false
    }
    fn cancel(&self) -> BoxFuture<'static, ()> {
        self.open.lock().unwrap().take();
        Box::pin(async {})
    }
    fn cancel_when_idle(&self) -> BoxFuture<'static, ()> {
        self.cancel()
    }
    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Consumer for FakeQueue {
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            let error = SubscribeError { queue: queue.to_owned(), source: "there is no such queue".into() };
            return Box::pin(async { Err(error) });
        }
        let (feed, deliveries) = mpsc::unbounded_channel();
        self.prefetches.lock().unwrap().push(prefetch);
        let open = Arc::new(Mutex::new(Some(())));
        self.open.lock().unwrap().push(Arc::clone(&open));
        self.feeds.lock().unwrap().push(feed);
        let ended = CancellationToken::new();
        self.ends.lock().unwrap().push(ended.clone());
        let (settled, changed) = (Arc::clone(&self.settled), Arc::clone(&self.changed));
        let settler = FakeSettler {
            settled,
            changed,
            open: Arc::clone(&open),
            ended,
            loss_cause: self.loss_cause.lock().unwrap().clone().unwrap_or(LossCause::Other("lost".to_owned())),
            unanswered: *self.unanswered.lock().unwrap(),
        };
        let stream = futures_util::stream::unfold((deliveries, open), |(mut deliveries, open)| async move {
            loop {
                if let Ok(delivery) = deliveries.try_recv() {
                    return Some((delivery, (deliveries, open)));
                }
                if open.lock().unwrap().is_none() {
                    return None;
                }
                tokio::select! {
                    delivery = deliveries.recv() => return delivery.map(|delivery| (delivery, (deliveries, open))),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
        });
        self.subscribed.notify_one();
        let subscribe_gate = self.subscribe_gate.lock().unwrap().take();
        Box::pin(async move {
            if let Some(subscribe_gate) = subscribe_gate {
                subscribe_gate.notified().await;
            }
            Ok(Subscription {
                deliveries: stream.boxed(),
                settler: Arc::new(settler),
                address: "127.0.0.1:5672".into(),
                silent: Arc::default(),
            })
        })
    }
}

impl FakeQueue {
    fn deliver(&self, tag: u64, body: &'static str) {
        self.deliver_again(tag, body, 0);
    }

    fn deliver_again(&self, tag: u64, body: &'static str, count: i64) {
        let headers = Headers::from([(names::DELIVERY_COUNT.to_owned(), HeaderValue::I64(count))]);
        let delivery = Delivery {
            id: DeliveryId { connection: 1, tag },
            exchange: "orders".to_owned(),
            routing_key: "order.normal.created".to_owned(),
            redelivered: count > 0,
            message: Message {
                headers,
                body: body.into(),
                unread: usize::from(body == "unread"),
                ..Message::default()
            },
        };
        self.feeds.lock().unwrap().last().unwrap().send(delivery).unwrap();
    }

    /// The connection dies: the stream ends without having been cancelled.
    fn lose(&self) {
        self.open.lock().unwrap().last().unwrap().lock().unwrap().take();
        self.ends.lock().unwrap().last().unwrap().cancel();
    }

    async fn settled(&self, count: usize) -> Vec<(u64, Settlement)> {
        loop {
            let mut settled = self.settled.lock().unwrap().clone();
            if settled.len() >= count {
                settled.sort_by_key(|(tag, _)| *tag);
                return settled;
            }
            self.changed.notified().await;
        }
    }
}

/// Confirms publications as far as the gate has permits; of the first `refusals` sets, refuses the first publication.
struct FakePublisher {
    sent: Mutex<Vec<Publication>>,
    gate: Semaphore,
    refusals: AtomicUsize,
    /// Whether it refuses with `basic.nack`.
    nacks: AtomicBool,
    /// Whether it refuses all publications of a set, those after the first because of a missing permission.
    refuses_all: AtomicBool,
    /// Counts what [`Publisher::acceptance`] waits for.
    acceptance: watch::Sender<u64>,
    /// Whether every publication is invalid.
    invalid: AtomicBool,
    /// The routing key of publications that are invalid.
    invalid_key: &'static str,
}

struct SharedPublisher(Arc<FakePublisher>);

impl Publisher for SharedPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        let publisher = Arc::clone(&self.0);
        Box::pin(async move {
            publisher.gate.acquire().await.unwrap().forget();
            let has_invalid_key = publications.iter().any(|sent| sent.routing_key == publisher.invalid_key);
            if publisher.invalid.load(Ordering::SeqCst) || has_invalid_key {
                let problem = "too long".to_owned();
                return Err(Unpublished::one(0, PublishError::Invalid { exchange: "orders".into(), problem }));
            }
            let one_less = |left: usize| left.checked_sub(1);
            if publisher.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                let (exchange, routing_key) = ("orders".into(), String::new());
                let refused = || PublishError::Refused {
                    exchange: "orders".into(),
                    routing_key: String::new(),
                    reply: String::new(),
                };
                let error = match publisher.nacks.load(Ordering::SeqCst) {
                    true => PublishError::Nacked { exchange, routing_key },
                    false => refused(),
                };
                let mut failures = vec![(0, error)];
                if publisher.refuses_all.load(Ordering::SeqCst) {
                    failures.extend((1..publications.len()).map(|index| (index, refused())));
                } else {
                    publisher.sent.lock().unwrap().extend(publications[1..].iter().cloned());
                }
                return Err(Unpublished { failures });
            }
            publisher.sent.lock().unwrap().extend(publications.iter().cloned());
            Ok(())
        })
    }

    fn acceptance(&self) -> BoxFuture<'static, ()> {
        let mut acceptance = self.0.acceptance.subscribe();
        Box::pin(async move { acceptance.changed().await.unwrap() })
    }
}

/// Does what the body of the delivery names.
#[derive(Default)]
struct ScriptedHandler {
    calls: AtomicUsize,
    /// Deferred log lines that were written.
    logged: Arc<AtomicUsize>,
    /// A service that it calls.
    service: Option<Gate>,
}

fn delay() -> crate::recovery::Delay {
    "10s".parse().unwrap()
}

/// A future of a handler that panics when it is dropped, outside of what a worker catches.
struct PanicsWhenDropped;

impl Future for PanicsWhenDropped {
    type Output = Result<HandlerOutput, HandlerError>;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Ready(Ok(HandlerOutput::finished(HandlerOutcome::Completed)))
    }
}

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("kills its worker");
    }
}

impl ScriptedHandler {
    fn log(&self) -> DeferredLog {
        let logged = Arc::clone(&self.logged);
        DeferredLog::new(move || {
            logged.fetch_add(1, Ordering::SeqCst);
        })
    }
}

impl Handler for ScriptedHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let body = std::str::from_utf8(&input.delivery.message.body).unwrap();
        if body == "kill" {
            return Box::pin(PanicsWhenDropped);
        }
        Box::pin(async move {
            let failure = |kind| Err(Failure::new(kind, "scripted", "as scripted").into());
            match body {
                "ok" => Ok(HandlerOutput::finished(HandlerOutcome::Completed)),
                "seen" => Ok(HandlerOutput::finished(HandlerOutcome::Duplicate)),
                "retry" => Ok(HandlerOutput::finished(HandlerOutcome::Retried {
                    consumer: Some("order".into()),
                    delay: delay(),
                })),
                "dead_letter" => Ok(HandlerOutput::finished(HandlerOutcome::DeadLettered {
                    consumer: None,
                    reason: DeadLetterReason::NoOrigin,
                })),
                "emit" | "emit_both" | "without_copy" | "report" | "invalid_report" => Ok(HandlerOutput {
                    outcome: HandlerOutcome::Completed,
                    report: body.contains("report").then(|| {
                        Box::new(Publication {
                            exchange: "orders".into(),
                            routing_key: body.replace("invalid_report", "report.invalid"),
                            message: Message::default(),
                        })
                    }),
                    emit: ["order.analytics.x", "order.notification.x"][..if body == "emit_both" { 2 } else { 1 }]
                        .iter()
                        .map(|key| Publication {
                            exchange: "orders".into(),
                            routing_key: (*key).to_owned(),
                            message: Message::default(),
                        })
                        .collect(),
                    record: Some(LedgerEntry::LookUpNotification { id: "x".to_owned() }),
                    log: Some(self.log()),
                }),
                "transient" => failure(FailureKind::Transient),
                "permanent" => failure(FailureKind::Permanent),
                "panic" => panic!("as scripted"),
                "look_up" => {
                    input.ledger.record(LedgerEntry::LookUpNotification { id: "x".to_owned() }).await?;
                    Ok(HandlerOutput::finished(HandlerOutcome::Completed))
                }
                "hang" => std::future::pending().await,
                "call" => {
                    let service = self.service.as_ref().unwrap();
                    let _suspended = input.ledger.suspend_deadline();
                    service.opened().await;
                    Ok(HandlerOutput::finished(HandlerOutcome::Completed))
                }
                other => unreachable!("{other}"),
            }
        })
    }

    fn gates(&self) -> Vec<IntakeGate> {
        self.service.clone().map(IntakeGate::Service).into_iter().collect()
    }

    fn dead_letter_without_copy(&self, input: HandlerInput<'_>, _problem: &str) -> Option<HandlerOutput> {
        let outcome = HandlerOutcome::DeadLetteredByBroker { consumer: None, reason: DeadLetterReason::Permanent };
        // The ledger refuses it.
        let refused =
            LedgerEntry::FinishOrder { id: OrderId::new("never-accepted").unwrap(), at: jiff::Timestamp::UNIX_EPOCH };
        (&*input.delivery.message.body == b"without_copy").then(|| HandlerOutput {
            outcome,
            report: None,
            emit: Arc::default(),
            record: Some(refused),
            log: Some(self.log()),
        })
    }
}

/// Compares the counters with the settlements that the queue received, at the end of every test.
struct CountersCheck {
    counters: Arc<Counters>,
    settled: Settled,
    max_slots: u64,
}

impl Drop for CountersCheck {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let counts = self.counters.counts();
        let pool = PoolState { active_subscriptions: 1, capacity: self.max_slots, ..PoolState::default() };
        assert_eq!(conservation::check(&counts, &pool), Ok(()), "{counts:?}");
        let settled = self.settled.lock().unwrap();
        let count = |expected| settled.iter().filter(|(_, settlement)| *settlement == expected).count() as u64;
        assert_eq!(
            (counts.acked(), counts.released, counts.rejected),
            (count(ACK), count(RELEASE), count(Settlement::Reject)),
            "{counts:?}"
        );
    }
}

struct TestEnv {
    _check: CountersCheck,
    queue: Arc<FakeQueue>,
    publisher: Arc<FakePublisher>,
    ledger: Arc<MemoryLedger>,
    handler: Arc<ScriptedHandler>,
    counters: Arc<Counters>,
    shutdown: Shutdown,
    drain: CancellationToken,
    pool: tokio::task::JoinHandle<Result<(), super::PoolError>>,
}

impl TestEnv {
    async fn start(workers: usize, prefetch: u16) -> TestEnv {
        Self::start_with(workers, prefetch, forward_after(2)).await
    }

    async fn start_with(workers: usize, prefetch: u16, on_failure: OnFailure) -> TestEnv {
        let (handler, rate_limiter) = (ScriptedHandler::default(), Arc::default());
        Self::start_limited(workers, prefetch, on_failure, handler, rate_limiter).await
    }

    async fn start_limited(
        workers: usize,
        prefetch: u16,
        on_failure: OnFailure,
        handler: ScriptedHandler,
        rate_limiter: Arc<RateLimiter>,
    ) -> TestEnv {
        let queue = Arc::new(FakeQueue::default());
        let publisher = Arc::new(FakePublisher {
            sent: Mutex::default(),
            gate: Semaphore::new(1_000),
            refusals: AtomicUsize::new(0),
            nacks: AtomicBool::new(false),
            refuses_all: AtomicBool::new(false),
            acceptance: watch::Sender::new(0),
            invalid: AtomicBool::new(false),
            invalid_key: "report.invalid",
        });
        let (ledger, handler) = (Arc::new(MemoryLedger::default()), Arc::new(handler));
        let counters = Arc::new(Counters::default());
        let (shutdown, drain) = (Shutdown::new(), CancellationToken::new());
        let context = ConsumerContext {
            consumer: "order".into(),
            queue: "order_queue".into(),
            handler: Arc::clone(&handler) as Arc<dyn Handler>,
            publisher: Arc::new(SharedPublisher(Arc::clone(&publisher))),
            ledger: Arc::clone(&ledger) as Arc<dyn LedgerWriter>,
            intake: Intake::new(ledger.state(), handler.gates(), rate_limiter),
            outage: PublishOutage::default(),
            names: Arc::new(ExchangeNames::new("orders")),
            bindings: Vec::new(),
            users: Arc::new(crate::message::TrustedUsers::known("orderd")),
            unidentified: Arc::default(),
            format: crate::formats::Format::Own,
            max_body: 1 << 20,
            decompressed: DecompressedBytes::new(1 << 20),
            timeout: Duration::from_secs(30),
            on_failure,
            counters: Arc::clone(&counters),
        };
        let pool = Arc::new(Pool {
            context: Arc::new(context),
            consumer: Arc::clone(&queue) as Arc<dyn Consumer>,
            workers,
            prefetch,
            reconnect_max: Duration::from_secs(30),
            shutdown: shutdown.clone(),
            drain: drain.clone(),
            intake_ended: CancellationToken::new(),
        });
        let pool = tokio::spawn(pool.run());
        queue.subscribed.notified().await;
        let max_slots = workers as u64 * u64::from(prefetch);
        let check = CountersCheck { counters: Arc::clone(&counters), settled: Arc::clone(&queue.settled), max_slots };
        TestEnv { _check: check, queue, publisher, ledger, handler, counters, shutdown, drain, pool }
    }

    async fn stop(self) -> Vec<(u64, Settlement)> {
        self.shutdown.begin();
        self.pool.await.unwrap().unwrap();
        self.queue.settled(0).await
    }

    fn failure_kinds(&self) -> VecDeque<String> {
        let sent = self.publisher.sent.lock().unwrap();
        let kind = |copy: &Publication| copy.message.headers[names::FAILURE_KIND].as_text().unwrap().to_owned();
        sent.iter().map(kind).collect()
    }
}

/// For a work queue: this many immediate retries, then forward.
fn forward_after(immediate: u32) -> OnFailure {
    OnFailure::Forward(RetryPolicy { immediate, delays: Vec::new(), max_age: Duration::MAX })
}

const ACK: Settlement = Settlement::Ack;
const RELEASE: Settlement = Settlement::Release;

#[tokio::test(start_paused = true)]
async fn every_outcome_is_counted_once() {
    let env = TestEnv::start(1, 10).await;
    for (tag, body) in [(1, "ok"), (2, "seen"), (3, "retry"), (4, "dead_letter"), (5, "permanent"), (6, "transient")] {
        env.queue.deliver(tag, body);
    }
    env.queue.settled(6).await;
    env.queue.deliver(7, "hang");
    tokio::time::sleep(Duration::from_secs(7)).await;
    let reading = env.counters.read();
    let counts = reading.counts;
    assert_eq!((counts.deliveries, counts.in_flight, counts.accounted_for()), (7, 1, 7));
    assert_eq!((counts.completed, counts.duplicates, counts.retried, counts.dead_lettered), (1, 1, 1, 1));
    assert_eq!((counts.forwarded, counts.failed_attempts), (2, 4), "one permanent, one tried three times");
    assert_eq!(reading.oldest_in_flight, Some(Duration::from_secs(7)));
    assert_eq!(reading.failures[&(FailureKind::Transient, "scripted".to_owned())], 3);
    assert_eq!(reading.retries[&("order".into(), delay())], 1);
    assert_eq!(reading.dead_letters[&("unknown".into(), DeadLetterReason::NoOrigin)], 1);
    assert_eq!(reading.handling.count(), 6);
    assert_eq!(reading.publish_to_ack.count(), 0, "no message had a timestamp");
}
