//! The composition root: everything is made here, started in order, and stopped in the safe order.
//!
//! ```text
//! admin listener → ledger → topology → publisher → one supervised pool per consumer → poller of the management API
//! stop:    poller and intake off → work in progress settled → acks flushed → confirms awaited → ledger closed → admin listener
//! ```
//! It never works on a message.

mod broker;
mod outlook;
mod retention;
mod standing;
mod watching;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use broker::Policies;
pub use broker::TopologyError;
use outlook::Outlook;

use crate::admin::{AdminError, Bound, Live};
use crate::amqp::{ConfirmingPublisher, Link};
use crate::config::{Config, Consumer as ConsumerConfig};
use crate::handler::{self, EventLog, LogChannel, Parts, Route};
use crate::ledger::{Ledger, OpenError, SqliteLedger};
use crate::message::{Consumer, Publisher};
use crate::recovery::FAILED_HANDLER;
use crate::service::Service;
use crate::shutdown::Shutdown;
use crate::supervisor::{RestartPolicy, supervise};
use crate::telemetry::{self, Files, TelemetryError};
use crate::worker::{Counters, Line, OnFailure, Pool};

/// How long a pool that keeps dying is left alone.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How long the publisher may wait for its last confirms, once no worker needs them any more.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The admin listener cannot be set up.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The ledger cannot be opened.
    #[error("cannot open the ledger")]
    Ledger(#[from] OpenError),
    /// The files of analytics events and notifications cannot be made.
    #[error("cannot open the files of analytics events and notifications")]
    EventLog(#[source] TelemetryError),
    /// The broker refuses us, or its topology is not what the configuration says. A person must act.
    #[error("the broker and the configuration do not fit")]
    Topology(#[from] TopologyError),
    /// The configuration names a handler that does not exist; loading has checked that, so it is a bug.
    #[error("there is no handler {0:?}")]
    UnknownHandler(String),
}

/// Runs the daemon until a shutdown has been carried out.
///
/// # Errors
/// [`AppError`] when it cannot start. Once it runs, only a shutdown ends it, or a policy that would lose
/// messages and was told late.
pub async fn run(config: Config, config_path: &Path, shutdown: Shutdown, service: &Service) -> Result<(), AppError> {
    let bound = Bound::bind(&config.admin).await?;
    let mut outlook = Outlook::open(&config, config_path, bound, &shutdown, service);
    let ledger = open_ledger(config.ledger.directory.clone()).await?;
    outlook.records(&ledger);
    let logs = EventLogs::start(&config)?;
    let link = Link::new(config.broker.clone());
    let Some(policies) = broker::prepare(&link, &config, &shutdown).await? else {
        ledger.close().await;
        outlook.close().await;
        return Ok(());
    };
    let publisher = Arc::new(link.publisher());
    let pools =
        start_pools(&config, link, Arc::clone(&publisher), Arc::clone(&ledger), &logs, &outlook.live, &shutdown)?;
    outlook.started(&publisher, &shutdown);
    info!(consumers = config.consumers.len(), "started");
    let kept = config.ledger.retention;
    let judge = (policies == Policies::Untold).then(|| tokio::spawn(broker::judge_policies(config, shutdown.clone())));
    let pruning = kept.map(|retention| {
        let (ledger, shutdown) = (Arc::clone(&ledger), shutdown.clone());
        tokio::spawn(async move { retention::keep(&ledger, retention, &shutdown).await })
    });
    stop_in_order(pools, &publisher, &ledger, &shutdown).await;
    outlook.tell_tallies();
    if let Some(pruning) = pruning {
        let _ = pruning.await;
    }
    logs.finish().await;
    outlook.close().await;
    info!("stopped");
    match judge {
        Some(judge) => Ok(judge.await.unwrap_or(Ok(()))?),
        None => Ok(()),
    }
}

/// Opens the ledger aside: making one of an earlier version new may take minutes, and health checks are answered
/// meanwhile.
async fn open_ledger(directory: PathBuf) -> Result<Arc<SqliteLedger>, AppError> {
    let opening = tokio::task::spawn_blocking(move || SqliteLedger::open(&directory));
    Ok(Arc::new(opening.await.expect("opening a ledger neither panics nor is it cancelled")?))
}

/// The files of JSON lines and the threads that write them.
struct EventLogs {
    analytics: EventLog,
    notifications: EventLog,
    writers: [JoinHandle<()>; 2],
}

impl EventLogs {
    fn start(config: &Config) -> Result<Self, AppError> {
        let files = Files {
            directory: config.log.directory.clone().unwrap_or_else(|| config.ledger.directory.clone()),
            rotation: config.log.rotation.into(),
            keep: config.log.keep,
        };
        let open = |name: &str| telemetry::rolling(&files, name, "jsonl").map_err(AppError::EventLog);
        let (analytics, analytics_writer) = EventLog::start(open("analytics")?);
        let (notifications, notifications_writer) = EventLog::start(open("notifications")?);
        Ok(EventLogs { analytics, notifications, writers: [analytics_writer, notifications_writer] })
    }

    /// Waits until the writers have ended. To be called when all handlers are gone.
    async fn finish(self) {
        let EventLogs { analytics, notifications, writers } = self;
        drop((analytics, notifications));
        for writer in writers {
            let _ = writer.await;
        }
    }
}

fn start_pools(
    config: &Config,
    link: Link,
    publisher: Arc<ConfirmingPublisher>,
    ledger: Arc<SqliteLedger>,
    logs: &EventLogs,
    live: &Live,
    shutdown: &Shutdown,
) -> Result<JoinSet<()>, AppError> {
    let names = Arc::new(config.names());
    let parts = Parts {
        ledger: ledger as Arc<dyn Ledger>,
        names: Arc::clone(&names),
        faults: None,
        event_log: logs.analytics.clone(),
        channel: Arc::new(LogChannel { log: logs.notifications.clone() }),
        routes: Arc::new(routes(config)),
    };
    let source: Arc<dyn Consumer> = Arc::new(link);
    let mut pools = JoinSet::new();
    for (name, consumer) in &config.consumers {
        let counters = live.counters(name).expect("live is made of the same configuration");
        let line = line(name, consumer, &parts, Arc::clone(&publisher) as Arc<dyn Publisher>, counters)?;
        let pool = Arc::new(Pool {
            line: Arc::new(line),
            consumer: Arc::clone(&source),
            workers: consumer.workers,
            prefetch: consumer.prefetch,
            reconnect_max: config.broker.reconnect_max,
            shutdown: shutdown.clone(),
        });
        pools.spawn(keep_running(name.clone(), pool, shutdown.clone()));
    }
    Ok(pools)
}

/// Which policy applies to failures in which queue.
fn routes(config: &Config) -> BTreeMap<String, Route> {
    let work = config.consumers.iter().filter(|(_, consumer)| consumer.handler != FAILED_HANDLER);
    work.map(|(name, consumer)| {
        let route = Route {
            consumer: name.as_str().into(),
            policy: consumer.retry.clone(),
            carries_orders: consumer.handler == handler::ORDER,
        };
        (consumer.queue.clone(), route)
    })
    .collect()
}

fn line(
    name: &str,
    consumer: &ConsumerConfig,
    parts: &Parts,
    publisher: Arc<dyn Publisher>,
    counters: Arc<Counters>,
) -> Result<Line, AppError> {
    if let Some(faults) = consumer.faults {
        warn!(consumer = name, ?faults, "faults are injected on purpose: not for production");
    }
    let parts = Parts { faults: consumer.faults, ..parts.clone() };
    let handler =
        handler::build(&consumer.handler, &parts).ok_or_else(|| AppError::UnknownHandler(consumer.handler.clone()))?;
    let on_failure = match consumer.handler.as_str() {
        FAILED_HANDLER => OnFailure::Hold,
        _ => OnFailure::Forward { immediate: consumer.retry.immediate },
    };
    Ok(Line {
        consumer: name.into(),
        queue: consumer.queue.as_str().into(),
        handler,
        publisher,
        ledger: Arc::clone(&parts.ledger),
        names: Arc::clone(&parts.names),
        timeout: consumer.timeout,
        on_failure,
        counters,
    })
}

/// Keeps one pool running until a shutdown. One that keeps dying is left alone for a while, and then tried
/// again: the other pools, and the daemon, go on.
async fn keep_running(name: String, pool: Arc<Pool>, shutdown: Shutdown) {
    let task = format!("{name} pool");
    let on_restart = || pool.line.counters.restarted();
    while let Err(exceeded) =
        supervise(&task, RestartPolicy::DEFAULT, &shutdown, on_restart, || Arc::clone(&pool).run()).await
    {
        error!(consumer = name, error = %exceeded, pause = ?COOL_DOWN, "a pool keeps dying; pausing it");
        if !shutdown.sleep(COOL_DOWN).await {
            return;
        }
    }
}

/// Waits for the pools, which settle their work once a shutdown begins, then for what they published, then
/// closes the ledger.
async fn stop_in_order(
    mut pools: JoinSet<()>,
    publisher: &ConfirmingPublisher,
    ledger: &SqliteLedger,
    shutdown: &Shutdown,
) {
    while let Some(ended) = pools.join_next().await {
        if let Err(died) = ended {
            error!(error = %died, "a pool's keeper died");
        }
    }
    if shutdown.is_aborted() {
        warn!("not all work was finished in time; what was not acked goes back to the broker");
    }
    if let Err(unconfirmed) = publisher.close(LAST_CONFIRMS).await {
        warn!(error = %unconfirmed, "closed the publisher with publications unconfirmed; their sources were not acked");
    }
    ledger.close().await;
}

impl AppError {
    /// Whether changing the configuration, or the broker's, is what helps; else it is orderd's own trouble.
    pub fn is_configuration(&self) -> bool {
        match self {
            AppError::Ledger(error) => error.is_configuration(),
            AppError::Admin(_) | AppError::EventLog(_) | AppError::Topology(_) => true,
            AppError::UnknownHandler(_) => false,
        }
    }
}
