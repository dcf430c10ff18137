//! The composition root: everything is made here, started in order, and stopped in the safe order.
//!
//! ```text
//! start:   admin listener → ledger → topology → publisher → one supervised pool per consumer → poller of the management API
//! run:     daemon obeys: reload (plan, then pools replaced), pause, resume
//! stop:    poller and intake off → work in progress settled → acks flushed → confirms awaited → ledger closed → admin listener
//! ```
//! It never works on a message.

mod broker;
mod consumer_context;
mod daemon;
mod event_logs;
mod ledger;
mod observability;
mod orphaned_objects;
mod pauses;
mod pools;
mod reconciliation;
mod reload;
mod retention;
mod service_status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use broker::Policies;
pub use broker::TopologyError;
use daemon::Daemon;
use event_logs::EventLogs;
use observability::Observability;
use pauses::Pauses;
pub use pauses::PausesError;
use pools::{PoolDeps, Pools};
use retention::Retention;

use crate::admin::{AdminError, Bound};
use crate::amqp::{ConfirmingPublisher, Connector};
use crate::config::{Config, Sources};
use crate::control::{CommandReceiver, Control};
use crate::handlers::{HandlerDeps, LogChannel};
use crate::ledger::{Ledger, OpenError, SqliteLedger};
use crate::message::Publisher;
use crate::shutdown::Shutdown;
use crate::systemd::Service;
use crate::telemetry::{LevelSwitch, TelemetryError};

/// The configuration of the start; each one put in force later counts one up.
const FIRST_GENERATION: u64 = 1;
/// How long the publisher may wait for its last confirms, once no worker needs them any more.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);

/// Why the daemon could not start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The admin listener cannot be set up.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The ledger cannot be opened.
    #[error("cannot open the ledger")]
    Ledger(#[from] OpenError),
    /// Nobody knows which consumers are paused.
    #[error(transparent)]
    Pauses(#[from] PausesError),
    /// The files of analytics events and notifications cannot be made.
    #[error("cannot open the files of analytics events and notifications")]
    EventLog(#[source] TelemetryError),
    /// The broker refuses us, or its topology is not what the configuration says. A person must act.
    #[error("the broker and the configuration do not fit")]
    Topology(#[from] TopologyError),
    /// Another instance has made the ledger one of a later version.
    #[error("a later orderd that shares the ledger has made it new: start this instance as that version")]
    Outdated,
    /// The configuration names a handler that does not exist; loading has checked that, so it is a bug.
    #[error("there is no handler {0:?}")]
    UnknownHandler(String),
}

/// What the app needs of its process.
pub struct Process {
    /// The configuration's file, for people.
    pub path: PathBuf,
    /// Where the configuration came from, and is read again.
    pub sources: Sources,
    /// The way for those who command.
    pub control: Control,
    /// Its other end.
    pub commands: CommandReceiver,
    /// Changes what is logged.
    pub level: LevelSwitch,
    /// Tells whoever obeys signals how long a drain may take.
    pub drain_timeout: watch::Sender<Duration>,
    /// Tells the service manager.
    pub service: Service,
}

/// Runs the daemon until a shutdown has been carried out.
///
/// # Errors
/// [`AppError`] when it cannot start. Once it runs, only a shutdown ends it, a policy that would lose messages and was
/// told late, or a ledger that a later version has made new.
pub async fn run(config: Config, process: Process, shutdown: Shutdown) -> Result<(), AppError> {
    let Process { path, sources, control, mut commands, level, drain_timeout, service } = process;
    let bound = Bound::bind(&config.admin).await?;
    let mut observability =
        Observability::open(&config, path.display().to_string(), bound, control, &shutdown, &service);
    let Some(ledger) = ledger::open(&config.ledger.directory, &shutdown).await? else {
        observability.close().await;
        return Ok(());
    };
    observability.records(&ledger);
    let pauses = Pauses::read(config.ledger.directory.clone()).await?;
    pauses.warn_of_all(&config);
    let logs = EventLogs::start(&config)?;
    let link = Connector::new(config.broker.clone());
    let preparing = broker::prepare(&link, &config, &shutdown);
    let (prepared, reload_first) = daemon::hold_back(preparing, &mut commands).await;
    let Some(policies) = prepared? else {
        ledger.close().await;
        observability.close().await;
        return Ok(());
    };
    let publisher = Arc::new(link.publisher());
    let mut pools = Pools::new(site(&config, &link, &publisher, &ledger, &logs, &observability, &shutdown));
    pools.apply(&config, &pauses)?;
    observability.started(&config, &publisher).await;
    info!(consumers = config.consumers.len(), "started");
    let judging = (policies == Policies::Untold).then(|| broker::judge_policies(config.clone(), shutdown.clone()));
    let judge = judging.map(tokio::spawn);
    let retention = Retention::start(Arc::clone(&ledger), config.ledger.retention, &shutdown);
    let generation = FIRST_GENERATION;
    let shutdown_too = shutdown.clone();
    let mut daemon = Daemon {
        config,
        generation,
        sources,
        link,
        pools,
        pauses,
        observability,
        retention,
        ledger: Arc::clone(&ledger),
        level,
        drain_timeout,
        service,
        shutdown: shutdown_too,
    };
    daemon.obey(reload_first, commands).await;
    let Daemon { pools, observability, retention, .. } = daemon;
    stop_in_order(pools, &publisher, &ledger, &shutdown).await;
    observability.tell_tallies();
    retention.finish().await;
    logs.finish().await;
    observability.close().await;
    info!("stopped");
    if ledger.is_outdated() {
        return Err(AppError::Outdated);
    }
    match judge {
        Some(judge) => Ok(judge.await.unwrap_or(Ok(()))?),
        None => Ok(()),
    }
}

/// What all pools are made of.
fn site(
    config: &Config,
    link: &Connector,
    publisher: &Arc<ConfirmingPublisher>,
    ledger: &Arc<SqliteLedger>,
    logs: &EventLogs,
    observability: &Observability,
    shutdown: &Shutdown,
) -> PoolDeps {
    let routes = watch::Sender::default();
    let parts = HandlerDeps {
        ledger: Arc::clone(ledger) as Arc<dyn Ledger>,
        names: Arc::new(config.names()),
        faults: None,
        event_log: logs.analytics.clone(),
        channel: Arc::new(LogChannel { log: logs.notifications.clone() }),
        routes: routes.subscribe(),
    };
    PoolDeps {
        source: Arc::new(link.clone()),
        publisher: Arc::clone(publisher) as Arc<dyn Publisher>,
        parts,
        routes,
        reconnect_max: config.broker.reconnect_max,
        live: Arc::clone(&observability.live),
        shutdown: shutdown.clone(),
    }
}

/// Waits for the pools, which settle their work once a shutdown begins, then for what they published, then
/// closes the ledger.
async fn stop_in_order(pools: Pools, publisher: &ConfirmingPublisher, ledger: &SqliteLedger, shutdown: &Shutdown) {
    pools.finish().await;
    if shutdown.is_aborted() {
        warn!("not all work was finished in time; what was not acked goes back to the broker");
    }
    if let Err(unconfirmed) = publisher.close(LAST_CONFIRMS).await {
        warn!(error = %unconfirmed, "closed the publisher with publications unconfirmed; their sources were not acked");
    }
    ledger.close().await;
}

impl AppError {
    /// What could not be done, for people.
    pub fn what(&self) -> &'static str {
        if matches!(self, AppError::Outdated) { "cannot go on" } else { "cannot start" }
    }

    /// Whether changing the configuration, or the broker's, is what helps; else it is orderd's own trouble.
    pub fn is_configuration(&self) -> bool {
        match self {
            AppError::Ledger(error) => error.is_configuration(),
            AppError::Admin(_) | AppError::Pauses(_) | AppError::EventLog(_) | AppError::Topology(_) => true,
            // A restart starts the version that is installed by now.
            AppError::Outdated | AppError::UnknownHandler(_) => false,
        }
    }
}
