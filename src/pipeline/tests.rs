//! Pools against ports made for the test. What is claimed about the broker is tested against a real one
//! elsewhere; here only what pools do.

mod ends;
mod subscriptions;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{ConsumerContext, OnFailure, Pool};
use crate::handlers::{Handler, HandlerInput, HandlerOutcome, HandlerOutput};
use crate::ledger::{Ledger, LedgerEntry, LedgerError, Recorded};
use crate::message::{
    Consumer, Delivery, DeliveryId, ExchangeNames, HeaderValue, Headers, Message, Publication, PublishError, Publisher,
    SettleError, Settlement, Settler, SubscribeError, Subscription, names,
};
use crate::metrics::{Counters, PoolState, conservation};
use crate::recovery::{DeadLetterReason, Failure, FailureKind};
use crate::shutdown::Shutdown;

type Settled = Arc<Mutex<Vec<(u64, Settlement)>>>;
type Feed = mpsc::UnboundedSender<Delivery>;
type Open = Arc<Mutex<Option<()>>>;

/// A broker of one queue: each subscription is fed by the test.
#[derive(Default)]
struct Broker {
    /// Attempts to subscribe that are still to fail.
    refusals: AtomicUsize,
    prefetches: Mutex<Vec<u16>>,
    feeds: Mutex<Vec<Feed>>,
    /// Of each subscription, whether its stream goes on.
    open: Mutex<Vec<Open>>,
    /// Of each subscription, its epoch's end.
    ends: Mutex<Vec<CancellationToken>>,
    subscribed: Notify,
    /// What an attempt to subscribe waits for after the first deliveries were handed out, if anything.
    door: Mutex<Option<Arc<Notify>>>,
    settled: Settled,
    changed: Arc<Notify>,
}

struct Channel {
    settled: Settled,
    changed: Arc<Notify>,
    open: Open,
    ended: CancellationToken,
}

impl Settler for Channel {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        self.settled.lock().unwrap().push((delivery.tag, settlement));
        self.changed.notify_one();
    }
    fn ended(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.ended.clone().cancelled_owned())
    }
    fn cancel(&self) -> BoxFuture<'static, ()> {
        self.open.lock().unwrap().take();
        Box::pin(async {})
    }
    fn wind_down(&self) -> BoxFuture<'static, ()> {
        self.cancel()
    }
    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Consumer for Broker {
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
        let settler = Channel { settled, changed, open: Arc::clone(&open), ended };
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
        let door = self.door.lock().unwrap().take();
        Box::pin(async move {
            if let Some(door) = door {
                door.notified().await;
            }
            Ok(Subscription { deliveries: stream.boxed(), settler: Arc::new(settler) })
        })
    }
}

impl Broker {
    fn deliver(&self, tag: u64, body: &'static str) {
        self.deliver_again(tag, body, 0);
    }

    fn deliver_again(&self, tag: u64, body: &'static str, count: i64) {
        let headers = Headers::from([(names::DELIVERY_COUNT.to_owned(), HeaderValue::I64(count))]);
        let delivery = Delivery {
            id: DeliveryId { epoch: 1, tag },
            exchange: "orders".to_owned(),
            routing_key: "order.normal.created".to_owned(),
            redelivered: count > 0,
            message: Message { headers, body: body.into(), ..Message::default() },
        };
        self.feeds.lock().unwrap().last().unwrap().send(delivery).unwrap();
    }

    /// The connection dies: the stream ends though nobody cancelled.
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

/// Takes publications, once the gate lets them through; refuses the first `refusals`.
struct Outbox {
    sent: Mutex<Vec<Publication>>,
    gate: Semaphore,
    refusals: AtomicUsize,
    /// Whether nothing fits AMQP.
    unfit: AtomicBool,
}

struct OutboxPort(Arc<Outbox>);

impl Publisher for OutboxPort {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), PublishError>> {
        let outbox = Arc::clone(&self.0);
        Box::pin(async move {
            outbox.gate.acquire().await.unwrap().forget();
            if outbox.unfit.load(Ordering::SeqCst) {
                return Err(PublishError::Invalid { exchange: "orders".into(), problem: "too long".to_owned() });
            }
            let more = |left: usize| left.checked_sub(1);
            if outbox.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok() {
                return Err(PublishError::Refused { exchange: "orders".into(), routing_key: String::new() });
            }
            outbox.sent.lock().unwrap().extend(publications.iter().cloned());
            Ok(())
        })
    }
}

/// Fails as often as told.
#[derive(Default)]
struct Book {
    failures: AtomicUsize,
    recorded: AtomicUsize,
}

impl Ledger for Book {
    fn record(&self, _entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        let fail = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if !fail {
            self.recorded.fetch_add(1, Ordering::SeqCst);
        }
        Box::pin(async move { if fail { Err(LedgerError::Closed) } else { Ok(Recorded::New) } })
    }
}

/// Does what the body says.
#[derive(Default)]
struct Puppet {
    calls: AtomicUsize,
}

fn delay() -> crate::recovery::Delay {
    "10s".parse().unwrap()
}

/// A handler's future that panics where nobody catches it.
struct PanicsWhenDropped;

impl Future for PanicsWhenDropped {
    type Output = Result<HandlerOutput, Failure>;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Ready(Ok(HandlerOutput::just(HandlerOutcome::Completed)))
    }
}

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("kills its worker");
    }
}

impl Handler for Puppet {
    fn handle<'a>(&'a self, work: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let body = std::str::from_utf8(&work.delivery.message.body).unwrap();
        if body == "kill" {
            return Box::pin(PanicsWhenDropped);
        }
        Box::pin(async move {
            let failure = |kind| Err(Failure::new(kind, "told", "told to"));
            match body {
                "ok" => Ok(HandlerOutput::just(HandlerOutcome::Completed)),
                "seen" => Ok(HandlerOutput::just(HandlerOutcome::Duplicate)),
                "retry" => {
                    Ok(HandlerOutput::just(HandlerOutcome::Retried { consumer: Some("order".into()), delay: delay() }))
                }
                "dead_letter" => Ok(HandlerOutput::just(HandlerOutcome::DeadLettered {
                    consumer: None,
                    reason: DeadLetterReason::NoOrigin,
                })),
                "emit" => Ok(HandlerOutput {
                    verdict: HandlerOutcome::Completed,
                    emit: Arc::new([Publication {
                        exchange: "orders".into(),
                        routing_key: "order.analytics.x".to_owned(),
                        message: Message::default(),
                    }]),
                    record: Some(LedgerEntry::LookUpNotification { id: "x".to_owned() }),
                }),
                "transient" => failure(FailureKind::Transient),
                "permanent" => failure(FailureKind::Permanent),
                "panic" => panic!("told to"),
                "hang" => std::future::pending().await,
                other => unreachable!("{other}"),
            }
        })
    }
}

/// Holds the counters against what the broker was told, at the end of every test.
struct Audit {
    counters: Arc<Counters>,
    settled: Settled,
    most: u64,
}

impl Drop for Audit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let counts = self.counters.counts();
        let pool = PoolState { taking: 1, slots: self.most, ..PoolState::default() };
        assert_eq!(conservation::check(&counts, &pool), Ok(()), "{counts:?}");
        let told = self.settled.lock().unwrap();
        let told = |settlement| told.iter().filter(|(_, told)| *told == settlement).count() as u64;
        assert_eq!(
            (counts.settled(), counts.released, counts.rejected),
            (told(ACK), told(RELEASE), told(Settlement::Reject)),
            "{counts:?}"
        );
    }
}

struct Stage {
    _audit: Audit,
    broker: Arc<Broker>,
    outbox: Arc<Outbox>,
    book: Arc<Book>,
    puppet: Arc<Puppet>,
    counters: Arc<Counters>,
    shutdown: Shutdown,
    retired: CancellationToken,
    pool: tokio::task::JoinHandle<Result<(), super::PoolError>>,
}

impl Stage {
    async fn set(workers: usize, prefetch: u16) -> Stage {
        Self::set_with(workers, prefetch, OnFailure::Forward { immediate: 2 }).await
    }

    async fn set_with(workers: usize, prefetch: u16, on_failure: OnFailure) -> Stage {
        let broker = Arc::new(Broker::default());
        let outbox = Arc::new(Outbox {
            sent: Mutex::default(),
            gate: Semaphore::new(1_000),
            refusals: AtomicUsize::new(0),
            unfit: AtomicBool::new(false),
        });
        let (book, puppet) = (Arc::new(Book::default()), Arc::new(Puppet::default()));
        let counters = Arc::new(Counters::default());
        let (shutdown, retired) = (Shutdown::new(), CancellationToken::new());
        let line = ConsumerContext {
            consumer: "order".into(),
            queue: "order_queue".into(),
            handler: Arc::clone(&puppet) as Arc<dyn Handler>,
            publisher: Arc::new(OutboxPort(Arc::clone(&outbox))),
            ledger: Arc::clone(&book) as Arc<dyn Ledger>,
            names: Arc::new(ExchangeNames::new("orders")),
            timeout: Duration::from_secs(30),
            on_failure,
            counters: Arc::clone(&counters),
        };
        let pool = Arc::new(Pool {
            line: Arc::new(line),
            consumer: Arc::clone(&broker) as Arc<dyn Consumer>,
            workers,
            prefetch,
            reconnect_max: Duration::from_secs(30),
            shutdown: shutdown.clone(),
            retired: retired.clone(),
            intake_ended: CancellationToken::new(),
        });
        let pool = tokio::spawn(pool.run());
        broker.subscribed.notified().await;
        let most = workers as u64 * u64::from(prefetch);
        let audit = Audit { counters: Arc::clone(&counters), settled: Arc::clone(&broker.settled), most };
        Stage { _audit: audit, broker, outbox, book, puppet, counters, shutdown, retired, pool }
    }

    async fn stop(self) -> Vec<(u64, Settlement)> {
        self.shutdown.begin();
        self.pool.await.unwrap().unwrap();
        self.broker.settled(0).await
    }

    fn failure_kinds(&self) -> VecDeque<String> {
        let sent = self.outbox.sent.lock().unwrap();
        let kind = |copy: &Publication| copy.message.headers[names::FAILURE_KIND].as_text().unwrap().to_owned();
        sent.iter().map(kind).collect()
    }
}

const ACK: Settlement = Settlement::Ack;
const RELEASE: Settlement = Settlement::Release;

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_delivery() {
    let stage = Stage::set(1, 10).await;
    for (tag, body) in [(1, "ok"), (2, "panic"), (3, "ok")] {
        stage.broker.deliver(tag, body);
    }
    assert_eq!(stage.broker.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
    assert_eq!(stage.failure_kinds(), ["panicked"]);
    assert_eq!(stage.counters.counts().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_past_its_deadline_is_timed_out_and_holds_up_nobody() {
    let stage = Stage::set(1, 2).await;
    stage.broker.deliver(1, "hang");
    stage.broker.deliver(2, "ok");
    assert_eq!(stage.broker.settled(1).await, [(2, ACK)]);
    assert_eq!(stage.broker.settled(2).await, [(1, ACK), (2, ACK)]);
    assert_eq!(stage.failure_kinds(), ["timed_out"]);
}

#[tokio::test(start_paused = true)]
async fn only_transient_failures_are_retried_at_once() {
    let stage = Stage::set(1, 1).await;
    stage.broker.deliver(1, "transient");
    stage.broker.settled(1).await;
    assert_eq!(stage.puppet.calls.load(Ordering::SeqCst), 3, "one try and two immediate retries");
    stage.broker.deliver(2, "permanent");
    stage.broker.settled(2).await;
    assert_eq!(stage.puppet.calls.load(Ordering::SeqCst), 4);
    assert_eq!(stage.failure_kinds(), ["transient", "permanent"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acked_before_what_replaces_it_is_confirmed() {
    let stage = Stage::set(1, 10).await;
    stage.outbox.gate.forget_permits(1_000);
    stage.broker.deliver(1, "emit");
    stage.broker.deliver(2, "permanent");
    stage.broker.deliver(3, "ok");
    assert_eq!(stage.broker.settled(1).await, [(3, ACK)]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.broker.settled(1).await, [(3, ACK)]);
    assert_eq!(stage.book.recorded.load(Ordering::SeqCst), 0, "nor recorded");
    stage.outbox.gate.add_permits(2);
    assert_eq!(stage.broker.settled(3).await, [(1, ACK), (2, ACK), (3, ACK)]);
    assert_eq!(stage.book.recorded.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_refuses_is_published_again_until_it_takes_it() {
    let stage = Stage::set(1, 1).await;
    stage.outbox.refusals.store(5, Ordering::SeqCst);
    stage.broker.deliver(1, "emit");
    assert_eq!(stage.broker.settled(1).await, [(1, ACK)]);
    assert_eq!(stage.outbox.sent.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_cannot_record_is_a_transient_failure() {
    let stage = Stage::set(1, 1).await;
    stage.book.failures.store(100, Ordering::SeqCst);
    stage.broker.deliver(1, "emit");
    assert_eq!(stage.broker.settled(1).await, [(1, ACK)]);
    let last = stage.outbox.sent.lock().unwrap().pop().unwrap();
    assert_eq!(last.message.headers[names::FAILURE_CODE].as_text(), Some("ledger_unavailable"));
}

#[tokio::test(start_paused = true)]
async fn the_failed_order_consumer_holds_on_until_the_ledger_records() {
    let stage = Stage::set_with(1, 1, OnFailure::Hold).await;
    stage.book.failures.store(7, Ordering::SeqCst);
    stage.broker.deliver(1, "emit");
    assert_eq!(stage.broker.settled(1).await, [(1, ACK)]);
    assert_eq!(stage.outbox.sent.lock().unwrap().len(), 1, "published once, though recorded late");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_is_restarted_and_what_it_held_is_released() {
    let stage = Stage::set(1, 10).await;
    stage.broker.deliver(1, "hang");
    stage.broker.deliver(2, "kill");
    let settled = stage.broker.settled(2).await;
    assert_eq!(settled, [(1, RELEASE), (2, RELEASE)]);
    stage.broker.deliver(3, "ok");
    assert_eq!(stage.broker.settled(3).await[2], (3, ACK));
    assert_eq!(stage.counters.counts().restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_in_the_turn_in_which_its_worker_dies_stays_done() {
    let stage = Stage::set(1, 10).await;
    for (tag, body) in [(1, "ok"), (2, "permanent"), (3, "kill"), (4, "ok")] {
        stage.broker.deliver(tag, body);
    }
    assert_eq!(stage.broker.settled(4).await, [(1, ACK), (2, ACK), (3, RELEASE), (4, RELEASE)]);
    assert_eq!(stage.failure_kinds(), ["permanent"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_keeps_dying_ends_its_pool() {
    let stage = Stage::set(1, 1).await;
    for tag in 1..=11 {
        stage.broker.deliver(tag, "kill");
    }
    let error = stage.pool.await.unwrap().unwrap_err();
    assert!(matches!(error, super::PoolError::Worker { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_published_is_left_to_the_broker() {
    for on_failure in [OnFailure::Hold, OnFailure::Forward { immediate: 0 }] {
        let stage = Stage::set_with(1, 1, on_failure).await;
        stage.outbox.unfit.store(true, Ordering::SeqCst);
        stage.broker.deliver(1, "emit");
        assert_eq!(stage.broker.settled(1).await, [(1, Settlement::Reject)]);
    }
}

#[tokio::test(start_paused = true)]
async fn every_ending_is_counted_where_it_belongs() {
    let stage = Stage::set(1, 10).await;
    for (tag, body) in [(1, "ok"), (2, "seen"), (3, "retry"), (4, "dead_letter"), (5, "permanent"), (6, "transient")] {
        stage.broker.deliver(tag, body);
    }
    stage.broker.settled(6).await;
    stage.broker.deliver(7, "hang");
    tokio::time::sleep(Duration::from_secs(7)).await;
    let reading = stage.counters.read();
    let counts = reading.counts;
    assert_eq!((counts.deliveries, counts.in_flight, counts.accounted()), (7, 1, 7));
    assert_eq!((counts.completed, counts.duplicates, counts.retried, counts.dead_lettered), (1, 1, 1, 1));
    assert_eq!((counts.forwarded, counts.failed_attempts), (2, 4), "one permanent, one tried three times");
    assert_eq!(reading.oldest, Some(Duration::from_secs(7)));
    assert_eq!(reading.failures[&(FailureKind::Transient, "told".to_owned())], 3);
    assert_eq!(reading.retries[&("order".into(), delay())], 1);
    assert_eq!(reading.dead_letters[&("unknown".into(), DeadLetterReason::NoOrigin)], 1);
    assert_eq!(reading.handling.count(), 6);
    assert_eq!(reading.done_after.count(), 0, "no message had a timestamp");
}
