//! The cost of pools and handlers: CPU time per order of the thread that runs the workers, without a broker.
//!
//! `cargo bench --bench worker -- [orders] [memory|sqlite] [directory]`.
//! An order, its notification and its analytics event each pass through their pool, with the daemon's handlers and event
//! logs. A fake broker delivers and confirms messages on a thread of its own. The memory ledger, also on its own thread,
//! answers in batches like the real one, and stores nothing.

mod threads;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use orderd::config::{Config, HandlerSettings, Sources};
use orderd::files::{FILE_MODE, Rolling, Rotation};
use orderd::handlers::{self, EventLog, HandlerConsumer, HandlerDeps, LogChannel};
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{
    AlertAnswer, AlertBook, CancelAnswer, ClaimAnswer, LedgerEntry, LedgerError, LedgerMaintenance, LedgerState,
    LedgerWriter, NewCancellation, Recorded, RunClaim, RunRecord, RunRecorded,
};
use orderd::message::{
    Consumer, Delivery, DeliveryId, ExchangeNames, LossCause, Message, Properties, Publication, Publisher, SettleError,
    Settlement, Settler, SubscribeError, Subscription, Unpublished,
};
use orderd::metrics::Counters;
use orderd::pipeline::{ConsumerContext, DecompressedBytes, Intake, OnFailure, Pool, PublishOutage};
use orderd::recovery::RetryPolicy;
use orderd::shutdown::Shutdown;
use threads::threads;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// The same allocator as in the daemon.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long the fake broker and the memory ledger collect requests before they answer them.
const GATHER: Duration = Duration::from_millis(2);
/// Largest number of requests answered at once.
const BATCH: usize = 4096;
/// Consumer, queue, prefix of its routing keys, workers and prefetch, as in the default configuration.
const CONSUMERS: [(&str, &str, &str, usize, u16); 3] = [
    ("order", "order_queue", "order.normal.", 4, 250),
    ("notification", "notification_queue", "order.notification.", 2, 500),
    ("analytics", "analytics_queue", "order.analytics.", 2, 500),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let orders = arguments.first().map_or(100_000, |text| text.parse().expect("a number"));
    let sqlite = match arguments.get(1).map(String::as_str) {
        None | Some("memory") => false,
        Some("sqlite") => true,
        Some(other) => panic!("memory or sqlite, not {other:?}"),
    };
    let scratch = tempfile::tempdir_in(
        arguments.get(2).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from),
    );
    let scratch = scratch.expect("the directory is writable");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let directory = scratch.path().to_owned();
    runtime.expect("a runtime starts").block_on(async move {
        // Spawned, so that it runs on the worker thread, which is measured.
        tokio::spawn(async move { measure(orders, sqlite, &directory).await }).await.expect("no pool fails");
    });
}

async fn measure(orders: u64, sqlite: bool, directory: &Path) {
    let broker = Broker::start(orders);
    let sqlite_ledger = sqlite.then(|| Arc::new(SqliteLedger::open(directory).expect("the ledger opens")));
    let ledger: Arc<dyn LedgerWriter> = match &sqlite_ledger {
        Some(ledger) => Arc::clone(ledger) as Arc<dyn LedgerWriter>,
        None => Arc::new(MemoryLedger::start()),
    };
    let shutdown = Shutdown::new();
    let ledger_state = match &sqlite_ledger {
        Some(ledger) => ledger.state(),
        None => watch::channel(LedgerState::Recording).1,
    };
    let intake = Intake::new(ledger_state, Vec::new(), Arc::default());
    let deps = handler_deps(directory).await;
    let file = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml").into());
    let config =
        Config::load(&Sources { file, ..handlers::sources() }).expect("the default configuration is valid").config;
    let (started, cpu) = (Instant::now(), CpuTime::now());
    let pools: Vec<_> = CONSUMERS
        .map(|(name, queue, _, workers, prefetch)| Pool {
            context: Arc::new(context(name, queue, &config, &deps, &ledger, &intake, &broker)),
            consumer: Arc::new(broker.clone()),
            workers,
            prefetch,
            reconnect_max: Duration::from_secs(1),
            shutdown: shutdown.clone(),
            drain: CancellationToken::new(),
            intake_ended: CancellationToken::new(),
        })
        .map(|pool| tokio::spawn(Arc::new(pool).run()))
        .into();
    broker.all_settled.notified().await;
    let (elapsed, cpu) = (started.elapsed(), CpuTime::now().since(cpu));
    shutdown.begin();
    for pool in pools {
        pool.await.expect("no pool panics").expect("no worker dies");
    }
    if let Some(ledger) = sqlite_ledger {
        ledger.close().await;
    }
    let per_order = |time: Duration| time.as_secs_f64() * 1e6 / orders as f64;
    println!(
        "orders {orders} ledger {}: {:.2} µs CPU per order in workers, {:.2} in event logs, {:.2} in the ledger, \
         {:.0} orders/s",
        if sqlite { "sqlite" } else { "memory" },
        per_order(cpu.workers),
        per_order(cpu.event_logs),
        per_order(cpu.ledger),
        orders as f64 / elapsed.as_secs_f64(),
    );
}

/// The dependencies of the handlers, as in the daemon.
async fn handler_deps(directory: &Path) -> HandlerDeps {
    let open = |name| async move {
        let (directory, rotation) = (directory.to_owned(), Rotation::Daily);
        let files = Rolling { directory, name, suffix: "jsonl", rotation, keep: 2, mode: FILE_MODE };
        EventLog::start(files).await.expect("the directory is writable").0
    };
    HandlerDeps {
        format: orderd::formats::Format::Own,
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(orderd::message::TrustedUsers::new("orderd", &[])),
        max_body: 1 << 20,
        event_log: open("analytics").await,
        notification_log: Arc::new(LogChannel { log: open("notifications").await }),
        notify: HandlerSettings::none(),
        default_channel: "email".into(),
        claims: Arc::default(),
        deliveries: orderd::notify::Deliveries::default(),
        steps: orderd::steps::StepResources::default(),
        origin_consumers: watch::channel(BTreeMap::new()).1,
    }
}

fn context(
    name: &str,
    queue: &str,
    config: &Config,
    deps: &HandlerDeps,
    ledger: &Arc<dyn LedgerWriter>,
    intake: &Intake,
    broker: &Broker,
) -> ConsumerContext {
    ConsumerContext {
        format: orderd::formats::Format::Own,
        consumer: name.into(),
        queue: queue.into(),
        handler: handlers::build(
            HandlerConsumer { name, workers: config.consumers[name].workers },
            &config.consumers[name].handler_settings,
            deps,
        ),
        publisher: Arc::new(broker.clone()),
        ledger: Arc::clone(ledger),
        intake: intake.clone(),
        outage: PublishOutage::default(),
        names: Arc::clone(&deps.names),
        bindings: Vec::new(),
        users: Arc::new(orderd::message::TrustedUsers::new("orderd", &[])),
        unidentified: Arc::default(),
        max_body: 1 << 20,
        decompressed: DecompressedBytes::new(1 << 20),
        timeout: Duration::from_secs(30),
        on_failure: OnFailure::Forward(RetryPolicy { immediate: 1, delays: Vec::new(), max_age: Duration::MAX }),
        counters: Arc::new(Counters::default()),
    }
}

/// A valid order, as in the pipeline benchmark. All orders are similar in size.
fn order(number: u64) -> Delivery {
    let customer = number % 5000;
    let body = format!(
        "{{\"id\":\"ord-{number}\",\"customer_id\":\"cust-{customer}\",\"product\":\"Laptop\",\"quantity\":{},\
         \"price\":\"{}.99\",\"currency\":\"EUR\",\"priority\":false,\"email\":\"user{customer}@example.com\",\
         \"placed_at\":\"2026-11-22T08:00:00Z\"}}",
        1 + number % 5,
        100 + number % 900,
    );
    let id = Some(format!("ord-{number}"));
    let properties = Properties {
        content_type: Some("application/json".to_owned()),
        message_id: id.clone(),
        correlation_id: id,
        ..Properties::default()
    };
    delivery("orders", "order.normal.created", Message { properties, body: body.into(), ..Message::default() })
}

fn delivery(exchange: &str, routing_key: &str, message: Message) -> Delivery {
    let id = DeliveryId { connection: 1, tag: 0 };
    Delivery { id, exchange: exchange.to_owned(), routing_key: routing_key.to_owned(), redelivered: false, message }
}

type Unconfirmed = (Arc<[Publication]>, oneshot::Sender<Result<(), Unpublished>>);

/// A fake broker with queues in memory.
#[derive(Clone)]
struct Broker {
    queues: [Arc<Queue>; CONSUMERS.len()],
    unconfirmed: mpsc::UnboundedSender<Unconfirmed>,
    all_settled: Arc<Notify>,
}

impl Broker {
    /// Starts with `orders` orders in the queue. `all_settled` is notified once each order and its two events are settled.
    fn start(orders: u64) -> Self {
        let unsettled = Arc::new(AtomicU64::new(orders * CONSUMERS.len() as u64));
        let all_settled = Arc::new(Notify::new());
        let queues = CONSUMERS.map(|_| Arc::new(Queue::new(Arc::clone(&unsettled), Arc::clone(&all_settled))));
        queues[0].state().ready.extend((0..orders).map(order));
        let (unconfirmed, waiting) = mpsc::unbounded_channel();
        let routed = queues.clone();
        answer_in_batches("broker", waiting, move |batch| confirm(&routed, batch));
        Broker { queues, unconfirmed, all_settled }
    }
}

/// Answers requests in batches, on a thread of its own.
fn answer_in_batches<T: Send + 'static>(
    name: &str,
    mut waiting: mpsc::UnboundedReceiver<T>,
    mut answer: impl FnMut(std::vec::Drain<'_, T>) + Send + 'static,
) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    let run = move || {
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.blocking_recv_many(&mut batch, 1) > 0 {
            std::thread::sleep(GATHER);
            while batch.len() < BATCH
                && let Ok(more) = waiting.try_recv()
            {
                batch.push(more);
            }
            answer(batch.drain(..));
        }
    };
    thread.spawn(run).expect("a thread starts");
}

/// Routes publications to their queues, and confirms them.
fn confirm(queues: &[Arc<Queue>; CONSUMERS.len()], batch: std::vec::Drain<'_, Unconfirmed>) {
    let mut arrived: [Vec<Delivery>; CONSUMERS.len()] = Default::default();
    let mut replies = Vec::with_capacity(batch.len());
    for (publications, reply) in batch {
        for Publication { exchange, routing_key, message } in publications.iter() {
            let queue = CONSUMERS.iter().position(|(_, _, prefix, _, _)| routing_key.starts_with(prefix));
            let queue = queue.expect("every event has a queue");
            arrived[queue].push(delivery(exchange, routing_key, message.clone()));
        }
        replies.push(reply);
    }
    for (queue, arrived) in queues.iter().zip(arrived) {
        queue.arrive(arrived);
    }
    for reply in replies {
        reply.send(Ok(())).expect("no worker gives up");
    }
}

impl Publisher for Broker {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        let (reply, confirmed) = oneshot::channel();
        self.unconfirmed.send((publications, reply)).expect("the broker stays");
        Box::pin(async { confirmed.await.expect("the broker answers") })
    }
}

impl Consumer for Broker {
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        let number = CONSUMERS.iter().position(|(_, name, ..)| *name == queue).expect("the queue is known");
        let queue = Arc::clone(&self.queues[number]);
        queue.state().prefetch = usize::from(prefetch);
        let deliveries = Deliveries(Arc::clone(&queue)).boxed();
        Box::pin(async {
            Ok(Subscription {
                deliveries,
                settler: Arc::new(Channel(queue)),
                address: "127.0.0.1:5672".into(),
                silent: Arc::default(),
            })
        })
    }
}

struct Queue {
    state: Mutex<State>,
    /// Unsettled deliveries of all queues together.
    unsettled: Arc<AtomicU64>,
    all_settled: Arc<Notify>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Delivery>,
    prefetch: usize,
    unacked: usize,
    consumer: Option<Waker>,
    cancelled: bool,
}

impl Queue {
    fn new(unsettled: Arc<AtomicU64>, all_settled: Arc<Notify>) -> Self {
        Queue { state: Mutex::default(), unsettled, all_settled }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under the lock")
    }

    fn arrive(&self, deliveries: Vec<Delivery>) {
        let mut state = self.state();
        state.ready.extend(deliveries);
        state.wake();
    }
}

impl State {
    /// Wakes the consumer once half of the prefetch is free: acks reach a real broker in batches, so deliveries come in
    /// batches too.
    fn wake(&mut self) {
        if !self.ready.is_empty()
            && self.unacked * 2 <= self.prefetch
            && let Some(consumer) = self.consumer.take()
        {
            consumer.wake();
        }
    }
}

struct Deliveries(Arc<Queue>);

impl Stream for Deliveries {
    type Item = Delivery;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let mut state = self.0.state();
        if state.cancelled {
            return Poll::Ready(None);
        }
        if state.unacked < state.prefetch
            && let Some(delivery) = state.ready.pop_front()
        {
            state.unacked += 1;
            return Poll::Ready(Some(delivery));
        }
        // A caller that does not wait polls with a no-op waker.
        if !context.waker().will_wake(Waker::noop()) {
            state.consumer = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

struct Channel(Arc<Queue>);

impl Settler for Channel {
    fn settle(&self, _: DeliveryId, settlement: Settlement) {
        assert_eq!(settlement, Settlement::Ack, "every delivery succeeds");
        let mut state = self.0.state();
        state.unacked -= 1;
        state.wake();
        if self.0.unsettled.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.all_settled.notify_one();
        }
    }

    fn was_ended_by_broker(&self) -> bool {
        false
    }

    fn ended(&self) -> BoxFuture<'static, LossCause> {
        Box::pin(std::future::pending())
    }

    fn cancel(&self) -> BoxFuture<'static, ()> {
        let mut state = self.0.state();
        state.cancelled = true;
        state.consumer.take().into_iter().for_each(Waker::wake);
        Box::pin(std::future::ready(()))
    }

    fn cancel_when_idle(&self) -> BoxFuture<'static, ()> {
        self.cancel()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

type Unanswered = (LedgerEntry, oneshot::Sender<Recorded>);

struct MemoryLedger(mpsc::UnboundedSender<Unanswered>);

impl MemoryLedger {
    fn start() -> Self {
        let (entries, waiting) = mpsc::unbounded_channel::<Unanswered>();
        answer_in_batches("ledger", waiting, |batch| {
            for (entry, answer) in batch {
                drop(entry);
                answer.send(Recorded::New).expect("no worker gives up");
            }
        });
        MemoryLedger(entries)
    }
}

impl LedgerWriter for MemoryLedger {
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        let (answer, answered) = oneshot::channel();
        self.0.send((entry, answer)).expect("the ledger stays");
        Box::pin(async { Ok(answered.await.expect("the ledger answers")) })
    }

    fn cancel_order(&self, _cancellation: NewCancellation) -> BoxFuture<'static, Result<CancelAnswer, LedgerError>> {
        unreachable!("no order is cancelled")
    }

    fn claim_run(&self, _claim: RunClaim) -> BoxFuture<'static, Result<ClaimAnswer, LedgerError>> {
        unreachable!("no consumer has steps")
    }

    fn record_run(&self, _record: RunRecord) -> BoxFuture<'static, Result<RunRecorded, LedgerError>> {
        unreachable!("no consumer has steps")
    }

    fn exchange_alerts(&self, _replacement: Option<AlertBook>) -> BoxFuture<'static, Result<AlertAnswer, LedgerError>> {
        unreachable!("there are no alerts")
    }
}

#[derive(Clone, Copy, Default)]
struct CpuTime {
    workers: Duration,
    event_logs: Duration,
    ledger: Duration,
}

impl CpuTime {
    /// Must be called on the thread that runs the workers.
    fn now() -> Self {
        let worker = std::fs::read_link("/proc/thread-self").expect("/proc is mounted");
        let mut time = CpuTime::default();
        for (number, name, spent) in threads() {
            let sum = match name.as_str() {
                _ if worker.ends_with(&number) => &mut time.workers,
                "ledger" => &mut time.ledger,
                // The runtime's blocking threads, which write the event logs.
                name if name.starts_with("tokio") => &mut time.event_logs,
                _ => continue,
            };
            *sum += spent;
        }
        time
    }

    fn since(self, start: Self) -> Self {
        CpuTime {
            workers: self.workers.saturating_sub(start.workers),
            event_logs: self.event_logs.saturating_sub(start.event_logs),
            ledger: self.ledger.saturating_sub(start.ledger),
        }
    }
}
