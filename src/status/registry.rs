//! The registry of the daemon's live state, and the snapshots read from it.
//!
//! The parts of the daemon enter what they have started and what has changed; the admin server, the notifier thread and
//! the invariant check read it. Apart from that and from its samples for the rates it changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::assemble::{ConsumerReading, consumer_statuses, other_consumers};
use super::consumer_registry::{ConsumerRegistry, RegisteredConsumer};
use super::dead_letters::DeadLetterRegistry;
use super::readiness::readiness_checks;
use super::recent::{RecentSamples, Sample};
use super::summary::{ConsumerSummary, StatusSummary, SubscriptionState};
use super::{DaemonState, DaemonStatus, LastReload, LedgerStatus, PublisherStatus, Status};
use crate::alerts::AlertsStatus;
use crate::amqp::ConfirmingPublisher;
use crate::dead_letters::RunningReplay;
use crate::files::FileState;
use crate::ledger::{LedgerMaintenance, LedgerState, LetterSource, Outage, UnresolvedDeadLetters};
use crate::metrics::{CollectorCounters, CollectorReading, Counters};
use crate::reconcile::BrokerView;
use crate::shutdown::Shutdown;
use crate::steps::{BreakerReading, CircuitBreakers};
use crate::watchdog::{Health, HeartbeatReading, Stuck};

/// The ledger until it is open. Opening may take minutes, if it has to be migrated from an earlier version.
const LEDGER_NOT_OPEN: LedgerStatus = LedgerStatus { recording: false, commits: 0, outages: 0, outage: None };

/// The live state of the running daemon.
pub struct StatusRegistry {
    started: Instant,
    started_at: Timestamp,
    config_path: String,
    consumers: ConsumerRegistry,
    config_generation: AtomicU64,
    last_reload: Mutex<Option<LastReload>>,
    /// Set once the ledger is open.
    ledger: OnceLock<Arc<dyn LedgerMaintenance>>,
    /// Why the ledger cannot be opened yet, if an attempt has failed.
    opening_outage: Mutex<Option<Outage>>,
    /// Set once the event files are open.
    event_files: OnceLock<BTreeMap<&'static str, watch::Receiver<FileState>>>,
    /// Set once the topology is declared or checked.
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
    broker_view: watch::Receiver<Arc<BrokerView>>,
    shutdown: Shutdown,
    health: Health,
    breakers: CircuitBreakers,
    alerts: watch::Sender<Option<AlertsStatus>>,
    dead_letters: DeadLetterRegistry,
    samples: Mutex<RecentSamples>,
}

/// The whole status, and the readings that it was assembled from.
#[derive(Debug, Clone)]
pub(crate) struct StatusSnapshot {
    pub status: Status,
    pub consumers: Vec<ConsumerReading>,
    pub collectors: Vec<(LetterSource, CollectorReading)>,
    pub unresolved_dead_letters: UnresolvedDeadLetters,
}

impl StatusRegistry {
    /// The state of a daemon that starts now: no consumers, and the ledger not open. `config_path` is for display;
    /// `publisher` is set later, see [`StatusRegistry::set_publisher`].
    pub fn new(
        config_path: String,
        publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
        broker_view: watch::Receiver<Arc<BrokerView>>,
        shutdown: Shutdown,
        health: Health,
    ) -> Self {
        StatusRegistry {
            started: Instant::now(),
            started_at: Timestamp::now(),
            config_path,
            consumers: ConsumerRegistry::default(),
            config_generation: AtomicU64::new(1),
            last_reload: Mutex::default(),
            ledger: OnceLock::new(),
            opening_outage: Mutex::default(),
            event_files: OnceLock::new(),
            publisher,
            broker_view,
            shutdown,
            health,
            breakers: CircuitBreakers::default(),
            alerts: watch::Sender::default(),
            dead_letters: DeadLetterRegistry::default(),
            samples: Mutex::default(),
        }
    }

    /// The configured consumers, and removed ones that still finish deliveries, ordered by name.
    pub fn consumers(&self) -> Arc<[RegisteredConsumer]> {
        self.consumers.consumers()
    }

    /// Replaces the list of consumers, which must be ordered by name.
    pub fn set_consumers(&self, consumers: Vec<RegisteredConsumer>) {
        self.consumers.set_consumers(consumers);
    }

    /// The counters of a consumer: the same ones until the daemon ends.
    pub fn counters(&self, consumer: &str) -> Arc<Counters> {
        self.consumers.counters(consumer)
    }

    /// The counters of all consumers since the daemon started, removed ones included, by name.
    pub fn all_counters(&self) -> BTreeMap<String, Arc<Counters>> {
        self.consumers.all_counters()
    }

    /// The circuit breakers of all steps.
    pub fn breakers(&self) -> &CircuitBreakers {
        &self.breakers
    }

    /// What is shown about operators' alerts; `None` if none are configured.
    pub fn alerts(&self) -> &watch::Sender<Option<AlertsStatus>> {
        &self.alerts
    }

    /// The configuration file, for display.
    pub fn config_path(&self) -> &str {
        &self.config_path
    }

    /// The broker's state, as last read from the management API.
    pub fn broker_view(&self) -> Arc<BrokerView> {
        Arc::clone(&self.broker_view.borrow())
    }

    /// The last reload; `None` before the first.
    pub fn last_reload(&self) -> Option<LastReload> {
        self.last_reload.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counters of the collector of a dead letter queue.
    pub fn collector(&self, queue: LetterSource) -> Arc<CollectorCounters> {
        Arc::clone(self.dead_letters.collector(queue))
    }

    /// The counts of the collectors that are to run, by queue.
    pub fn running_collectors(&self) -> BTreeMap<String, CollectorReading> {
        let readings = self.dead_letters.readings().filter(|(_, reading)| reading.enabled);
        readings.map(|(queue, reading)| (queue.as_str().to_owned(), reading)).collect()
    }

    /// Enters where the replays that have not ended are shown. Only the first call has an effect.
    pub fn set_replays(&self, replays: watch::Receiver<Vec<RunningReplay>>) {
        self.dead_letters.set_replays(replays);
    }

    /// Enters what the store of dead letters has, or why that could not be read.
    pub fn set_unresolved_dead_letters(&self, open: Result<UnresolvedDeadLetters, String>) {
        self.dead_letters.set_open(open);
    }

    /// The last sums of the store.
    pub fn unresolved_dead_letters(&self) -> UnresolvedDeadLetters {
        self.dead_letters.open()
    }

    /// Whether the store could be added up the last time.
    pub fn sees_unresolved_dead_letters(&self) -> bool {
        self.dead_letters.is_current()
    }

    /// Enters the result of a reload.
    pub fn set_last_reload(&self, reload: LastReload) {
        self.config_generation.store(reload.report.generation, Ordering::Relaxed);
        *self.last_reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(reload);
    }

    /// Enters the open ledger. Only the first call has an effect.
    pub fn set_ledger(&self, ledger: Arc<dyn LedgerMaintenance>) {
        let _ = self.ledger.set(ledger);
    }

    /// Enters why the ledger cannot be opened yet.
    pub fn set_opening_outage(&self, outage: Option<Outage>) {
        *self.opening_outage.lock().unwrap_or_else(PoisonError::into_inner) = outage;
    }

    /// Enters the event files, by name. Only the first call has an effect.
    pub fn set_event_files(&self, files: BTreeMap<&'static str, watch::Receiver<FileState>>) {
        let _ = self.event_files.set(files);
    }

    /// Enters the publisher: the topology is declared or checked. Only the first call has an effect.
    pub fn set_publisher(&self, publisher: Arc<ConfirmingPublisher>) {
        let _ = self.publisher.set(publisher);
    }

    /// Takes a sample for the rates of the last minute.
    pub(crate) fn take_sample(&self) {
        let now = self.started.elapsed();
        let consumers = self.consumers();
        let samples = consumers.iter().map(|consumer| (consumer.name.clone(), Sample::from(&consumer.counters.read())));
        let samples = samples.collect();
        self.samples().push(now, samples);
    }

    fn samples(&self) -> MutexGuard<'_, RecentSamples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the whole status. Takes time proportional to the deliveries in flight.
    pub(crate) fn snapshot(&self) -> StatusSnapshot {
        let uptime = self.started.elapsed();
        let readings: Vec<_> = {
            let samples = self.samples();
            let breakers = self.breakers.read();
            let consumers = self.consumers();
            consumers.iter().map(|consumer| read_consumer(consumer, &samples, uptime, &breakers)).collect()
        };
        let consumers = consumer_statuses(&readings);
        let daemon = self.daemon_status(&readings, uptime);
        let declare_error = self.publisher.get().and_then(|publisher| publisher.redeclaration().problem());
        let connect_error = self.publisher.get().and_then(|publisher| publisher.last_connect_error());
        let broker = BrokerView::clone(&self.broker_view.borrow());
        let status = Status {
            checks: readiness_checks(
                &daemon,
                &consumers,
                connect_error.as_deref(),
                &broker.findings,
                declare_error.as_deref(),
            ),
            daemon,
            conservation_ok: consumers.values().all(|consumer| consumer.conservation.problem.is_none()),
            consumers,
            other_consumers: other_consumers(&readings),
            alerts: self.alerts.borrow().clone(),
            dead_letters: self.dead_letters.status(),
            broker,
        };
        let collectors = self.dead_letters.readings().collect();
        StatusSnapshot { status, consumers: readings, collectors, unresolved_dead_letters: self.dead_letters.open() }
    }

    fn daemon_status(&self, consumers: &[ConsumerReading], uptime: Duration) -> DaemonStatus {
        let publisher = self.publisher.get().map(|publisher| {
            let state = publisher.state();
            let (connected, connections) = (state.connected, state.connections);
            PublisherStatus {
                connected,
                address: publisher.address().filter(|_| connected).map(|address| address.to_string()),
                connections,
                unconfirmed: state.unconfirmed as u64,
                waiting_seconds: state.waiting.as_secs(),
                blocked: publisher.blocked(),
            }
        });
        let pools = consumers.iter().map(|consumer| &consumer.reading.pool);
        let collectors: Vec<_> = self.dead_letters.readings().map(|(_, reading)| reading).collect();
        let subscriptions: u64 = pools.map(|pool| pool.active_subscriptions + pool.draining_subscriptions).sum();
        let subscriptions = subscriptions + collectors.iter().map(|reading| u64::from(reading.subscribed)).sum::<u64>();
        // Removed consumers are included, so that the number never decreases.
        let subscriptions_made: u64 = self.all_counters().values().map(|counters| counters.pool().subscriptions).sum();
        let subscriptions_made =
            subscriptions_made + collectors.iter().map(|reading| reading.subscriptions).sum::<u64>();
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            instance: crate::instance::name().to_owned(),
            state: self.state(),
            started_at: self.started_at,
            uptime_seconds: uptime.as_secs_f64(),
            config: self.config_path.clone(),
            config_generation: self.config_generation.load(Ordering::Relaxed),
            last_reload: self.last_reload(),
            connections: subscriptions + publisher.as_ref().map_or(0, |publisher| u64::from(publisher.connected)),
            connections_made: subscriptions_made + publisher.as_ref().map_or(0, |publisher| publisher.connections),
            publisher,
            ledger: self.ledger_status(),
            event_files: self.event_files(),
        }
    }

    fn ledger_status(&self) -> LedgerStatus {
        let Some(ledger) = self.ledger.get() else {
            let outage = self.opening_outage.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return LedgerStatus { outage, ..LEDGER_NOT_OPEN };
        };
        let (recording, outage) = match &*ledger.state().borrow() {
            LedgerState::Recording => (true, None),
            LedgerState::Unavailable(outage) => (false, Some(outage.clone())),
            LedgerState::Closed => (false, None),
        };
        LedgerStatus { recording, commits: ledger.commits(), outages: ledger.outages(), outage }
    }

    fn event_files(&self) -> BTreeMap<String, FileState> {
        let files = self.event_files.get().into_iter().flatten();
        files.map(|(name, file)| ((*name).to_owned(), file.borrow().clone())).collect()
    }

    /// Reads the short summary, which is cheaper than a snapshot.
    pub fn summary(&self) -> StatusSummary {
        let configured = self.consumers();
        let configured = configured.iter().filter(|consumer| consumer.workers > 0);
        StatusSummary {
            state: self.state(),
            ledger_open: self.ledger.get().is_some(),
            publisher_connected: self.publisher.get().map(|publisher| publisher.state().connected),
            open_breakers: self.breakers.unavailable(),
            in_flight: self.all_counters().values().map(|counters| counters.counts().in_flight).sum(),
            consumers: configured
                .map(|consumer| ConsumerSummary {
                    name: consumer.name.clone(),
                    subscription: subscription_state(consumer),
                })
                .collect(),
        }
    }

    /// The heartbeats of all running workers, also those of removed consumers, which may still process deliveries. Takes no
    /// lock that a worker may hold while it works.
    pub fn heartbeats(&self) -> Vec<HeartbeatReading> {
        let counters = self.all_counters();
        counters.iter().flat_map(|(name, counters)| counters.heartbeats().read(name)).collect()
    }

    /// The tasks that are stuck now.
    pub(crate) fn stuck(&self) -> Vec<Stuck> {
        self.health.stuck()
    }

    fn state(&self) -> DaemonState {
        if self.shutdown.has_begun() {
            DaemonState::Draining
        } else if self.publisher.get().is_none() {
            DaemonState::Starting
        } else {
            DaemonState::Running
        }
    }
}

fn read_consumer(
    consumer: &RegisteredConsumer,
    samples: &RecentSamples,
    uptime: Duration,
    breakers: &[BreakerReading],
) -> ConsumerReading {
    let reading = consumer.counters.read();
    ConsumerReading {
        name: consumer.name.clone(),
        queue: consumer.queue.clone(),
        workers: consumer.workers,
        prefetch: consumer.prefetch,
        rate_limit: consumer.rate_limit,
        breakers: breakers.iter().filter(|breaker| *breaker.consumer == *consumer.name).cloned().collect(),
        delays: consumer.delays.clone(),
        paused_since: consumer.paused_since,
        recent: samples.activity(&consumer.name, uptime, &reading),
        reading,
    }
}

fn subscription_state(consumer: &RegisteredConsumer) -> SubscriptionState {
    let pool = consumer.counters.pool();
    if consumer.paused_since.is_some() {
        SubscriptionState::Paused
    } else if pool.subscriptions == 0 {
        SubscriptionState::NeverOpened
    } else if pool.active_subscriptions == 0 {
        SubscriptionState::Lost
    } else {
        SubscriptionState::Active
    }
}
