//! The pools that run: one for each consumer that is not paused, and former ones that finish what they were handed.
//!
//! A pool is never changed. Whatever changes of a consumer, a new pool starts and the former one is retired: it takes
//! nothing in any more, and works off what the broker has handed to it. Consumers that do not change keep their pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::AppError;
use super::consumer_context::{line, routes};
use super::pauses::Pauses;
use crate::config::{self, Config};
use crate::handlers::{HandlerDeps, Route};
use crate::message::{Consumer, Publisher};
use crate::pipeline::Pool;
use crate::shutdown::Shutdown;
use crate::status::{RegisteredConsumer, StatusRegistry};
use crate::supervisor::{RestartPolicy, supervise};

/// How long a pool that keeps dying is left alone.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// Former pools of one consumer that may be unfinished when another one starts. Each has a connection, and slots of its
/// own; one with nothing in hand takes a second to end.
const MOST_FORMER: usize = 8;
/// How long a change waits for former pools to end, if there are too many.
const ROOM_WITHIN: Duration = Duration::from_secs(10);
/// How long a change waits until former pools take nothing in. They await a quiet moment for up to two seconds.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(3);
/// How long it then waits for new pools to be subscribed, and how often it looks.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(20);

/// What all pools are made of.
pub(super) struct PoolDeps {
    pub source: Arc<dyn Consumer>,
    pub publisher: Arc<dyn Publisher>,
    /// Without faults, which are a consumer's own.
    pub parts: HandlerDeps,
    /// Where failures go back to. Those of removed queues stay: what is still worked on may fail.
    pub routes: watch::Sender<BTreeMap<String, Route>>,
    pub reconnect_max: Duration,
    pub live: Arc<StatusRegistry>,
    pub shutdown: Shutdown,
}

/// See the head of this file.
pub(super) struct Pools {
    site: PoolDeps,
    current: BTreeMap<String, Current>,
    former: BTreeMap<Id, RegisteredConsumer>,
    /// Of former pools that may still take something in.
    winding_down: Vec<CancellationToken>,
    keepers: JoinSet<()>,
}

/// The pool of a consumer that is not paused.
struct Current {
    consumer: config::Consumer,
    watched: RegisteredConsumer,
    /// Subscriptions that the consumer had had before this pool.
    before: u64,
    retired: CancellationToken,
    intake_ended: CancellationToken,
    keeper: Id,
}

/// A consumer has too many former pools that are unfinished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "consumers.{consumer}: was changed too often: {former} former pools have not finished what they were handed; nothing \
     was changed, try again once they have"
)]
pub(super) struct TooManyDrainingPools {
    pub consumer: String,
    pub former: usize,
}

impl Pools {
    /// None yet.
    pub fn new(site: PoolDeps) -> Self {
        let (current, former) = (BTreeMap::new(), BTreeMap::new());
        let (winding_down, keepers) = (Vec::new(), JoinSet::new());
        Pools { site, current, former, winding_down, keepers }
    }

    /// Starts, replaces and retires pools until they are those of this configuration. Does not wait for anything.
    ///
    /// # Errors
    /// [`AppError::UnknownHandler`]; nothing was changed then.
    pub fn apply(&mut self, config: &Config, pauses: &Pauses) -> Result<(), AppError> {
        let mut starting = Vec::new();
        for (name, consumer) in self.different(config, pauses) {
            let (site, counters) = (&self.site, self.site.live.counters(&name));
            let line = line(&name, &consumer, &site.parts, Arc::clone(&site.publisher), counters)?;
            starting.push((name, consumer, line));
        }
        // Before a new consumer fails anything: whoever recovers it must know where it goes back to.
        self.site.routes.send_modify(|known| known.extend(routes(config)));
        let gone = |name: &&String| !config.consumers.contains_key(*name) || pauses.since(name).is_some();
        let gone: Vec<_> = self.current.keys().filter(gone).cloned().collect();
        gone.iter().for_each(|name| self.retire(name));
        for (name, consumer, line) in starting {
            self.retire(&name);
            self.start(name, consumer, line);
        }
        self.show(config, pauses);
        Ok(())
    }

    /// The consumers that need another pool than they have, or have none.
    fn different(&self, config: &Config, pauses: &Pauses) -> Vec<(String, config::Consumer)> {
        let wanted = config.consumers.iter().filter(|(name, _)| pauses.since(name).is_none());
        let different = wanted
            .filter(|(name, consumer)| self.current.get(*name).is_none_or(|current| current.consumer != **consumer));
        different.map(|(name, consumer)| (name.clone(), consumer.clone())).collect()
    }

    fn start(&mut self, name: String, consumer: config::Consumer, line: crate::pipeline::ConsumerContext) {
        let (retired, intake_ended) = (CancellationToken::new(), CancellationToken::new());
        let shutdown = self.site.shutdown.clone();
        let watched = RegisteredConsumer::new(&name, &consumer, Arc::clone(&line.counters));
        let before = watched.counters.pool().subscriptions;
        let pool = Arc::new(Pool {
            context: Arc::new(line),
            consumer: Arc::clone(&self.site.source),
            workers: consumer.workers,
            prefetch: consumer.prefetch,
            reconnect_max: self.site.reconnect_max,
            shutdown: shutdown.clone(),
            drain: retired.clone(),
            intake_ended: intake_ended.clone(),
        });
        let keeper = self.keepers.spawn(keep_running(name.clone(), pool, shutdown)).id();
        self.current.insert(name, Current { consumer, watched, before, retired, intake_ended, keeper });
    }

    fn retire(&mut self, name: &str) {
        if let Some(Current { watched, retired, intake_ended, keeper, .. }) = self.current.remove(name) {
            retired.cancel();
            self.winding_down.push(intake_ended);
            self.former.insert(keeper, watched);
        }
    }

    /// Waits until no consumer that needs another pool has too many former ones. Cancel-safe.
    ///
    /// # Errors
    /// [`TooManyDrainingPools`] if that takes too long.
    pub async fn room(&mut self, config: &Config, pauses: &Pauses) -> Result<(), TooManyDrainingPools> {
        let deadline = Instant::now() + ROOM_WITHIN;
        while let Some(crowded) = self.crowded(config, pauses) {
            // Cancel-safe: see `ended`.
            if timeout_at(deadline, self.ended()).await.is_err() {
                return Err(crowded);
            }
        }
        Ok(())
    }

    /// Waits until former pools take nothing in any more and all current ones have had a subscription, so that what
    /// arrives from now on is worked on by these, and whoever asked for the change finds them at work: half a second, or
    /// some more while the broker does not answer, but not once a shutdown begins. Not cancel-safe.
    pub async fn taken_over(&mut self) {
        let former = std::mem::take(&mut self.winding_down);
        let all = async { join_all(former.iter().map(CancellationToken::cancelled)).await };
        if timeout(TAKEN_OVER_WITHIN, all).await.is_err() {
            warn!("former pools still take deliveries in: the broker does not answer");
        }
        let deadline = Instant::now() + SUBSCRIBED_WITHIN;
        let has = |current: &Current| current.watched.counters.pool().subscriptions > current.before;
        while !self.current.values().all(has) && Instant::now() < deadline {
            if !self.site.shutdown.sleep(GLANCE).await {
                return;
            }
        }
    }

    /// How many former pools a consumer has, if they are too many for another one.
    pub fn crowd_of(&self, consumer: &str) -> Option<usize> {
        let former = self.former.values().filter(|former| former.name == consumer).count();
        let former = former + usize::from(self.current.contains_key(consumer));
        (former > MOST_FORMER).then_some(former)
    }

    fn crowded(&self, config: &Config, pauses: &Pauses) -> Option<TooManyDrainingPools> {
        self.different(config, pauses).into_iter().find_map(|(consumer, _)| {
            let former = self.crowd_of(&consumer)?;
            Some(TooManyDrainingPools { consumer, former })
        })
    }

    /// Waits until a former pool has ended; [`Pools::show`] then forgets it. Cancel-safe.
    pub async fn ended(&mut self) {
        let (id, died) = match self.keepers.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, None),
            Some(Err(died)) => (died.id(), Some(died)),
            None => std::future::pending().await,
        };
        if let Some(died) = died {
            error!(error = %died, "a pool's keeper died");
        }
        if let Some(RegisteredConsumer { name, queue, .. }) = self.former.remove(&id) {
            info!(consumer = name, queue, "a former pool has finished");
        }
    }

    /// Has the pages show the consumers of a configuration, and those removed that finish their work.
    pub fn show(&self, config: &Config, pauses: &Pauses) {
        let mut shown = BTreeMap::new();
        for former in self.former.values() {
            shown.insert(former.name.clone(), RegisteredConsumer { workers: 0, ..former.clone() });
        }
        for (name, consumer) in &config.consumers {
            let mut watched = RegisteredConsumer::new(name, consumer, self.site.live.counters(name));
            watched.paused_since = pauses.since(name);
            let elsewhere = |former: &RegisteredConsumer| former.name == *name && former.queue != consumer.queue;
            watched.drains_elsewhere = self.former.values().any(elsewhere);
            shown.insert(name.clone(), watched);
        }
        self.site.live.show(shown.into_values().collect());
    }

    /// Waits for all of them, which settle their work once a shutdown has begun.
    pub async fn finish(mut self) {
        while let Some(ended) = self.keepers.join_next().await {
            if let Err(died) = ended {
                error!(error = %died, "a pool's keeper died");
            }
        }
    }
}

/// Keeps one pool running until a shutdown, or until it is retired and done. One that keeps dying is left alone for a
/// while, and then tried again: the other pools, and the daemon, go on.
async fn keep_running(name: String, pool: Arc<Pool>, shutdown: Shutdown) {
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
