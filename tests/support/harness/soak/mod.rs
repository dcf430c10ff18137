//! The soak: orders under load, some of which fail, while orderd, the broker, the network and the disk suffer random faults. A
//! shop's services charge, reserve and ship each order. From the middle of the run on they refuse an order once more at most, and an operator replays those
//! that they have refused. At the end every published order must have been processed once, be a dead
//! letter or be unrouted; every recorded event must have a whole line in its file, the sums must match, and what the services did
//! must be kept with a processed order or undone.

mod broker_api;
mod disk;
mod fault;
mod faults;
mod operator;
mod producer;
mod report;
mod targets;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub use disk::Disk;
pub use fault::FaultKind;
use fault::{fault, plan};
use operator::Operator;
pub use producer::Producer;
pub use report::SoakReport;
use serde_json::json;
use targets::{Disks, Targets};
use tokio::runtime::Runtime;

use super::Outcome;
use super::amqp_proxy::AmqpProxy;
use super::audit::{Audit, Published};
use super::daemon::CONFIG;
use super::environment::{ADDRESSES, EarlierData, Environment};
use super::node::Node;
use super::queued_messages::QueuedMessages;
use super::shop::Shop;
use super::shop::books::Refusals;

/// Orders published in a second.
const RATE: u32 = 50;
/// The longest time without a fault, in milliseconds.
const LONGEST_PAUSE: u64 = 1_000;
/// How many more faults than wanted may be tried, if some find nothing to do.
const MAX_TRIES_FACTOR: usize = 3;

/// Settings of runs with faults: 5 % of the orders fail once, 1 % always. Retry delays are short, so that a run ends soon.
pub const SETTINGS: [(&str, &str); 7] = [
    ("ORDERD_CONSUMERS__ORDER__FAULTS__TRANSIENT", "0.05"),
    ("ORDERD_CONSUMERS__ORDER__FAULTS__PERMANENT", "0.01"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__IMMEDIATE", "0"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__DELAYS", "1s,2s,5s"),
    ("ORDERD_CONSUMERS__NOTIFICATION__RETRY__DELAYS", "1s,5s"),
    ("ORDERD_CONSUMERS__ANALYTICS__RETRY__DELAYS", "1s,5s"),
    ("ORDERD_LOG__ROTATION", "never"),
];
/// The consumers whose orders the shop's services work on.
pub const STEPS: [&str; 2] = ["ORDERD_CONSUMERS__ORDER__STEPS", "ORDERD_CONSUMERS__PRIORITY__STEPS"];
/// Lost connections are noticed and replaced soon.
const RECONNECT_SETTINGS: [(&str, &str); 2] =
    [("ORDERD_BROKER__RECONNECT_MAX", "2s"), ("ORDERD_BROKER__HEARTBEAT", "2s")];

/// A run.
#[derive(Debug, Clone)]
pub struct Soak {
    /// Name of the broker node and of the directory under `target/`.
    pub name: String,
    /// Path of the orderd program.
    pub program: PathBuf,
    /// Number of faults that must happen.
    pub faults: usize,
    /// The kinds to choose from.
    pub kinds: Vec<&'static FaultKind>,
    /// Decides the faults, their order and their lengths.
    pub seed: u64,
}

impl Soak {
    /// Runs the soak. Passes a line about each fault to `log`.
    pub fn run(&self, log: &mut dyn FnMut(String)) -> Outcome<SoakReport> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mounts = super::repository()?.join("target").join(&self.name);
        let mounts = ["ledger-disk", "events-disk"].map(|name| mounts.join(name));
        mounts.iter().for_each(|path| Disk::unmount_leftover(path));
        let shop = Shop::start()?;
        let steps = shop.steps();
        let settings = STEPS.map(|key| (key, &*steps));
        let mut environment = Environment::prepare(
            &self.name,
            &[&SETTINGS[..], &RECONNECT_SETTINGS, &settings].concat(),
            EarlierData::Deleted,
            &runtime,
        )?;
        let report = self.run_in(&mut environment, mounts, &shop, &runtime, log);
        environment.tear_down()?;
        report
    }

    fn run_in(
        &self,
        environment: &mut Environment,
        mounts: [PathBuf; 2],
        shop: &Shop,
        runtime: &Runtime,
        log: &mut dyn FnMut(String),
    ) -> Outcome<SoakReport> {
        let mut kinds = self.kinds.clone();
        let needs_mount = kinds.iter().any(|kind| kind.needs_mount);
        let disks = needs_mount.then(|| mount(mounts)).transpose().unwrap_or_else(|error| {
            log(format!("faults of the disks are NOT RUN: a file system cannot be mounted: {error}"));
            None
        });
        if disks.is_none() {
            kinds.retain(|kind| !kind.needs_mount);
        }
        let node = environment.node.clone().ok_or("the soak needs a private broker")?;
        let proxy = AmqpProxy::start(node.amqp_port)?;
        configure(environment, &node, &proxy, disks.as_ref())?;
        let directory = |disk: fn(&Disks) -> &Disk| {
            disks.as_ref().map_or_else(|| environment.directory.clone(), |disks| disk(disks).path.clone())
        };
        let mut targets = Targets {
            environment,
            node: &node,
            proxy: &proxy,
            runtime,
            program: &self.program,
            disks: disks.as_ref(),
            ledger: directory(|disks| &disks.ledger).join("ledger"),
            events: directory(|disks| &disks.events).join("log"),
            daemon: environment.start_daemon(&self.program)?,
            producer: Producer::start(environment.connector(), RATE, runtime),
            operator: None,
            gaps: Vec::new(),
            deleted_files: Vec::new(),
            moved_files: 0,
        };
        let mut report = SoakReport::new(self.seed, &self.kinds);
        targets.await_recovery()?;
        self.inject_faults(&kinds, &mut targets, shop, &mut report, log)?;
        targets.quiesce()?;
        targets.operator = None;
        operator::replay_all(environment, &self.program, &targets.ledger)?;
        let orders = targets.quiesce()?;
        let status = targets.daemon.terminate(faults::orderd::DRAIN)?;
        if !status.success() {
            return Err(format!("orderd failed while stopping: {status}").into());
        }
        faults::events::restore_deleted_files(&mut targets)?;
        let Targets { ledger, events, producer, gaps, .. } = targets;
        producer.stop(runtime)?;
        let audit = runtime.block_on(async {
            let queued = QueuedMessages::read(&environment.connector(), &ledger).await?;
            let published = Published { gaps, ..Published::orders(orders) };
            let mut audit = Audit::of_run(published, &ledger, queued).await?;
            audit.compare_event_files(&events)?;
            Outcome::Ok(audit)
        })?;
        // An order whose copy is unrouted has not ended: what was done for it is neither kept nor undone.
        let books = shop.books().without(&audit.only_unrouted_orders());
        report.books = Some(books.audit(&audit.order_states()));
        report.audit = Some(audit);
        Ok(report)
    }

    fn inject_faults(
        &self,
        kinds: &[&'static FaultKind],
        targets: &mut Targets<'_>,
        shop: &Shop,
        report: &mut SoakReport,
        log: &mut dyn FnMut(String),
    ) -> Outcome<()> {
        for (number, kind) in plan(self.seed, kinds).enumerate().take(self.faults * MAX_TRIES_FACTOR) {
            if report.faults() >= self.faults {
                break;
            }
            if targets.operator.is_none() && report.faults() >= self.faults / 2 {
                log("the shop's services refuse an order once more at most, and an operator replays what they have refused"
                    .to_owned());
                shop.refuse(Refusals::OnceMore);
                targets.operator = Some(Operator::start(targets.environment, self.program.as_path(), self.seed));
            }
            let mut fault = fault(self.seed, number, kind);
            thread::sleep(Duration::from_millis(fault.random.u64(0..LONGEST_PAUSE)));
            let failed = |error| format!("fault {} of seed {}, {}: {error}", number + 1, self.seed, kind.name);
            let happened = (kind.inject)(targets, &mut fault).map_err(failed)?;
            let begin = Instant::now();
            let settled = targets.await_recovery().map_err(failed)?;
            let recovery = begin.elapsed();
            targets.end_routing_gaps();
            let note = match (happened, fault.kill) {
                (false, _) => "nothing to do",
                (true, true) => "orderd killed meanwhile",
                (true, false) => "",
            };
            match happened {
                true => report.add(&fault, recovery),
                false => report.add_nothing_to_do(&fault),
            }
            let (count, seconds) = (report.faults(), recovery.as_secs_f64());
            log(format!(
                "{count:>4} {:<26} recovered after {seconds:>5.1} s, {settled:>7} orders settled  {note}",
                kind.name
            ));
        }
        let missing = self.faults.saturating_sub(report.faults());
        if missing > 0 {
            return Err(format!("{missing} faults found nothing to do").into());
        }
        Ok(())
    }
}

fn mount([ledger, events]: [PathBuf; 2]) -> std::io::Result<Disks> {
    Ok(Disks { ledger: Disk::mount(ledger)?, events: Disk::mount(events)? })
}

/// Gives orderd a broker user of its own, a configuration file that can be changed, and its directories.
fn configure(environment: &mut Environment, node: &Node, proxy: &AmqpProxy, disks: Option<&Disks>) -> Outcome<()> {
    let (user, api) = (faults::broker::USER, broker_api::BrokerApi(node.management_port));
    api.put(&format!("/users/{user}"), &json!({"password": user, "tags": "monitoring"}))?;
    api.put(&format!("/permissions/{{vhost}}/{user}"), &json!({"configure": ".*", "write": ".*", "read": ".*"}))?;
    environment.set("ORDERD_BROKER__USERNAME", user.to_owned());
    environment.set("ORDERD_BROKER__PASSWORD", user.to_owned());
    environment.set(ADDRESSES, proxy.address.clone());
    environment.config_file = environment.directory.join("orderd.toml");
    std::fs::copy(CONFIG, &environment.config_file)?;
    if let Some(Disks { ledger, events }) = disks {
        let path = |disk: &Disk, name: &str| -> String { Path::new(&disk.path).join(name).display().to_string() };
        environment.set("ORDERD_LEDGER__DIRECTORY", path(ledger, "ledger"));
        environment.set("ORDERD_LOG__DIRECTORY", path(events, "log"));
    }
    Ok(())
}
