//! A run: a cluster, a producer and a daemon; faults one after the other; and an audit of every order at the end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orderd::amqp::Connector;
use orderd::config::{Config, Sources};
use tokio::runtime::Runtime;

use super::cluster::Cluster;
use super::faults::Fault;
use super::harness::audit::{Audit, Progress, Published};
use super::harness::daemon::{CONFIG, Daemon};
use super::harness::queued_messages::QueuedMessages;
use super::harness::soak::{Producer, SETTINGS};
use super::harness::{Outcome, interrupt, repository};
use super::observer::{Observed, Observer, status};

/// Orders published in a second.
const RATE: u32 = 50;
/// The longest time until further orders are settled after a fault has ended, and until orderd is ready.
const RECOVERED: Duration = Duration::from_secs(90);
/// Longer than the 180 s after which the broker tries again to move a message whose target refused it.
const STUCK: Duration = Duration::from_secs(400);
const DRAIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Settings besides those of the soak.
const CLUSTER_SETTINGS: [(&str, &str); 2] = [("ORDERD_BROKER__REBALANCE_AFTER", "5s"), ("NO_COLOR", "1")];

/// The cluster and the daemon's settings.
pub struct ClusterRun {
    cluster: Cluster,
    directory: PathBuf,
    admin: SocketAddr,
    settings: Vec<(&'static str, String)>,
    config: Config,
    runtime: Runtime,
}

impl ClusterRun {
    /// Starts the cluster and declares the topology.
    pub fn new(name: &str) -> Outcome<ClusterRun> {
        interrupt::watch()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let directory = repository()?.join("target").join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        let cluster = Cluster::start(name)?;
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut settings: Vec<_> =
            SETTINGS.iter().chain(&CLUSTER_SETTINGS).map(|(key, value)| (*key, (*value).to_owned())).collect();
        settings.push(("ORDERD_LEDGER__DIRECTORY", directory.join("ledger").display().to_string()));
        settings.push(("ORDERD_LOG__DIRECTORY", directory.join("log").display().to_string()));
        settings.push(("ORDERD_ADMIN__LISTEN", admin.to_string()));
        settings.push(("ORDERD_BROKER__ADDRESSES", cluster.addresses()));
        settings.push(("ORDERD_MANAGEMENT__URL", cluster.management_urls()));
        let environment = settings.iter().map(|(key, value)| (OsString::from(key), OsString::from(value)));
        let sources = Sources {
            file: Some(CONFIG.into()),
            environment: environment.filter(|(key, _)| key != "NO_COLOR").collect(),
            ..orderd::handlers::sources()
        };
        let config = Config::load(&sources)?.config;
        runtime.block_on(Connector::new(config.broker.clone()).declare(config.topology().declarations()))?;
        Ok(ClusterRun { cluster, directory, admin, settings, config, runtime })
    }

    /// Runs the faults under load, and audits every order. Deletes the cluster if the audit passed.
    pub fn faults(mut self, faults: &[Fault]) -> Outcome<Report> {
        let report = self.run(faults);
        match &report {
            Ok(report) if report.passed() => self.cluster.wipe()?,
            _ => self.cluster.nodes.iter().for_each(|node| drop(node.stop())),
        }
        report
    }

    fn run(&mut self, faults: &[Fault]) -> Outcome<Report> {
        let producer = Producer::start(Connector::new(self.config.broker.clone()), RATE, &self.runtime);
        let log = self.directory.join("orderd.log");
        let mut daemon =
            Daemon::start(Path::new(env!("CARGO_BIN_EXE_orderd")), Path::new(CONFIG), &self.settings, &log)?;
        let ledger = self.directory.join("ledger");
        self.await_recovered(&mut daemon, &ledger)?;
        let observer = Observer::start(self.admin, ledger.clone(), producer.counter());
        let mut report = Report::default();
        for fault in faults {
            let node = self.publishing_node(&log)?;
            self.cluster.move_leaders(node)?;
            interrupt::sleep(Duration::from_secs(2))?;
            let _before = observer.take();
            println!("{} on node {}", fault.as_str(), node + 1);
            fault.inject(&mut self.cluster, node)?;
            let begin = Instant::now();
            self.await_recovered(&mut daemon, &ledger)?;
            let (recovery, observed) = (begin.elapsed(), observer.take());
            let connections = self.await_spread(&mut daemon)?;
            let result = FaultResult { recovery, observed, spread: begin.elapsed(), connections };
            println!("{}: {result}", fault.as_str());
            report.faults.insert(fault.as_str(), result);
        }
        drop(observer);
        let orders = producer.stop(&self.runtime)?;
        let published = Published::orders(orders);
        self.await_settled(&published, &mut daemon, &ledger)?;
        let status = daemon.terminate(DRAIN)?;
        if !status.success() {
            return Err(format!("orderd failed while stopping: {status}").into());
        }
        let connector = Connector::new(self.config.broker.clone());
        report.audit = Some(self.runtime.block_on(async {
            let queued = QueuedMessages::read(&connector, &ledger).await?;
            let mut audit = Audit::of_run(published, &ledger, queued).await?;
            audit.compare_event_files(&self.directory.join("log"))?;
            Outcome::Ok(audit)
        })?);
        Ok(report)
    }

    /// The node of the publishing connection, from the log.
    fn publishing_node(&self, log: &Path) -> Outcome<usize> {
        let text = fs::read_to_string(log)?;
        let line = text.lines().rev().find(|line| line.contains("connected for publishing"));
        let line = line.ok_or("orderd has not connected for publishing")?;
        let is_node = |node: &super::harness::node::Node| line.contains(&format!("127.0.0.1:{}", node.amqp_port));
        self.cluster.nodes.iter().position(is_node).ok_or_else(|| format!("no node in {line:?}").into())
    }

    /// Waits until further orders are settled and orderd is ready.
    fn await_recovered(&self, daemon: &mut Daemon, ledger: &Path) -> Outcome<()> {
        let settled = || {
            let progress = Progress::read(ledger, "");
            progress.processed + progress.dead_lettered
        };
        let (before, begin) = (settled(), Instant::now());
        loop {
            let failed: Vec<_> = match status(self.admin) {
                Some(status) => status["checks"].as_array().into_iter().flatten().cloned().collect(),
                None => Vec::new(),
            };
            let ready = !failed.is_empty() && failed.iter().all(|check| check["ok"] == true);
            if ready && settled() >= before + 20 {
                return Ok(());
            }
            if begin.elapsed() > RECOVERED {
                return Err(format!("not recovered: {failed:?}; end of the log:\n{}", daemon.log_tail()).into());
            }
            daemon.check_alive()?;
            interrupt::sleep(POLL)?;
        }
    }

    /// Waits until orderd's six connections are spread evenly over the nodes.
    fn await_spread(&self, daemon: &mut Daemon) -> Outcome<Vec<usize>> {
        let begin = Instant::now();
        loop {
            let connections = self.cluster.connections_of(daemon.pid())?;
            if connections.iter().all(|count| *count == 2) {
                return Ok(connections);
            }
            if begin.elapsed() > RECOVERED {
                return Err(format!("connections {connections:?} are not spread:\n{}", daemon.log_tail()).into());
            }
            daemon.check_alive()?;
            interrupt::sleep(POLL)?;
        }
    }

    /// Waits until all orders are processed or dead-lettered, and all events recorded.
    fn await_settled(&self, published: &Published, daemon: &mut Daemon, ledger: &Path) -> Outcome<()> {
        let (mut last, mut changed) = (Progress::default(), Instant::now());
        loop {
            let progress = Progress::read(ledger, "");
            if progress.is_settled(published) {
                return Ok(());
            }
            if progress != last {
                (last, changed) = (progress, Instant::now());
            } else if changed.elapsed() > STUCK {
                return Err(format!("stuck at {progress:?} of {published:?}:\n{}", daemon.log_tail()).into());
            }
            daemon.check_alive()?;
            interrupt::sleep(POLL)?;
        }
    }
}

/// What was seen during and after one fault.
#[derive(Debug)]
pub struct FaultResult {
    /// From the end of the fault until further orders were settled and orderd was ready.
    recovery: Duration,
    observed: Observed,
    /// From the end of the fault until the connections were spread.
    spread: Duration,
    /// orderd's connections to each node at the end.
    connections: Vec<usize>,
}

impl fmt::Display for FaultResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let observed = &self.observed;
        let checks: Vec<_> = observed.failed_checks.iter().map(String::as_str).collect();
        let seconds = |duration: Duration| format!("{:.1} s", duration.as_secs_f64());
        write!(
            f,
            "no order settled for {} at most ({} of it ready; none confirmed to the producer for {}), recovered {} after its end, \
             not ready for {} ({}), connections {:?} spread {} after its end",
            seconds(observed.longest_stall),
            seconds(observed.longest_stall_while_ready),
            seconds(observed.longest_producer_stall),
            seconds(self.recovery),
            seconds(observed.not_ready),
            checks.join(", "),
            self.connections,
            seconds(self.spread),
        )
    }
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    faults: BTreeMap<&'static str, FaultResult>,
    audit: Option<Audit>,
}

impl Report {
    /// Whether every order and every event is accounted for.
    pub fn passed(&self) -> bool {
        self.audit.as_ref().is_some_and(Audit::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, result) in &self.faults {
            writeln!(f, "{fault}: {result}")?;
        }
        self.audit.as_ref().map_or(Ok(()), |audit| write!(f, "\n{audit}"))
    }
}
