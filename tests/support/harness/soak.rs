//! The soak: orders under load, some of which fail, while orderd and the broker are killed repeatedly. At the end every
//! published order must have been processed once or be in the dead letter queue, and the sums must match.
//!
//! Kills are spread evenly over the orders, not over time, so that their number does not depend on the machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use orderd::amqp::Connector;
use orderd::message::{Message, Properties, Publication, Publisher};
use serde_json::json;
use tokio::runtime::Runtime;

use super::Outcome;
use super::audit::{Audit, Progress, Published};
use super::daemon::Daemon;
use super::environment::Environment;
use super::interrupt;
use super::node::Node;

const POLL: Duration = Duration::from_millis(200);
/// A run without progress for this long is stuck: longer than all retry delays and back-offs together.
const STUCK: Duration = Duration::from_secs(180);
const DRAIN: Duration = Duration::from_secs(40);
/// How many orders are published ahead of processing, so that publishing continues during the kills.
const BACKLOG: u64 = 5_000;
/// Limit of unconfirmed publications.
const MAX_UNCONFIRMED: usize = 500;
const PRODUCTS: [&str; 3] = ["Laptop", "Phone", "Mouse"];
/// The longest time before a killed orderd is started again.
const LONGEST_PAUSE_MS: u64 = 300;

/// 5 % of the orders fail once, 1 % always. Retry delays are short, so that a run ends soon.
const SETTINGS: [(&str, &str); 7] = [
    ("ORDERD_CONSUMERS__ORDER__FAULTS__TRANSIENT", "0.05"),
    ("ORDERD_CONSUMERS__ORDER__FAULTS__PERMANENT", "0.01"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__IMMEDIATE", "0"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__DELAYS", "1s,2s,5s"),
    ("ORDERD_CONSUMERS__NOTIFICATION__RETRY__DELAYS", "1s,5s"),
    ("ORDERD_CONSUMERS__ANALYTICS__RETRY__DELAYS", "1s,5s"),
    ("ORDERD_BROKER__RECONNECT_MAX", "2s"),
];

/// The size of a run.
#[derive(Debug, Clone)]
pub struct Soak {
    /// Name of the broker node and of the directory under `target/`.
    pub name: String,
    /// Path of the orderd program.
    pub program: PathBuf,
    /// Orders to publish.
    pub orders: u64,
    /// How often orderd is killed with SIGKILL.
    pub kills: u64,
    /// How often the broker is killed with SIGKILL.
    pub broker_kills: u64,
}

impl Soak {
    /// Runs the soak. Passes a line about each kill to `log`.
    pub fn run(&self, log: &mut dyn FnMut(String)) -> Outcome<Audit> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let environment = Environment::prepare(&self.name, &SETTINGS, &runtime)?;
        let audit = self.run_in(&environment, &runtime, log);
        environment.tear_down()?;
        audit
    }

    fn run_in(&self, environment: &Environment, runtime: &Runtime, log: &mut dyn FnMut(String)) -> Outcome<Audit> {
        let published =
            Published { prefix: String::new(), orders: self.orders, unroutable: 0, notifications: 0, analytics: 0 };
        let producer = Producer::start(environment.connector(), self.orders, runtime);
        let mut daemon = environment.start_daemon(&self.program)?;
        let mut schedule = KillSchedule { soak: self, kills: 0, broker_kills: 0 };
        let (mut last, mut last_change) = (Progress::default(), Instant::now());
        loop {
            interrupt::sleep(POLL)?;
            let progress = Progress::read(environment.ledger_directory(), &published.prefix);
            producer.raise_limit(progress.processed + progress.dead_lettered + BACKLOG);
            if progress.is_settled(&published) {
                break;
            }
            if progress != last {
                (last, last_change) = (progress, Instant::now());
            } else if last_change.elapsed() > STUCK {
                let confirmed = producer.confirmed();
                let tail = daemon.log_tail();
                return Err(
                    format!("stuck at {progress:?} with {confirmed} confirmed; end of orderd's log:\n{tail}").into()
                );
            }
            daemon.check_alive()?;
            daemon = schedule.kill_what_is_due(environment, daemon, progress, log)?;
        }
        producer.finish(runtime)?;
        let status = daemon.terminate(DRAIN)?;
        if !status.success() {
            return Err(format!("orderd failed while stopping: {status}").into());
        }
        if schedule.kills < self.kills || schedule.broker_kills < self.broker_kills {
            return Err("all orders were settled before the last kill was due".into());
        }
        runtime.block_on(Audit::of_run(published, environment.ledger_directory(), &environment.connector()))
    }
}

/// Decides which kills are due, and carries them out.
struct KillSchedule<'s> {
    soak: &'s Soak,
    kills: u64,
    broker_kills: u64,
}

impl KillSchedule<'_> {
    /// Kills and restarts the daemon and the broker, each at most once, if a kill is due.
    fn kill_what_is_due(
        &mut self,
        environment: &Environment,
        mut daemon: Daemon,
        progress: Progress,
        log: &mut dyn FnMut(String),
    ) -> Outcome<Daemon> {
        let done = progress.processed + progress.dead_lettered;
        let is_due = |kills: u64, total: u64| kills < total && done * (total + 1) >= (kills + 1) * self.soak.orders;
        let (broker_is_due, daemon_is_due) =
            (is_due(self.broker_kills, self.soak.broker_kills), is_due(self.kills, self.soak.kills));
        if let Some(node) = environment.node.as_ref().filter(|_| broker_is_due) {
            self.broker_kills += 1;
            log(format!("{done:>7} orders settled; kill -9 of the broker, number {}", self.broker_kills));
            node.kill()?;
            Node::start(&node.name)?;
        }
        if daemon_is_due {
            self.kills += 1;
            log(format!("{done:>7} orders settled; kill -9 of orderd, number {}", self.kills));
            daemon.kill()?;
            thread::sleep(Duration::from_millis(fastrand::u64(0..LONGEST_PAUSE_MS)));
            daemon = environment.start_daemon(&self.soak.program)?;
        }
        Ok(daemon)
    }
}

/// Publishes orders in the background, up to a limit that the run raises as it progresses.
struct Producer {
    limit: Arc<AtomicU64>,
    confirmed: Arc<AtomicU64>,
    cancelled: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<(), String>>,
}

impl Producer {
    fn start(connector: Connector, orders: u64, runtime: &Runtime) -> Producer {
        let (limit, confirmed) = (Arc::new(AtomicU64::new(BACKLOG)), Arc::new(AtomicU64::new(0)));
        let cancelled = Arc::new(AtomicBool::new(false));
        let task = runtime.spawn(produce(
            connector,
            orders,
            Arc::clone(&limit),
            Arc::clone(&confirmed),
            Arc::clone(&cancelled),
        ));
        Producer { limit, confirmed, cancelled, task }
    }

    fn raise_limit(&self, number: u64) {
        self.limit.store(number, Ordering::Relaxed);
    }

    fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    fn finish(mut self, runtime: &Runtime) -> Outcome<()> {
        Ok(runtime.block_on(&mut self.task)??)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

async fn produce(
    connector: Connector,
    orders: u64,
    limit: Arc<AtomicU64>,
    confirmed: Arc<AtomicU64>,
    cancelled: Arc<AtomicBool>,
) -> Result<(), String> {
    let publisher = connector.publisher();
    let mut confirms = FuturesUnordered::new();
    for number in 1..=orders {
        while number > limit.load(Ordering::Relaxed) {
            if cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
            tokio::time::sleep(POLL / 10).await;
        }
        confirms.push(publisher.publish([order(number)].into()));
        if confirms.len() >= MAX_UNCONFIRMED
            && let Some(answer) = confirms.next().await
        {
            answer.map_err(|error| error.to_string())?;
            confirmed.fetch_add(1, Ordering::Relaxed);
        }
    }
    while let Some(answer) = confirms.next().await {
        answer.map_err(|error| error.to_string())?;
        confirmed.fetch_add(1, Ordering::Relaxed);
    }
    publisher.close(DRAIN).await.map_err(|error| error.to_string())
}

/// Every tenth order is urgent. Faults are injected only into normal ones.
fn order(number: u64) -> Publication {
    let id = format!("ord-{number}");
    let urgent = number.is_multiple_of(10);
    let body = json!({
        "id": id,
        "product": PRODUCTS[(number % 3) as usize],
        "quantity": 1 + number % 5,
        "price": format!("{}.{:02}", 10 + number % 900, number % 100),
        "currency": if number.is_multiple_of(7) { "USD" } else { "EUR" },
        "priority": urgent,
    });
    let properties = Properties { message_id: Some(id), ..Properties::default() };
    Publication {
        exchange: "orders".into(),
        routing_key: if urgent { "order.priority.created" } else { "order.normal.created" }.to_owned(),
        message: Message { properties, body: body.to_string().into(), ..Message::default() },
    }
}
