//! Pools against fakes of a queue, the publisher and the ledger. What a real broker does is tested in `tests/broker`.

mod ending;
mod failures;
mod fakes;
mod flow_control;
mod outages;
mod publishing;
mod scripted_handler;
mod subscriptions;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::fakes::{FakePublisher, FakeQueue, Settled, SharedPublisher};
use self::scripted_handler::{ScriptedHandler, delay};
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
