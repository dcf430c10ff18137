//! What the pages are made of: the running daemon's counters, publisher, ledger and view of the broker.
//!
//! It reads and never changes anything, but for its own samples of the last minute.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::consumer_registry::{ConsumerRegistry, RegisteredConsumer};
use crate::amqp::ConfirmingPublisher;
use crate::ledger::LedgerMaintenance;
use crate::metrics::Counters;
use crate::reconcile::BrokerView;
use crate::shutdown::Shutdown;
use crate::status::{
    self, ConsumerReading, DaemonState, DaemonStatus, LastReload, LedgerStatus, PublisherStatus, ReadinessCheck,
    Recent, Sample, Status,
};
use crate::watchdog::{Health, Stuck};

/// The ledger while it is being opened: one of an earlier version is made new then, which may take minutes.
const NOT_OPEN: LedgerStatus = LedgerStatus { recording: false, commits: 0 };

/// The running daemon, as the pages see it.
pub struct StatusRegistry {
    begun: Instant,
    started_at: Timestamp,
    config: String,
    consumers: ConsumerRegistry,
    generation: AtomicU64,
    last_reload: Mutex<Option<LastReload>>,
    /// Set once it is open.
    ledger: OnceLock<Arc<dyn LedgerMaintenance>>,
    /// Set once the topology is there.
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
    view: watch::Receiver<Arc<BrokerView>>,
    shutdown: Shutdown,
    health: Health,
    recent: Mutex<Recent>,
}

/// Everything, read at one time.
#[derive(Debug, Clone)]
pub(crate) struct StatusSnapshot {
    pub status: Status,
    pub consumers: Vec<ConsumerReading>,
}

impl StatusRegistry {
    /// A daemon that starts now, without consumers and without its ledger yet. `config_path` is told in the status;
    /// `publisher` is set once there is one.
    pub fn new(
        config_path: String,
        publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
        view: watch::Receiver<Arc<BrokerView>>,
        shutdown: Shutdown,
        health: Health,
    ) -> Self {
        StatusRegistry {
            begun: Instant::now(),
            started_at: Timestamp::now(),
            config: config_path,
            consumers: ConsumerRegistry::default(),
            generation: AtomicU64::new(1),
            last_reload: Mutex::default(),
            ledger: OnceLock::new(),
            publisher,
            view,
            shutdown,
            health,
            recent: Mutex::default(),
        }
    }

    /// The consumers, and those removed that finish what they were handed, by name.
    pub fn consumers(&self) -> Arc<[RegisteredConsumer]> {
        self.consumers.watched()
    }

    /// These are the consumers from now on.
    pub fn show(&self, consumers: Vec<RegisteredConsumer>) {
        self.consumers.show(consumers);
    }

    /// The counters of a consumer, the same for as long as the daemon lives.
    pub fn counters(&self, consumer: &str) -> Arc<Counters> {
        self.consumers.counters(consumer)
    }

    /// The counters of all consumers there ever were, by name.
    pub fn all_counters(&self) -> BTreeMap<String, Arc<Counters>> {
        self.consumers.all()
    }

    /// A reload has ended.
    pub fn reloaded(&self, reload: LastReload) {
        self.generation.store(reload.report.generation, Ordering::Relaxed);
        *self.last_reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(reload);
    }

    /// The ledger is open.
    pub fn set_ledger(&self, ledger: Arc<dyn LedgerMaintenance>) {
        // It is set once, as the publisher is.
        let _ = self.ledger.set(ledger);
    }

    /// The topology is there and publishing begins.
    pub fn set_publisher(&self, publisher: Arc<ConfirmingPublisher>) {
        // It is set once; a second one would be a second daemon.
        let _ = self.publisher.set(publisher);
    }

    /// Keeps a sample for the rates of the last minute.
    pub(crate) fn sample(&self) {
        let now = self.begun.elapsed();
        let samples: BTreeMap<_, _> =
            self.consumers().iter().map(|one| (one.name.clone(), Sample::from(&one.counters.read()))).collect();
        self.recent().push(now, samples);
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything, read now.
    pub(crate) fn snapshot(&self) -> StatusSnapshot {
        let up = self.begun.elapsed();
        let readings: Vec<_> = {
            let recent = self.recent();
            self.consumers().iter().map(|watched| facts(watched, &recent, up)).collect()
        };
        let consumers = status::consumers(&readings);
        let publisher = self.publisher.get().map(|publisher| {
            let state = publisher.state();
            let (connected, connections) = (state.connected, state.connections);
            PublisherStatus { connected, connections, unconfirmed: state.unconfirmed as u64 }
        });
        let subscribed: u64 = readings
            .iter()
            .map(|one| one.reading.pool.active_subscriptions + one.reading.pool.draining_subscriptions)
            .sum();
        // Also those of consumers that are gone: the number never falls.
        let made = self.all_counters();
        let subscriptions: u64 = made.values().map(|counters| counters.pool().subscriptions).sum();
        let daemon = DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            instance: crate::instance::name().to_owned(),
            state: self.state(),
            started_at: self.started_at,
            uptime_seconds: up.as_secs_f64(),
            config: self.config.clone(),
            config_generation: self.generation.load(Ordering::Relaxed),
            last_reload: self.last_reload.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            connections: subscribed + publisher.map_or(0, |publisher| u64::from(publisher.connected)),
            connections_made: subscriptions + publisher.map_or(0, |publisher| publisher.connections),
            publisher,
            ledger: self.ledger.get().map_or(NOT_OPEN, |ledger| LedgerStatus {
                recording: ledger.is_recording(),
                commits: ledger.commits(),
            }),
        };
        let status = Status {
            checks: checks(
                &daemon,
                &consumers,
                self.publisher.get().and_then(|publisher| publisher.last_connect_error()),
            ),
            daemon,
            conservation_ok: consumers.values().all(|consumer| consumer.conservation.problem.is_none()),
            consumers,
            broker: BrokerView::clone(&self.view.borrow()),
        };
        StatusSnapshot { status, consumers: readings }
    }

    /// Tasks that are stuck now.
    pub(crate) fn stuck(&self) -> Vec<Stuck> {
        self.health.stuck()
    }

    /// Whether the ledger is open.
    pub fn has_ledger(&self) -> bool {
        self.ledger.get().is_some()
    }

    /// Whether there is a connection to publish on; `None` before the topology is there.
    pub fn publishes(&self) -> Option<bool> {
        self.publisher.get().map(|publisher| publisher.state().connected)
    }

    /// How far the daemon has come.
    pub fn state(&self) -> DaemonState {
        if self.shutdown.has_begun() {
            DaemonState::Draining
        } else if self.publisher.get().is_none() {
            DaemonState::Starting
        } else {
            DaemonState::Running
        }
    }
}

fn facts(watched: &RegisteredConsumer, recent: &Recent, up: Duration) -> ConsumerReading {
    let reading = watched.counters.read();
    ConsumerReading {
        name: watched.name.clone(),
        queue: watched.queue.clone(),
        workers: watched.workers,
        prefetch: watched.prefetch,
        delays: watched.delays.clone(),
        paused_since: watched.paused_since,
        window: recent.window(&watched.name, up, &reading),
        reading,
    }
}

/// What must be so before the daemon is ready.
///
/// `trouble`: why the last attempt to connect to the broker failed, if it did.
fn checks(
    daemon: &DaemonStatus,
    consumers: &BTreeMap<String, status::ConsumerStatus>,
    trouble: Option<String>,
) -> Vec<ReadinessCheck> {
    let check = |name: &str, ok: bool, good: &str, bad: &str| {
        let detail = if ok { good } else { bad };
        ReadinessCheck { name: name.to_owned(), ok, detail: detail.to_owned() }
    };
    let connected = daemon.publisher.is_some_and(|publisher| publisher.connected);
    let mut checks = vec![
        check("shutdown", daemon.state != DaemonState::Draining, "not requested", "in progress"),
        check("ledger", daemon.ledger.recording, "recording", "not open yet, closed, or the last commit failed"),
        check("topology", daemon.publisher.is_some(), "declared or checked", "waiting for the broker"),
        check("publisher", connected, "connected", &because("no connection", trouble.as_deref())),
    ];
    // One that was removed only finishes its work; one that is paused is so on purpose.
    for (name, consumer) in consumers.iter().filter(|(_, consumer)| consumer.workers_configured > 0) {
        let good = if consumer.paused { "paused" } else { "subscribed" };
        let ok = consumer.paused || consumer.subscribed;
        checks.push(check(&format!("consumer {name}"), ok, good, &because("no subscription", trouble.as_deref())));
    }
    checks
}

fn because(what: &str, why: Option<&str>) -> String {
    why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}"))
}
