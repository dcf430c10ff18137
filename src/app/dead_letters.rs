//! The collectors of dead letters, as the configuration asks for, the task that replays them, and what the status shows of the store.
//!
//! It never reads a message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::collection_pause::CollectionPauseWatch;
use super::letter_sums::{StoreChanges, sum_up};
use crate::amqp::Connector;
use crate::config::{Config, Consumer};
use crate::dead_letters::{
    AccessToQueue, Collector, CollectorDeps, KnownConsumer, KnownConsumers, LetterActions, LetterActionsHandle,
    LetterParser, QueueAccess, Reparse, ReplayDeps, Replayer, WaitCause, Waiting,
};
use crate::handlers::message_check;
use crate::ledger::{Ledger, LetterSource, LetterWriter};
use crate::metrics::CollectionPause;
use crate::pipeline::{Intake, ServiceAccess};
use crate::shutdown::Shutdown;
use crate::status::{RegisteredConsumer, StatusRegistry};
use crate::supervisor::{RestartPolicy, supervise};

/// How long a change waits for the collectors to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long a collector that keeps dying is left stopped.
const COOL_DOWN: Duration = Duration::from_secs(30);

/// The collectors.
pub(super) struct DeadLetters {
    deps: CollectorDeps,
    consumers: watch::Sender<KnownConsumers>,
    /// Those of the present configuration.
    present_consumers: watch::Sender<KnownConsumers>,
    status_registry: Arc<StatusRegistry>,
    /// Cancelled when the running collectors are to stop; `None` while none runs.
    running: Option<CancellationToken>,
    tasks: JoinSet<()>,
    /// Each collector holds that of its queue while it runs, so that no two share their counters.
    turns: [Arc<Mutex<()>>; LetterSource::ALL.len()],
    replays: AbortOnDropHandle<()>,
    _sums: AbortOnDropHandle<()>,
    _pause: AbortOnDropHandle<()>,
    _reparse: AbortOnDropHandle<()>,
}

/// What the collectors are built from, besides the configuration.
pub(super) struct DeadLetterDeps {
    pub connector: Connector,
    pub ledger: Arc<dyn Ledger>,
    pub publisher: Arc<dyn crate::message::Publisher>,
    pub actions: LetterActionsHandle,
    pub status_registry: Arc<StatusRegistry>,
    pub shutdown: Shutdown,
}

impl DeadLetters {
    /// Starts what the configuration asks for.
    pub fn start(config: &Config, deps: DeadLetterDeps) -> Self {
        let DeadLetterDeps { connector, ledger, publisher, actions, status_registry, shutdown } = deps;
        let (consumers, present_consumers) = (watch::Sender::default(), watch::Sender::default());
        // Until the first look at the consumers.
        let pause = watch::Sender::new(Some(CollectionPause::Consumers));
        let replayer = Arc::new(Replayer::new(ReplayDeps {
            ledger: Arc::clone(&ledger),
            publisher,
            names: Arc::new(config.names()),
            users: Arc::clone(connector.users()),
            max_body: config.broker.max_body,
            consumers: present_consumers.subscribe(),
            access: queue_access(&status_registry),
            pause: pause.subscribe(),
            shutdown: shutdown.clone(),
        }));
        let parser = Arc::new(LetterParser {
            names: Arc::new(config.names()),
            users: Arc::clone(connector.users()),
            max_body: config.broker.max_body,
            consumers: consumers.subscribe(),
        });
        let reparse = Reparse {
            ledger: Arc::clone(&ledger),
            parser: Arc::clone(&parser),
            pause: pause.subscribe(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let changes = StoreChanges { actions: replayer.actions(), replays: replayer.running() };
        let registry = Arc::clone(&status_registry);
        let show_sums = move |sums| registry.set_unresolved_dead_letters(sums);
        let sums = sum_up(config.ledger.location().reader(), show_sums, changes, shutdown.clone());
        let deps = CollectorDeps {
            source: Arc::new(connector.for_optional_connections()),
            pause: pause.subscribe(),
            ledger_state: ledger.state(),
            ledger: ledger as Arc<dyn LetterWriter>,
            parser,
            reconnect_max: config.broker.reconnect_max,
            shutdown,
        };
        let watching = CollectionPauseWatch {
            status_registry: Arc::clone(&status_registry),
            connector,
            reconnect_max: config.broker.reconnect_max,
            directory: config.ledger.directory.clone(),
            shutdown: deps.shutdown.clone(),
        };
        status_registry.set_replays(replayer.running());
        let replays = replay_supervised(Arc::clone(&replayer), deps.shutdown.clone());
        let mut this = DeadLetters {
            deps,
            consumers,
            present_consumers,
            status_registry,
            running: None,
            tasks: JoinSet::new(),
            turns: Default::default(),
            replays: AbortOnDropHandle::new(tokio::spawn(replays)),
            _sums: AbortOnDropHandle::new(tokio::spawn(sums)),
            _pause: AbortOnDropHandle::new(tokio::spawn(watching.run(pause))),
            _reparse: AbortOnDropHandle::new(tokio::spawn(reparse.run())),
        };
        this.apply_consumers(&config.consumers);
        actions.open(LetterActions::new(replayer));
        if config.dead_letters.collect {
            this.start_collectors();
        }
        this
    }

    /// Starts or stops the collectors. Waits until those that stop have stored what they have received.
    pub async fn set(&mut self, config: &Config) {
        self.apply_consumers(&config.consumers);
        match (config.dead_letters.collect, &self.running) {
            (true, None) => self.start_collectors(),
            (false, Some(running)) => {
                running.cancel();
                self.running = None;
                let stopped = async { while self.tasks.join_next().await.is_some() {} };
                if timeout(STOP_LIMIT, stopped).await.is_err() {
                    warn!("the collectors of dead letters are still stopping: the broker does not answer");
                }
                for queue in LetterSource::ALL {
                    self.status_registry.collector(*queue).set_enabled(false);
                }
                info!("dead letters are left in their queues");
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Removed queues stay known, because their messages may still be dead-lettered.
    fn apply_consumers(&self, consumers: &BTreeMap<String, Consumer>) {
        let known = known_consumers(consumers);
        self.present_consumers.send_replace(known.clone());
        self.consumers.send_modify(|consumers| consumers.extend(known));
    }

    fn start_collectors(&mut self) {
        let stop = CancellationToken::new();
        for (queue, turn) in LetterSource::ALL.iter().zip(&self.turns) {
            let counters = self.status_registry.collector(*queue);
            counters.set_enabled(true);
            let collector = Arc::new(Collector::new(*queue, self.deps.clone(), counters, stop.clone()));
            let (turn, stop, shutdown) = (Arc::clone(turn), stop.clone(), self.deps.shutdown.clone());
            self.tasks.spawn(async move {
                // Cancel-safe: all only wait. The former collector of the queue may still be stopping.
                let _turn = tokio::select! {
                    turn = turn.lock_owned() => turn,
                    () = stop.cancelled() => return,
                    () = shutdown.begun() => return,
                };
                run_supervised(*queue, collector, stop, shutdown).await;
            });
        }
        self.running = Some(stop);
    }

    /// Waits for the collectors, which end once a shutdown has begun.
    pub async fn finish(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(died) = ended {
                error!(error = %died, "the supervisor of a collector of dead letters died");
            }
        }
        if let Err(died) = self.replays.await {
            error!(error = %died, "the supervisor of the replays of dead letters died");
        }
    }
}

/// The consumers of work queues.
fn known_consumers(consumers: &BTreeMap<String, Consumer>) -> KnownConsumers {
    let work = consumers.iter().filter(|(_, consumer)| !consumer.handles_failures());
    let known = work.map(|(name, consumer)| {
        let (format, check) = (consumer.format.clone(), message_check(&consumer.handler_settings));
        (consumer.queue.clone(), KnownConsumer { name: name.as_str().into(), format, check })
    });
    known.collect()
}

/// Runs a collector until it is stopped. One that keeps dying is left stopped for a while and then started again.
async fn run_supervised(queue: LetterSource, collector: Arc<Collector>, stop: CancellationToken, shutdown: Shutdown) {
    let task = format!("collector of {}", queue.as_str());
    while let Err(exceeded) =
        supervise(&task, RestartPolicy::DEFAULT, &shutdown, || {}, || Arc::clone(&collector).run()).await
    {
        error!(queue = queue.as_str(), error = %exceeded, pause = ?COOL_DOWN, "a collector of dead letters keeps dying; pausing it");
        // Cancel-safe: all only wait.
        tokio::select! {
            () = tokio::time::sleep(COOL_DOWN) => {}
            () = stop.cancelled() => return,
            () = shutdown.begun() => return,
        }
    }
}

/// Whether a queue's consumer processes what is published to it.
fn queue_access(status_registry: &Arc<StatusRegistry>) -> AccessToQueue {
    let registry = Arc::clone(status_registry);
    Arc::new(move |queue| {
        // It is not known yet which queue it is: that shows when the letter is read.
        if queue.is_empty() {
            return QueueAccess::Open;
        }
        let consumers = registry.consumers();
        consumers.iter().find(|consumer| consumer.queue == queue).map_or_else(
            || {
                let text = format!("no consumer of this instance has queue {queue}");
                QueueAccess::Closed(Waiting { cause: WaitCause::NoSubscription, text })
            },
            access_by_consumer,
        )
    })
}

fn access_by_consumer(consumer: &RegisteredConsumer) -> QueueAccess {
    let RegisteredConsumer { name, workers, paused_since, counters, intake, .. } = consumer;
    let waiting = |cause, text| Waiting { cause, text };
    if paused_since.is_some() {
        return QueueAccess::Closed(waiting(WaitCause::Paused, format!("consumer {name} is paused")));
    }
    if *workers == 0 || counters.pool().active_subscriptions == 0 {
        return QueueAccess::Closed(waiting(WaitCause::NoSubscription, format!("consumer {name} has no subscription")));
    }
    match intake.as_ref().map_or(ServiceAccess::Open, Intake::service_access) {
        ServiceAccess::Open => QueueAccess::Open,
        // Only a delivery shows whether it is available again.
        ServiceAccess::Trial(service) => QueueAccess::Trial(waiting(
            WaitCause::CircuitBreaker,
            format!("consumer {name} tries {service} with one message at a time: its circuit breaker is not closed"),
        )),
        ServiceAccess::Closed(service) => QueueAccess::Closed(waiting(
            WaitCause::CircuitBreaker,
            format!("consumer {name} does not call {service}: its circuit breaker is not closed"),
        )),
    }
}

/// Carries out replays until a shutdown begins. If it keeps dying, it is left stopped for a while and then started again.
async fn replay_supervised(replayer: Arc<Replayer>, shutdown: Shutdown) {
    let run = || Arc::clone(&replayer).run();
    while let Err(exceeded) = supervise("replays", RestartPolicy::DEFAULT, &shutdown, || {}, run).await {
        error!(error = %exceeded, pause = ?COOL_DOWN, "the replays of dead letters keep dying; pausing them");
        if !shutdown.sleep(COOL_DOWN).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
