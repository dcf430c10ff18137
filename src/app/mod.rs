//! The composition root: builds everything, starts it in order, and stops it in the reverse order.
//!
//! ```text
//! start:  admin listener → ledger → pauses → event files → topology → publisher → pools → collectors of dead letters → management API poller
//! run:    `daemon` carries out commands: reload (plan, then replace pools), pause, resume
//! stop:   `stop`: pools and collectors stop consuming and settle → last confirms → children of commands end → alerts end → ledger closed → event files → poller, admin listener
//! ```
//! Each consumer that is not paused has a pool of workers, and each pool has a supervisor. `app` never processes a message.

mod alerting;
mod broker_setup;
mod collection_pause;
mod consumer_context;
mod daemon;
mod dead_letters;
mod event_logs;
mod journal;
mod ledger;
mod letter_sums;
mod observability;
mod orphaned_objects;
mod pauses;
mod pools;
mod rebalancer;
mod reconciliation;
mod redeclarer;
mod reload;
mod retention;
mod service_status;
mod stop;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use alerting::Alerting;
pub use broker_setup::TopologyError;
use broker_setup::{BrokerSetup, PolicyCheck};
use daemon::Daemon;
use dead_letters::{DeadLetterDeps, DeadLetters};
use event_logs::EventLogs;
use journal::Journal;
use observability::Observability;
use pauses::Pauses;
pub use pauses::PausesError;
use pools::{PoolDeps, Pools};
use rebalancer::Rebalancer;
use redeclarer::Redeclarer;
use retention::Retention;

use crate::admin::{AdminError, BoundListener};
use crate::amqp::{ConfirmingPublisher, Connector};
use crate::config::{CommandToken, Config, HandlerSettings, Sources};
use crate::control::{CommandReceiver, Control, ControlCommand};
use crate::domain::DEFAULT_NOTIFY;
use crate::formats::Format;
use crate::handlers::{HandlerDeps, LogChannel};
use crate::ledger::{Ledger, OpenError, OutageCause};
use crate::message::Publisher;
use crate::notify::Deliveries;
use crate::shutdown::Shutdown;
use crate::steps::{ChildProcesses, StepResources};
use crate::systemd::ServiceNotifier;
use crate::telemetry::LevelSwitch;

/// The generation of the configuration that the daemon starts with.
const FIRST_GENERATION: u64 = 1;

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The admin listener cannot be set up.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The ledger cannot be opened.
    #[error("cannot open the ledger")]
    Ledger(#[from] OpenError),
    /// The pauses cannot be read, so the daemon does not know which consumers it must not start.
    #[error(transparent)]
    Pauses(#[from] PausesError),
    /// The files of analytics events and notifications cannot be created.
    #[error(
        "cannot write the files of analytics events and notifications in {directory:?}: create the directory and let \
         orderd's user write there"
    )]
    EventLog {
        /// `log.directory`, or the ledger's directory.
        directory: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The broker refuses orderd, or its topology contradicts the configuration. An operator has to act.
    #[error("the broker does not match the configuration")]
    Topology(#[from] TopologyError),
    /// A newer orderd that shares the ledger has migrated it.
    #[error("the ledger was migrated by a newer orderd; upgrade this instance")]
    Outdated,
    /// The thread that records has panicked. What it had not recorded was not acked either.
    #[error("the thread that records in the ledger has died, a defect of orderd: keep the log, and start orderd again")]
    LedgerDied,
    /// Something did not stop in time, such as the ledger on a disk that hangs. What was not finished was not acked either.
    #[error("did not stop in time: {}; the broker will deliver again what was not acked", .0.join(", "))]
    StopTimedOut(Vec<&'static str>),
}

/// What the daemon needs from its process.
pub struct Process {
    /// The configuration file, for display.
    pub path: PathBuf,
    /// Where the configuration is loaded from, again at each reload.
    pub sources: Sources,
    /// The handle for sending commands, for the admin listener.
    pub control: Control,
    /// The receiving end of `control`.
    pub commands: CommandReceiver,
    /// Changes the log level.
    pub level: LevelSwitch,
    /// Receives the configured drain timeout, for the signal handler.
    pub drain_timeout: watch::Sender<Duration>,
    /// Receives the directories whose files belong to the active configuration.
    pub watched: watch::Sender<Vec<PathBuf>>,
    /// Notifies the service manager.
    pub service: ServiceNotifier,
}

/// Runs the daemon until a shutdown has been carried out.
///
/// # Errors
/// [`AppError`] when it cannot start, or did not stop in time. Once it runs, it ends only after a shutdown. It begins one itself
/// in three cases, all errors: the broker reports only after the start that a policy would drop messages, a newer orderd has
/// migrated the ledger, or the thread that records has died.
pub async fn run(config: Config, process: Process, shutdown: Shutdown) -> Result<(), AppError> {
    let Some(running) = start(config, process, &shutdown).await? else { return Ok(()) };
    let Running { mut daemon, commands, deferred_reload, publisher, policy_check } = running;
    let unusable = daemon.run(deferred_reload, commands).await;
    let unfinished = stop::stop(daemon, &publisher, &shutdown).await;
    match unusable {
        Some(OutageCause::Outdated) => return Err(AppError::Outdated),
        Some(_) => return Err(AppError::LedgerDied),
        None => {}
    }
    if let Some(policy_check) = policy_check {
        policy_check.await.unwrap_or(Ok(()))?;
    }
    if unfinished.is_empty() { Ok(()) } else { Err(AppError::StopTimedOut(unfinished)) }
}

/// Everything that [`start`] has started.
struct Running {
    daemon: Daemon,
    commands: CommandReceiver,
    /// The last reload that was requested during the start, to be carried out first.
    deferred_reload: Option<ControlCommand>,
    publisher: Arc<ConfirmingPublisher>,
    /// The rest of the policy check, if the broker had not reported all policies at the start.
    policy_check: Option<JoinHandle<Result<(), TopologyError>>>,
}

/// Starts everything in order. `None` when a shutdown came first.
async fn start(config: Config, process: Process, shutdown: &Shutdown) -> Result<Option<Running>, AppError> {
    let Process { path, sources, control, mut commands, level, drain_timeout, watched, service } = process;
    let bound = BoundListener::bind(&config.admin).await?;
    let mut observability =
        Observability::start(&config, path.display().to_string(), bound, control, shutdown, &service);
    let Some(ledger) = ledger::open(&config.ledger.location(), &observability.status_registry, shutdown).await? else {
        observability.stop().await;
        return Ok(None);
    };
    observability.ledger_opened(&ledger);
    if config.admin.listen.is_some() {
        create_command_token(&config).await;
    }
    let pauses = Pauses::read(config.ledger.directory.clone()).await?;
    pauses.warn_of_all(&config.consumers);
    let Some(logs) = EventLogs::start(&config, shutdown).await? else {
        let unfinished = stop::stop_before_start(ledger, None, observability).await;
        return if unfinished.is_empty() { Ok(None) } else { Err(AppError::StopTimedOut(unfinished)) };
    };
    observability.status_registry.set_event_files(logs.states());

    let connector = Connector::new(config.broker.clone());
    let setup = BrokerSetup::new(&config);
    let (prepared, deferred_reload) = daemon::defer_reload(setup.prepare(&connector, shutdown), &mut commands).await;
    let Some(policies) = prepared? else {
        let unfinished = stop::stop_before_start(ledger, Some(logs), observability).await;
        return if unfinished.is_empty() { Ok(None) } else { Err(AppError::StopTimedOut(unfinished)) };
    };

    let redeclarer = Redeclarer::start(&config, &connector, shutdown);
    let publisher = Arc::new(connector.publisher());
    let mut pools = Pools::new(pool_deps(&config, &connector, &publisher, &ledger, &logs, &observability, shutdown));
    pools.apply(&config.consumers, &pauses);
    let dead_letters = DeadLetters::start(
        &config,
        DeadLetterDeps {
            connector: connector.clone(),
            ledger: Arc::clone(&ledger),
            publisher: Arc::clone(&publisher) as Arc<dyn Publisher>,
            actions: observability.actions.clone(),
            status_registry: Arc::clone(&observability.status_registry),
            shutdown: shutdown.clone(),
        },
    );
    observability.pools_started(&config, &publisher).await;
    info!(consumers = config.consumers.len(), "started");
    let policy_check = match policies {
        PolicyCheck::Passed => None,
        PolicyCheck::Incomplete => Some(tokio::spawn(setup.complete_policy_check(shutdown.clone()))),
    };
    let rebalancer = Rebalancer::start(&config.broker, &connector, &observability.status_registry);
    let log = Arc::new(LogChannel { log: logs.notifications.clone() });
    let alerting = Alerting::start(&config, &observability.status_registry, &ledger, log, shutdown).await;
    let daemon = Daemon {
        alerting,
        retention: Retention::start(Arc::clone(&ledger), config.event_files(), config.ledger.retention, shutdown),
        config,
        generation: FIRST_GENERATION,
        sources,
        connector,
        redeclarer,
        rebalancer,
        pools,
        dead_letters,
        pauses,
        observability,
        journal: Journal::new(Arc::clone(&ledger)),
        ledger,
        logs,
        level,
        drain_timeout,
        watched,
        service,
        shutdown: shutdown.clone(),
    };
    Ok(Some(Running { daemon, commands, deferred_reload, publisher, policy_check }))
}

/// Creates the token of this machine, so that the command line finds it. Without it the daemon runs, but only users' tokens are
/// accepted; it is tried again with each that is unknown.
async fn create_command_token(config: &Config) {
    let token = CommandToken::in_directory(&config.ledger.directory);
    let created = tokio::task::spawn_blocking(move || token.read_or_create()).await;
    if let Err(problem) = created.expect("reading a file neither panics nor is cancelled") {
        warn!(
            problem,
            "there is no token in the ledger's directory, so commands such as `orderd pause` need --token-file with a user's token"
        );
    }
}

/// What all pools are built from.
fn pool_deps(
    config: &Config,
    connector: &Connector,
    publisher: &Arc<ConfirmingPublisher>,
    ledger: &Arc<dyn Ledger>,
    logs: &EventLogs,
    observability: &Observability,
    shutdown: &Shutdown,
) -> PoolDeps {
    let origin_consumers = watch::Sender::default();
    let handlers = HandlerDeps {
        // Each consumer has its own.
        format: Format::Own,
        names: Arc::new(config.names()),
        users: Arc::clone(connector.users()),
        max_body: config.broker.max_body,
        event_log: logs.analytics.clone(),
        notification_log: Arc::new(LogChannel { log: logs.notifications.clone() }),
        // Each consumer has its own.
        notify: HandlerSettings::none(),
        default_channel: DEFAULT_NOTIFY.into(),
        claims: Arc::default(),
        deliveries: Deliveries::default(),
        steps: StepResources {
            processes: ChildProcesses::guarded(),
            breakers: observability.status_registry.breakers().clone(),
        },
        origin_consumers: origin_consumers.subscribe(),
    };
    PoolDeps {
        source: Arc::new(connector.clone()),
        publisher: Arc::clone(publisher) as Arc<dyn Publisher>,
        ledger: Arc::clone(ledger),
        handlers,
        origin_consumers,
        reconnect_max: config.broker.reconnect_max,
        status_registry: Arc::clone(&observability.status_registry),
        shutdown: shutdown.clone(),
    }
}

impl AppError {
    /// What failed: the first words of the log line and of the service manager's status.
    pub fn what(&self) -> &'static str {
        match self {
            AppError::Outdated | AppError::LedgerDied => "cannot continue",
            AppError::StopTimedOut(_) => "stopped",
            AppError::Admin(_)
            | AppError::Ledger(_)
            | AppError::Pauses(_)
            | AppError::EventLog { .. }
            | AppError::Topology(_) => "cannot start",
        }
    }

    /// Whether someone has to change the configuration or the broker. It decides between exit codes 78 and 70.
    pub fn is_configuration(&self) -> bool {
        match self {
            AppError::Ledger(error) => error.is_configuration(),
            AppError::Admin(_) | AppError::Pauses(_) | AppError::EventLog { .. } | AppError::Topology(_) => true,
            // A restart is enough, for the first once the newer version is installed.
            AppError::Outdated | AppError::LedgerDied | AppError::StopTimedOut(_) => false,
        }
    }
}
