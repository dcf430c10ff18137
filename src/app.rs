//! The composition root: everything is made here, started in order, and stopped in the safe order.
//!
//! ```text
//! ledger → topology → publisher → one supervised pool per consumer
//! stop:    intake off → work in progress settled → acks flushed → confirms awaited → ledger closed
//! ```
//! It never works on a message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::amqp::{ConfirmingPublisher, DeclareError, Link};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::{Config, Consumer as ConsumerConfig};
use crate::handler::{self, EventLog, LogChannel, Parts, Route};
use crate::ledger::{Ledger, OpenError, SqliteLedger};
use crate::message::{Consumer, Names, Publisher};
use crate::monitor::ManagementClient;
use crate::monitor::audit::audit;
use crate::recovery::FAILED_HANDLER;
use crate::shutdown::Shutdown;
use crate::supervisor::{RestartPolicy, supervise};
use crate::telemetry::{self, Files, TelemetryError};
use crate::topology::Topology;
use crate::worker::{Counters, Line, OnFailure, Pool};

/// Waits between attempts to reach the broker at start.
const REACH: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(15) };
/// How long a pool that keeps dying is left alone.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How long the broker may take to tell the policies of new queues.
const POLICY_PATIENCE: Duration = Duration::from_secs(20);
/// How long the publisher may wait for its last confirms, once no worker needs them any more.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The ledger cannot be opened.
    #[error("cannot open the ledger")]
    Ledger(#[from] OpenError),
    /// The analytics events' file cannot be made.
    #[error("cannot open the analytics log")]
    EventLog(#[source] TelemetryError),
    /// The broker refuses us, or its topology is not what the configuration says. A person must act.
    #[error("the broker and the configuration do not fit")]
    Topology(#[from] TopologyError),
    /// The configuration names a handler that does not exist; loading has checked that, so it is a bug.
    #[error("there is no handler {0:?}")]
    UnknownHandler(String),
}

/// Why the topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Declaring or checking failed.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// `topology.declare` is off and something is not there.
    #[error("topology.declare is false and the broker lacks: {0}")]
    Missing(String),
    /// Queues or exchanges are there with other arguments, or policies would lose what queues hold.
    #[error("the broker contradicts the configuration, and nothing was changed: {0}")]
    Contradictions(String),
}

/// Runs the daemon until a shutdown has been carried out.
///
/// # Errors
/// [`AppError`] when it cannot start. Once it runs, only a shutdown ends it, or a policy that would lose
/// messages and was told late.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), AppError> {
    let ledger = Arc::new(SqliteLedger::open(&config.ledger.directory)?);
    let (event_log, event_writer, _file_guard) = event_log(&config)?;
    let link = Link::new(config.broker.clone());
    let Some(policies) = prepare_topology(&link, &config, &shutdown).await? else {
        ledger.close().await;
        return Ok(());
    };
    let publisher = Arc::new(link.publisher());
    let pools = start_pools(&config, link, Arc::clone(&publisher), Arc::clone(&ledger), event_log, &shutdown)?;
    info!(consumers = pools.len(), "started");
    let judge = (policies == Policies::Untold).then(|| tokio::spawn(judge_policies(config, shutdown.clone())));
    stop_in_order(pools, &publisher, &ledger, &shutdown).await;
    // All handlers are gone, and with them all that feed the writer.
    let _ = event_writer.await;
    info!("stopped");
    match judge {
        Some(judge) => Ok(judge.await.unwrap_or(Ok(()))?),
        None => Ok(()),
    }
}

fn event_log(
    config: &Config,
) -> Result<(EventLog, tokio::task::JoinHandle<()>, tracing_appender::non_blocking::WorkerGuard), AppError> {
    let files = Files {
        directory: config.log.directory.clone().unwrap_or_else(|| config.ledger.directory.clone()),
        rotation: config.log.rotation.into(),
        keep: config.log.keep,
    };
    let (file, guard) = telemetry::rolling(&files, "analytics", "jsonl").map_err(AppError::EventLog)?;
    let (log, writer) = EventLog::start(file);
    Ok((log, writer, guard))
}

/// Declares or checks the topology, waiting for a broker that cannot be reached yet. `None` when a shutdown came
/// first.
async fn prepare_topology(link: &Link, config: &Config, shutdown: &Shutdown) -> Result<Option<Policies>, AppError> {
    for attempt in 0.. {
        // Dropping the attempt at shutdown is fine: declarations can be repeated.
        let prepared = tokio::select! {
            prepared = try_topology(link, config) => prepared,
            () = shutdown.begun() => return Ok(None),
        };
        match prepared {
            Ok(policies) => return Ok(Some(policies)),
            Err(TopologyError::Declare(DeclareError::Connect(unreachable))) if !unreachable.is_permanent() => {
                warn!(error = %chain(&unreachable), attempt, "waiting for the broker");
                if !shutdown.sleep(REACH.wait(attempt, fastrand::f64())).await {
                    return Ok(None);
                }
            }
            Err(final_word) => return Err(final_word.into()),
        }
    }
    unreachable!("the loop above ends by returning")
}

/// Whether the policies in force on the queues have been judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policies {
    /// They are harmless, or there is no management API to ask.
    Judged,
    /// The broker has not told all of them yet.
    Untold,
}

/// Compares before it declares, so that a broker which contradicts the configuration is left as it is.
async fn try_topology(link: &Link, config: &Config) -> Result<Policies, TopologyError> {
    let topology = config.topology();
    let policies = compare(config, &topology, Duration::ZERO).await?;
    if !config.topology.declare {
        let missing = link.check(topology.declarations()).await?;
        if missing.is_empty() {
            return Ok(policies);
        }
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        return Err(TopologyError::Missing(missing.join(", ")));
    }
    let declared = link.declare(topology.declarations()).await?;
    info!(created = declared.created.len(), "topology declared");
    // A policy may match a queue that was not there before.
    Ok(if declared.created.is_empty() { policies } else { Policies::Untold })
}

/// Asks the management API what is there and which policies rule it, for at most `patience` if it has not told
/// all. Without an answer the start goes on: the broker itself refuses wrong arguments, but says less about
/// them, and policies stay unseen.
async fn compare(config: &Config, topology: &Topology, patience: Duration) -> Result<Policies, TopologyError> {
    let client = ManagementClient::new(&config.management, &config.broker.virtual_host);
    let observed = match client {
        Ok(client) => client.observe_with_policies(topology, patience).await,
        Err(error) => Err(error),
    };
    let audit = match observed {
        Ok(observed) => audit(topology, &observed),
        Err(error) => {
            warn!(error = %chain(&error), "cannot ask the management API: queue arguments and policies are not compared");
            return Ok(Policies::Judged);
        }
    };
    if audit.refuses() {
        let mismatches = audit.mismatches.iter().map(ToString::to_string);
        let contradictions: Vec<_> =
            mismatches.chain(audit.dangerous_policies.iter().map(ToString::to_string)).collect();
        return Err(TopologyError::Contradictions(contradictions.join("; ")));
    }
    Ok(if audit.unknown_policies.is_empty() { Policies::Judged } else { Policies::Untold })
}

/// Judges policies that were not told at the start; a dangerous one ends the daemon. RabbitMQ before 4.3 tells
/// the policies of a new queue only with its first statistics.
async fn judge_policies(config: Config, shutdown: Shutdown) -> Result<(), TopologyError> {
    let topology = config.topology();
    // Cancel-safe: it only asks.
    let judged = tokio::select! {
        judged = compare(&config, &topology, POLICY_PATIENCE) => judged,
        () = shutdown.begun() => return Ok(()),
    };
    match judged {
        Ok(Policies::Judged) => Ok(()),
        Ok(Policies::Untold) => {
            warn!("the broker does not tell which policies are in force; check that none drops messages");
            Ok(())
        }
        Err(contradiction) => {
            shutdown.begin();
            Err(contradiction)
        }
    }
}

/// The running pools, each with its consumer's name and counters.
struct Pools {
    tasks: JoinSet<()>,
    counters: Vec<(String, Arc<Counters>)>,
}

impl Pools {
    fn len(&self) -> usize {
        self.counters.len()
    }
}

fn start_pools(
    config: &Config,
    link: Link,
    publisher: Arc<ConfirmingPublisher>,
    ledger: Arc<SqliteLedger>,
    event_log: EventLog,
    shutdown: &Shutdown,
) -> Result<Pools, AppError> {
    let names = Arc::new(config.names());
    let parts = Parts {
        ledger: ledger as Arc<dyn Ledger>,
        names: Arc::clone(&names),
        faults: None,
        event_log,
        channel: Arc::new(LogChannel),
        routes: Arc::new(routes(config)),
    };
    let source: Arc<dyn Consumer> = Arc::new(link);
    let mut pools = Pools { tasks: JoinSet::new(), counters: Vec::new() };
    for (name, consumer) in &config.consumers {
        let line = line(name, consumer, &parts, Arc::clone(&publisher) as Arc<dyn Publisher>, &names)?;
        pools.counters.push((name.clone(), Arc::clone(&line.counters)));
        let pool = Arc::new(Pool {
            line: Arc::new(line),
            consumer: Arc::clone(&source),
            workers: consumer.workers,
            prefetch: consumer.prefetch,
            reconnect_max: config.broker.reconnect_max,
            shutdown: shutdown.clone(),
        });
        pools.tasks.spawn(keep_running(name.clone(), pool, shutdown.clone()));
    }
    Ok(pools)
}

/// Which policy applies to failures in which queue.
fn routes(config: &Config) -> BTreeMap<String, Route> {
    let work = config.consumers.iter().filter(|(_, consumer)| consumer.handler != FAILED_HANDLER);
    work.map(|(name, consumer)| {
        let route = Route {
            consumer: name.clone(),
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
    names: &Arc<Names>,
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
        names: Arc::clone(names),
        timeout: consumer.timeout,
        on_failure,
        counters: Arc::new(Counters::default()),
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
async fn stop_in_order(mut pools: Pools, publisher: &ConfirmingPublisher, ledger: &SqliteLedger, shutdown: &Shutdown) {
    while let Some(ended) = pools.tasks.join_next().await {
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
    for (consumer, counters) in pools.counters {
        let tally = counters.tally();
        info!(
            consumer,
            deliveries = tally.deliveries,
            completed = tally.completed,
            duplicates = tally.duplicates,
            failed_attempts = tally.failed_attempts,
            forwarded = tally.forwarded,
            retried = tally.retried,
            parked = tally.parked,
            released = tally.released,
            restarts = tally.restarts,
            "since start"
        );
    }
}

impl AppError {
    /// Whether changing the configuration, or the broker's, is what helps; else it is orderd's own trouble.
    pub fn is_configuration(&self) -> bool {
        match self {
            AppError::Ledger(_) | AppError::EventLog(_) | AppError::Topology(_) => true,
            AppError::UnknownHandler(_) => false,
        }
    }
}
