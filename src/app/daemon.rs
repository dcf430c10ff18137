//! The state of the running daemon, and the commands that change it, carried out one at a time until a shutdown.
//!
//! It starts and drains pools. It never processes a message.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::alerting::Alerting;
use super::dead_letters::DeadLetters;
use super::event_logs::EventLogs;
use super::journal::Journal;
use super::ledger::unusable;
use super::observability::Observability;
use super::pauses::Pauses;
use super::pools::Pools;
use super::rebalancer::Rebalancer;
use super::redeclarer::Redeclarer;
use super::reload::{self, ReloadPlan};
use super::retention::Retention;
use crate::amqp::Connector;
use crate::chain::chain;
use crate::config::{Config, Sources};
use crate::control::{CommandReceiver, ControlCommand, ControlError, PauseReport, Permit, ReloadReport};
use crate::ledger::{JournalAction, Ledger, NewJournalEntry, OutageCause};
use crate::shutdown::Shutdown;
use crate::status::LastReload;
use crate::systemd::ServiceNotifier;
use crate::telemetry::LevelSwitch;

/// Everything that a command may read or change.
pub(super) struct Daemon {
    /// The active configuration.
    pub config: Config,
    /// Number of the active configuration, see [`ReloadReport::generation`].
    pub generation: u64,
    pub sources: Sources,
    pub connector: Connector,
    pub redeclarer: Redeclarer,
    pub rebalancer: Rebalancer,
    pub pools: Pools,
    pub dead_letters: DeadLetters,
    pub pauses: Pauses,
    pub observability: Observability,
    pub retention: Retention,
    pub alerting: Alerting,
    pub ledger: Arc<dyn Ledger>,
    pub journal: Journal,
    pub logs: EventLogs,
    pub level: LevelSwitch,
    pub drain_timeout: watch::Sender<Duration>,
    /// The directories whose files belong to the active configuration.
    pub watched: watch::Sender<Vec<PathBuf>>,
    pub service: ServiceNotifier,
    pub shutdown: Shutdown,
}

/// Waits for `start` and returns the last reload that was requested in the meantime, to be carried out afterwards. Earlier
/// reloads and other commands are dropped, which answers them with [`ControlError::NotRunning`].
pub(super) async fn defer_reload<T>(
    start: impl Future<Output = T>,
    commands: &mut CommandReceiver,
) -> (T, Option<ControlCommand>) {
    tokio::pin!(start);
    let mut deferred = None;
    loop {
        // Cancel-safe: `start` is only borrowed, and a command not received now is received in the next round.
        tokio::select! {
            started = &mut start => return (started, deferred),
            Some(command) = commands.recv() => match command {
                // A reload that may expire does not replace one that may not.
                ControlCommand::Reload { by, ref permit, .. } if permit.is_limited() && deferred.is_some() => {
                    info!(by, "still starting; another reload is requested already");
                }
                ControlCommand::Reload { by, .. } => {
                    info!(by, "still starting; the configuration will be reloaded afterwards");
                    deferred = Some(command);
                }
                ControlCommand::SetPaused { consumer, paused, .. } => {
                    warn!(consumer, paused, "still starting: neither paused nor resumed");
                }
            },
        }
    }
}

/// What the daemon does next.
enum DaemonWork {
    Command(ControlCommand),
    /// A former pool has ended.
    PoolDrained,
    /// A consumer is to consume on a new connection.
    Move(String),
}

impl Daemon {
    /// Carries out the deferred command, then every command received, until a shutdown begins. A shutdown interrupts the
    /// planning of a reload, and its abort every command. Returns why nothing can be recorded any more, if the daemon ends for
    /// that reason.
    pub async fn run(
        &mut self,
        mut deferred: Option<ControlCommand>,
        mut commands: CommandReceiver,
    ) -> Option<OutageCause> {
        let shutdown = self.shutdown.clone();
        let ledger = self.ledger.state();
        loop {
            let next_command = async {
                match deferred.take() {
                    Some(command) => Some(command),
                    None => commands.recv().await,
                }
            };
            // Cancel-safe: `next_drained` and `next` are, and the others lose nothing; a deferred command is taken at the first
            // poll, which returns it.
            let next = tokio::select! {
                biased;
                () = shutdown.begun() => return None,
                // Nothing could be processed, and every delivery would be released again and again.
                cause = unusable(ledger.clone()) => {
                    shutdown.begin();
                    return Some(cause);
                }
                Some(command) = next_command => DaemonWork::Command(command),
                () = self.pools.next_drained() => DaemonWork::PoolDrained,
                consumer = self.rebalancer.next() => DaemonWork::Move(consumer),
            };
            let work = async {
                match next {
                    DaemonWork::Command(command) => self.carry_out(command).await,
                    DaemonWork::PoolDrained => self.update_status().await,
                    DaemonWork::Move(consumer) => {
                        if self.pools.replace(&consumer, &self.config.consumers, &self.pauses) {
                            self.pools.wait_for_handover().await;
                        }
                    }
                }
            };
            // Cancel-safe enough: after an abort, everything stops.
            tokio::select! {
                () = work => {}
                () = shutdown.aborted() => return None,
            }
        }
    }

    /// Carries out a command and answers it, unless a shutdown comes first: a command that is dropped without an answer is
    /// answered with [`ControlError::NotRunning`]. The receiver of the answer may be gone.
    async fn carry_out(&mut self, command: ControlCommand) {
        match command {
            ControlCommand::Reload { by, actor, permit, answer } => {
                if let Some(result) = self.reload(by, &permit).await {
                    match &result {
                        Ok(report) => self.journal.record(reload_entry(by, &actor, report)).await,
                        Err(error) => info!(by, %error, "reload not carried out"),
                    }
                    let _ = answer.send(result);
                }
            }
            ControlCommand::SetPaused { consumer, paused, actor, permit, answer } => {
                let result = self.set_paused(consumer, paused, &permit).await;
                match &result {
                    Ok(report) => self.journal.record(pause_entry(&actor, report)).await,
                    Err(error) => info!(paused, %error, "neither paused nor resumed"),
                }
                let _ = answer.send(result);
            }
        }
    }

    /// Updates the consumers in the status after draining pools have ended. While a consumer drains a pool of another queue
    /// than its present one, the poller compares neither queue with the broker; it starts again once that is over.
    async fn update_status(&mut self) {
        let draining_former_queue = || {
            self.observability
                .status_registry
                .consumers()
                .iter()
                .filter(|consumer| consumer.drains_former_queue)
                .count()
        };
        let before = draining_former_queue();
        self.pools.update_status(&self.config.consumers, &self.pauses);
        if draining_former_queue() < before {
            self.observability.restart_poller(&self.config).await;
        }
    }

    /// Reads the configuration again and applies what can be applied, if the permit still allows it then. `None` if a
    /// shutdown came first.
    async fn reload(&mut self, by: &'static str, permit: &Permit) -> Option<Result<ReloadReport, ControlError>> {
        if !permit.is_valid() {
            return Some(Err(ControlError::Expired));
        }
        let begin = Instant::now();
        info!(by, "reloading the configuration");
        self.logs.reopen();
        // The service manager shows a reload until this is dropped.
        let _reloading = self.service.reloading();
        let shutdown = self.shutdown.clone();
        // Cancel-safe: planning changes nothing here. What it has declared on the broker may stay.
        let planned = tokio::select! {
            planned = reload::plan(&self.sources, &self.config, &self.connector, &mut self.pools, &self.pauses) => planned,
            () = shutdown.begun() => return None,
        };
        // Planning may have waited for draining pools to end.
        self.update_status().await;
        let former_level = self.config.log.level;
        let report = match planned {
            Ok(plan) => match permit.begin() {
                Ok(()) => self.apply(plan, begin).await,
                Err(error) => return Some(Err(error)),
            },
            Err(rejection) => rejection.report(self.generation),
        };
        // The report is logged if either the former or the new level shows it.
        self.level.set(tracing::Level::from(former_level).max(self.config.log.level.into()));
        reload::log_report(by, &report);
        self.level.set(self.config.log.level.into());
        let last = LastReload { at: Timestamp::now(), by: by.to_owned(), report: report.clone() };
        self.observability.status_registry.set_last_reload(last);
        Some(Ok(report))
    }

    /// Makes the planned configuration the active one, then compares the broker with it. A reload began at `begin`.
    async fn apply(&mut self, plan: ReloadPlan, begin: Instant) -> ReloadReport {
        let ReloadPlan { next, changes, unchecked, notes } = plan;
        let mut applied_after_ms = None;
        if next != self.config {
            self.activate(next).await;
            applied_after_ms = Some(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
            info!(generation = self.generation, milliseconds = applied_after_ms, "the new configuration is active");
        }
        let shutdown = self.shutdown.clone();
        let problems = match unchecked {
            // Cancel-safe: what it has declared may stay.
            Some(setup) => tokio::select! {
                problems = setup.reapply(&self.connector) => problems,
                () = shutdown.begun() => vec!["the broker was not checked: orderd is stopping".to_owned()],
            },
            None => Vec::new(),
        };
        let outcome = reload::outcome(&changes, &problems);
        let generation = self.generation;
        ReloadReport { outcome, generation, changes, applied_after_ms, problems, temporary: false, notes }
    }

    /// Makes this configuration the active one.
    async fn activate(&mut self, next: Config) {
        self.pools.apply(&next.consumers, &self.pauses);
        self.pools.wait_for_handover().await;
        let former = std::mem::replace(&mut self.config, next);
        let active = &self.config;
        if former.ledger.retention != active.ledger.retention {
            self.retention.set(active.ledger.retention);
        }
        if former.alerts != active.alerts || former.notify != active.notify {
            self.alerting.set(active).await;
        }
        self.dead_letters.set(active).await;
        self.drain_timeout.send_replace(active.shutdown.drain_timeout);
        self.watched.send_replace(active.notify.directories().to_vec());
        self.redeclarer.set(active);
        self.observability.set_admin_users(active);
        let declare_changed = former.topology.declare != active.topology.declare;
        let collect_changed = former.dead_letters != active.dead_letters;
        if former.management != active.management
            || former.topology() != active.topology()
            || declare_changed
            || collect_changed
        {
            self.observability.restart_poller(active).await;
        }
        self.generation += 1;
    }

    /// Pauses or resumes a consumer. A consumer that was paused and then removed can still be resumed.
    async fn set_paused(
        &mut self,
        consumer: String,
        paused: bool,
        permit: &Permit,
    ) -> Result<PauseReport, ControlError> {
        let is_known = self.config.consumers.contains_key(&consumer);
        if !is_known && (paused || self.pauses.since(&consumer).is_none()) {
            let known = self.config.consumers.keys().cloned().collect();
            return Err(ControlError::UnknownConsumer { consumer, known });
        }
        if let (false, Some(draining)) = (paused, self.pools.too_many_draining(&consumer)) {
            return Err(ControlError::Busy { consumer, draining });
        }
        permit.begin()?;
        let written = if paused {
            self.pauses.pause(&consumer, Timestamp::now()).await
        } else {
            self.pauses.resume(&consumer).await
        };
        let changed = written.map_err(|error| {
            error!(consumer, paused, error = %chain(&error), "cannot write the pause to disk, so nothing was changed");
            ControlError::NotPersisted { reason: chain(&error) }
        })?;
        if changed {
            self.pools.apply(&self.config.consumers, &self.pauses);
            self.pools.wait_for_handover().await;
            match paused {
                true => warn!(consumer, "paused: consumes nothing until it is resumed, also after a restart"),
                false => info!(consumer, "resumed"),
            }
        }
        Ok(PauseReport { consumer, paused, changed })
    }
}

/// Most changed keys in an entry of the journal. Their values are not in it.
const MAX_KEYS: usize = 100;

fn reload_entry(by: &str, actor: &str, report: &ReloadReport) -> NewJournalEntry {
    let changed: Vec<_> = report.changes.iter().map(|change| change.key.as_str()).take(MAX_KEYS).collect();
    let result = json!({
        "outcome": report.outcome, "generation": report.generation, "changed": changed,
        "changed_count": report.changes.len(), "problems": report.problems.len(),
    });
    NewJournalEntry::new(Timestamp::now(), actor, JournalAction::Reload, &json!({ "by": by }), &result)
}

fn pause_entry(actor: &str, PauseReport { consumer, paused, changed }: &PauseReport) -> NewJournalEntry {
    let action = if *paused { JournalAction::Pause } else { JournalAction::Resume };
    let (subject, result) = (json!({ "consumer": consumer }), json!({ "changed": changed }));
    NewJournalEntry::new(Timestamp::now(), actor, action, &subject, &result)
}
