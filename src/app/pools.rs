//! The pools of the daemon: one running pool for each consumer that is not paused, and former pools that are draining.
//!
//! A pool is never changed. When anything about a consumer changes, a new pool starts and the former one drains: it stops
//! consuming and finishes what the broker has delivered to it. Consumers that do not change keep their pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::consumer_context::{ConsumerState, consumer_context, origin_consumers};
use super::pauses::Pauses;
use crate::config::{self, MessageKind};
use crate::handlers::{HandlerDeps, OriginConsumer};
use crate::ledger::Ledger;
use crate::message::{Consumer, Publisher};
use crate::notify::Deliveries;
use crate::pipeline::{ConsumerContext, Pool, RateLimiter, UnidentifiedDeliveries};
use crate::shutdown::Shutdown;
use crate::status::{RegisteredConsumer, StatusRegistry};
use crate::steps::ChildProcesses;
use crate::supervisor::{RestartPolicy, supervise};

/// How long a pool that keeps dying is left stopped.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// The most draining pools that a consumer may have when another pool starts. Each has its own connection and prefetch,
/// and takes about a second to end even with nothing in flight.
const MAX_DRAINING: usize = 8;
/// How long a change waits for draining pools to end, if there are too many.
const CAPACITY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a change waits for former pools to stop consuming. Before they do, they wait up to two seconds for a moment at
/// which no delivery is on its way.
const INTAKE_ENDED_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a change then waits for new pools to subscribe.
const SUBSCRIBED_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it checks whether they have.
const SUBSCRIBED_CHECK: Duration = Duration::from_millis(20);

/// The configured consumers, by name.
type Consumers = BTreeMap<String, config::Consumer>;

/// What all pools are built from.
pub(super) struct PoolDeps {
    /// Where deliveries come from.
    pub source: Arc<dyn Consumer>,
    pub publisher: Arc<dyn Publisher>,
    pub ledger: Arc<dyn Ledger>,
    /// What all handlers are built from.
    pub handlers: HandlerDeps,
    /// The consumers in which messages can fail, by queue. Removed queues stay in it, because deliveries of a draining pool
    /// may still fail.
    pub origin_consumers: watch::Sender<BTreeMap<String, OriginConsumer>>,
    pub reconnect_max: Duration,
    pub status_registry: Arc<StatusRegistry>,
    pub shutdown: Shutdown,
}

/// All pools of the daemon.
pub(super) struct Pools {
    deps: PoolDeps,
    /// By the consumer's name.
    running: BTreeMap<String, RunningPool>,
    /// By the pool's task.
    draining: BTreeMap<Id, RegisteredConsumer>,
    /// [`Pool::intake_ended`] of former pools that may still be consuming.
    intake_ending: Vec<CancellationToken>,
    /// By the consumer's name. A reload changes the limits of all its pools.
    rate_limiters: BTreeMap<String, Arc<RateLimiter>>,
    tasks: JoinSet<()>,
}

/// The pool of a consumer that is not paused.
struct RunningPool {
    settings: config::Consumer,
    registered: RegisteredConsumer,
    /// The number of subscriptions that the consumer had before this pool started.
    earlier_subscriptions: u64,
    drain: CancellationToken,
    intake_ended: CancellationToken,
    task: Id,
}

/// A consumer has too many draining pools for another one to start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "consumers.{consumer}: changed too often, {draining} former pools are still draining; nothing was changed, try again \
     later"
)]
pub(super) struct TooManyDrainingPools {
    pub consumer: String,
    pub draining: usize,
}

impl Pools {
    /// No pools yet.
    pub fn new(deps: PoolDeps) -> Self {
        let (running, draining, rate_limiters) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Pools { deps, running, draining, intake_ending: Vec::new(), rate_limiters, tasks: JoinSet::new() }
    }

    /// Starts, replaces and drains pools until they match the configuration. Does not wait for anything.
    pub fn apply(&mut self, consumers: &Consumers, pauses: &Pauses) {
        let mut starting = Vec::new();
        for (name, settings) in self.changed(consumers, pauses) {
            let context = self.context(&name, &settings);
            starting.push((name, settings, context));
        }
        // Before the new pools start: once a delivery of theirs fails, the failed-order consumer needs its origin.
        self.deps.origin_consumers.send_modify(|known| {
            known.values_mut().for_each(|consumer| consumer.is_configured = false);
            known.extend(origin_consumers(consumers));
        });
        let is_stopped = |name: &&String| !consumers.contains_key(*name) || pauses.since(name).is_some();
        let stopped: Vec<_> = self.running.keys().filter(is_stopped).cloned().collect();
        stopped.iter().for_each(|name| self.drain(name));
        for (name, settings, context) in starting {
            self.drain(&name);
            self.start(name, settings, context);
        }
        self.update_status(consumers, pauses);
    }

    /// Replaces a consumer's pool by one with the same settings, so that it consumes on a new connection, unless a pool is
    /// draining already. Returns whether it did. Does not wait for anything.
    pub fn replace(&mut self, name: &str, consumers: &Consumers, pauses: &Pauses) -> bool {
        let Some(settings) = self.running.get(name).map(|running| running.settings.clone()) else { return false };
        if !self.draining.is_empty() {
            return false;
        }
        let context = self.context(name, &settings);
        self.drain(name);
        self.start(name.to_owned(), settings, context);
        self.update_status(consumers, pauses);
        true
    }

    fn context(&mut self, name: &str, settings: &config::Consumer) -> ConsumerContext {
        let rate_limiter = Arc::clone(self.rate_limiters.entry(name.to_owned()).or_default());
        rate_limiter.set(settings.rate_limit);
        let (deps, counters) = (&self.deps, self.deps.status_registry.counters(name));
        let publisher = Arc::clone(&deps.publisher);
        let by_message_id = !matches!(settings.messages, MessageKind::Order | MessageKind::Failure);
        let unidentified = Arc::new(UnidentifiedDeliveries::new(by_message_id));
        let state = ConsumerState { unidentified, counters, rate_limiter };
        consumer_context(name, settings, &deps.handlers, &deps.ledger, publisher, state)
    }

    /// The consumers that need a new pool, because they have none or their settings differ from their pool's.
    fn changed(&self, consumers: &Consumers, pauses: &Pauses) -> Vec<(String, config::Consumer)> {
        let wanted = consumers.iter().filter(|(name, _)| pauses.since(name).is_none());
        let changed = wanted
            .filter(|(name, settings)| self.running.get(*name).is_none_or(|running| running.settings != **settings));
        changed.map(|(name, settings)| (name.clone(), settings.clone())).collect()
    }

    fn start(&mut self, name: String, settings: config::Consumer, context: ConsumerContext) {
        let (drain, intake_ended) = (CancellationToken::new(), CancellationToken::new());
        let shutdown = self.deps.shutdown.clone();
        let intake = Some(context.intake.clone());
        let registered =
            RegisteredConsumer { intake, ..RegisteredConsumer::new(&name, &settings, Arc::clone(&context.counters)) };
        let earlier_subscriptions = registered.counters.pool().subscriptions;
        let pool = Arc::new(Pool {
            context: Arc::new(context),
            consumer: Arc::clone(&self.deps.source),
            workers: settings.workers,
            prefetch: settings.prefetch,
            reconnect_max: self.deps.reconnect_max,
            shutdown: shutdown.clone(),
            drain: drain.clone(),
            intake_ended: intake_ended.clone(),
        });
        let task = self.tasks.spawn(run_supervised(name.clone(), pool, shutdown)).id();
        let running = RunningPool { settings, registered, earlier_subscriptions, drain, intake_ended, task };
        self.running.insert(name, running);
    }

    fn drain(&mut self, name: &str) {
        if let Some(RunningPool { registered, drain, intake_ended, task, .. }) = self.running.remove(name) {
            drain.cancel();
            self.intake_ending.push(intake_ended);
            self.draining.insert(task, registered);
        }
    }

    /// Waits until each consumer that needs a new pool may have another draining one. Cancel-safe.
    ///
    /// # Errors
    /// [`TooManyDrainingPools`] if that takes too long.
    pub async fn wait_for_capacity(
        &mut self,
        consumers: &Consumers,
        pauses: &Pauses,
    ) -> Result<(), TooManyDrainingPools> {
        let deadline = Instant::now() + CAPACITY_TIMEOUT;
        while let Some(error) = self.without_capacity(consumers, pauses) {
            // Cancel-safe: `next_drained` is.
            if timeout_at(deadline, self.next_drained()).await.is_err() {
                return Err(error);
            }
        }
        Ok(())
    }

    fn without_capacity(&self, consumers: &Consumers, pauses: &Pauses) -> Option<TooManyDrainingPools> {
        self.changed(consumers, pauses).into_iter().find_map(|(consumer, _)| {
            let draining = self.too_many_draining(&consumer)?;
            Some(TooManyDrainingPools { consumer, draining })
        })
    }

    /// The number of draining pools that the consumer would have if it got a new pool; `None` if that is not too many.
    pub fn too_many_draining(&self, consumer: &str) -> Option<usize> {
        let draining = self.draining.values().filter(|pool| pool.name == consumer).count();
        let draining = draining + usize::from(self.running.contains_key(consumer));
        (draining > MAX_DRAINING).then_some(draining)
    }

    /// Waits until the former pools have stopped consuming and all running ones have subscribed, so that the change is
    /// complete when it is answered. Takes about half a second, or a few seconds if the broker does not answer. Ends early
    /// when a shutdown begins. Not cancel-safe.
    pub async fn wait_for_handover(&mut self) {
        let ending = std::mem::take(&mut self.intake_ending);
        let all_ended = async { join_all(ending.iter().map(CancellationToken::cancelled)).await };
        if timeout(INTAKE_ENDED_TIMEOUT, all_ended).await.is_err() {
            warn!("former pools are still consuming: the broker does not answer");
        }
        let deadline = Instant::now() + SUBSCRIBED_TIMEOUT;
        let has_subscribed =
            |pool: &RunningPool| pool.registered.counters.pool().subscriptions > pool.earlier_subscriptions;
        while !self.running.values().all(has_subscribed) && Instant::now() < deadline {
            if !self.deps.shutdown.sleep(SUBSCRIBED_CHECK).await {
                return;
            }
        }
    }

    /// Waits until a draining pool has ended. [`Pools::update_status`] then removes it from the status. Cancel-safe.
    pub async fn next_drained(&mut self) {
        let task = match self.tasks.join_next_with_id().await {
            Some(Ok((task, ()))) => task,
            Some(Err(died)) => {
                log_death(&died);
                died.id()
            }
            None => std::future::pending().await,
        };
        if let Some(RegisteredConsumer { name, queue, .. }) = self.draining.remove(&task) {
            info!(consumer = name, queue, "a former pool has finished");
        }
    }

    /// Updates the list of consumers in the status: the configured ones, and removed ones that are still draining.
    pub fn update_status(&self, consumers: &Consumers, pauses: &Pauses) {
        let mut listed = BTreeMap::new();
        for pool in self.draining.values() {
            listed.insert(pool.name.clone(), RegisteredConsumer { workers: 0, ..pool.clone() });
        }
        for (name, settings) in consumers {
            let mut registered = RegisteredConsumer::new(name, settings, self.deps.status_registry.counters(name));
            registered.paused_since = pauses.since(name);
            registered.intake = self.running.get(name).and_then(|pool| pool.registered.intake.clone());
            let of_former_queue = |pool: &RegisteredConsumer| pool.name == *name && pool.queue != settings.queue;
            registered.drains_former_queue = self.draining.values().any(of_former_queue);
            listed.insert(name.clone(), registered);
        }
        self.deps.status_registry.set_consumers(listed.into_values().collect());
    }

    /// The children of all commands.
    pub fn processes(&self) -> ChildProcesses {
        self.deps.handlers.steps.processes.clone()
    }

    /// The deliveries of notifications that have begun.
    pub fn deliveries(&self) -> Deliveries {
        self.deps.handlers.deliveries.clone()
    }

    /// Waits for all pools, which settle their deliveries once a shutdown has begun.
    pub async fn finish(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(died) = ended {
                log_death(&died);
            }
        }
    }
}

fn log_death(died: &JoinError) {
    error!(error = %died, "the supervisor of a pool died");
}

/// Runs one pool until a shutdown, or until it has drained. A pool that keeps dying is left stopped for a while and then
/// started again. The other pools are not affected.
async fn run_supervised(name: String, pool: Arc<Pool>, shutdown: Shutdown) {
    let task = format!("{name} pool");
    let _intake_ended = pool.intake_ended.clone().drop_guard();
    let on_restart = || pool.context.counters.restarted();
    while let Err(exceeded) =
        supervise(&task, RestartPolicy::DEFAULT, &shutdown, on_restart, || Arc::clone(&pool).run()).await
    {
        error!(consumer = name, error = %exceeded, pause = ?COOL_DOWN, "a pool keeps dying; pausing it");
        if tokio::time::timeout(COOL_DOWN, pool.stopping()).await.is_ok() {
            return;
        }
    }
}
