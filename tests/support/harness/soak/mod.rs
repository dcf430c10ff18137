//! The soak: orders under load, some of which fail, while orderd, the broker, the network and the disk suffer random faults. At
//! the end every published order must have been processed once, be a dead letter or be unrouted; every recorded event must
//! have a whole line in its file, and the sums must match.

mod broker_api;
mod disk;
mod fault;
mod inject;
mod producer;
mod report;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub use disk::Disk;
pub use fault::FaultKind;
use fault::plan;
use inject::Targets;
pub use producer::Producer;
pub use report::SoakReport;
use tokio::runtime::Runtime;

use super::Outcome;
use super::amqp_proxy::AmqpProxy;
use super::audit::{Audit, Progress, Published};
use super::daemon::Daemon;
use super::environment::{ADDRESSES, Environment};
use super::interrupt;

const POLL: Duration = Duration::from_millis(100);
/// A run without progress for this long is stuck: longer than all delays and back-offs together, and than the 180 s after which
/// the broker tries again to move a message on whose target was missing.
const STUCK: Duration = Duration::from_secs(400);
const DRAIN: Duration = Duration::from_secs(60);
/// Orders published in a second.
const RATE: u32 = 50;
/// Orders that must be settled after a fault for it to have passed.
const RECOVERED_ORDERS: u64 = 20;
/// The longest time without a fault, in milliseconds.
const LONGEST_PAUSE: u64 = 1_000;

/// 5 % of the orders fail once, 1 % always. Retry delays are short, so that a run ends soon.
const SETTINGS: [(&str, &str); 9] = [
    ("ORDERD_CONSUMERS__ORDER__FAULTS__TRANSIENT", "0.05"),
    ("ORDERD_CONSUMERS__ORDER__FAULTS__PERMANENT", "0.01"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__IMMEDIATE", "0"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__DELAYS", "1s,2s,5s"),
    ("ORDERD_CONSUMERS__NOTIFICATION__RETRY__DELAYS", "1s,5s"),
    ("ORDERD_CONSUMERS__ANALYTICS__RETRY__DELAYS", "1s,5s"),
    ("ORDERD_BROKER__RECONNECT_MAX", "2s"),
    ("ORDERD_BROKER__HEARTBEAT", "2s"),
    ("ORDERD_LOG__ROTATION", "never"),
];

/// A run.
#[derive(Debug, Clone)]
pub struct Soak {
    /// Name of the broker node and of the directory under `target/`.
    pub name: String,
    /// Path of the orderd program.
    pub program: PathBuf,
    /// Number of faults.
    pub faults: usize,
    /// The kinds to choose from.
    pub kinds: Vec<FaultKind>,
    /// Decides the faults, their order and their lengths.
    pub seed: u64,
}

impl Soak {
    /// Runs the soak. Passes a line about each fault to `log`.
    pub fn run(&self, log: &mut dyn FnMut(String)) -> Outcome<SoakReport> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let path = super::repository()?.join("target").join(&self.name).join("disk");
        Disk::unmount_leftover(&path);
        let mut environment = Environment::prepare(&self.name, &SETTINGS, &runtime)?;
        let report = self.run_in(&mut environment, path, &runtime, log);
        environment.tear_down()?;
        report
    }

    fn run_in(
        &self,
        environment: &mut Environment,
        path: PathBuf,
        runtime: &Runtime,
        log: &mut dyn FnMut(String),
    ) -> Outcome<SoakReport> {
        let mut report = SoakReport::new(self.seed, &self.kinds);
        let mut kinds = self.kinds.clone();
        let needs_mount = kinds.iter().any(|kind| kind.needs_mount());
        let disk = needs_mount.then(|| Disk::mount(path)).transpose().unwrap_or_else(|error| {
            log(format!("faults of the disk are NOT RUN: a file system cannot be mounted: {error}"));
            None
        });
        if disk.is_none() {
            kinds.retain(|kind| !kind.needs_mount());
        }
        let node = environment.node.clone().ok_or("the soak needs a private broker")?;
        let proxy = AmqpProxy::start(node.amqp_port)?;
        environment.set(ADDRESSES, proxy.address.clone());
        let directory = disk.as_ref().map_or_else(|| environment.directory.clone(), |disk| disk.path.clone());
        let (ledger, events) = (directory.join("ledger"), directory.join("log"));
        environment.set("ORDERD_LEDGER__DIRECTORY", ledger.display().to_string());
        environment.set("ORDERD_LOG__DIRECTORY", events.display().to_string());
        let producer = Producer::start(environment.connector(), RATE, runtime);
        let mut daemon = environment.start_daemon(&self.program)?;
        let targets = Targets {
            environment,
            node: &node,
            proxy: &proxy,
            disk: disk.as_ref(),
            program: &self.program,
            ledger: &ledger,
        };
        await_progress(&ledger, &mut daemon, 0)?;
        for (number, kind) in plan(self.seed, self.faults, &kinds).into_iter().enumerate() {
            let mut random = fastrand::Rng::with_seed(self.seed.wrapping_add(number as u64 + 1));
            thread::sleep(Duration::from_millis(random.u64(0..LONGEST_PAUSE)));
            let happened;
            (daemon, happened) = targets.inject(kind, daemon, &mut random)?;
            let begin = Instant::now();
            let settled = await_progress(&ledger, &mut daemon, settled(&ledger))
                .map_err(|error| format!("fault {} of seed {}, {}: {error}", number + 1, self.seed, kind.as_str()))?;
            report.add(kind, happened, begin.elapsed());
            let (kind, seconds) = (kind.as_str(), begin.elapsed().as_secs_f64());
            log(format!(
                "{:>4} {kind:<26} {} passed after {seconds:.1} s; {settled} orders settled",
                number + 1,
                if happened { "" } else { "(nothing to do)" }
            ));
        }
        let orders = producer.stop(runtime)?;
        let published = Published {
            prefix: String::new(),
            orders,
            unroutable: 0,
            notifications: 0,
            analytics: 0,
            topology_deleted: kinds.iter().any(|kind| kind.deletes_topology()),
        };
        await_settled(&published, &ledger, &targets, &mut daemon, runtime)?;
        let status = daemon.terminate(DRAIN)?;
        if !status.success() {
            return Err(format!("orderd failed while stopping: {status}").into());
        }
        report.audit = Some(runtime.block_on(async {
            let mut audit = Audit::of_run(published, &ledger, &environment.connector()).await?;
            audit.compare_event_files(&ledger, &events)?;
            Outcome::Ok(audit)
        })?);
        Ok(report)
    }
}

fn settled(ledger: &Path) -> u64 {
    let progress = Progress::read(ledger, "");
    progress.processed + progress.dead_lettered
}

/// Waits until more orders are settled than there were.
fn await_progress(ledger: &Path, daemon: &mut Daemon, before: u64) -> Outcome<u64> {
    let begin = Instant::now();
    loop {
        let settled = settled(ledger);
        if settled >= before + RECOVERED_ORDERS {
            return Ok(settled);
        }
        if begin.elapsed() > STUCK {
            return Err(format!("no progress for {STUCK:?}; end of orderd's log:\n{}", daemon.log_tail()).into());
        }
        daemon.check_alive()?;
        interrupt::sleep(POLL)?;
    }
}

/// Waits until all orders are processed, dead-lettered or unrouted, and all events recorded.
fn await_settled(
    published: &Published,
    ledger: &Path,
    targets: &Targets<'_>,
    daemon: &mut Daemon,
    runtime: &Runtime,
) -> Outcome<()> {
    let (mut last, mut last_change) = (Progress::default(), Instant::now());
    loop {
        let progress = Progress::read(ledger, "");
        let unrouted = runtime.block_on(super::audit::unrouted_orders(&targets.environment.connector(), ledger))?;
        let routed = Published { orders: published.orders.saturating_sub(unrouted), ..published.clone() };
        if progress.is_settled(&routed) {
            return Ok(());
        }
        if progress != last {
            (last, last_change) = (progress, Instant::now());
        } else if last_change.elapsed() > STUCK {
            let tail = daemon.log_tail();
            let orders = published.orders;
            return Err(format!(
                "stuck at {progress:?} of {orders}, {unrouted} unrouted; end of orderd's log:\n{tail}"
            )
            .into());
        }
        daemon.check_alive()?;
        interrupt::sleep(POLL * 5)?;
    }
}

impl SoakReport {
    fn add(&mut self, kind: FaultKind, happened: bool, recovery: Duration) {
        let report = self.kinds.entry(kind).or_default();
        match happened {
            true => report.recoveries.push(recovery),
            false => report.nothing_to_do += 1,
        }
    }
}
