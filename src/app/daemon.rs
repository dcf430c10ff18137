//! The running daemon, as far as it changes while it runs: obeys one command after the other until a shutdown begins.
//!
//! It starts and retires pools, and never works on a message.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::observability::Observability;
use super::pauses::Pauses;
use super::pools::Pools;
use super::reload::{self, Plan};
use super::retention::Retention;
use crate::amqp::Connector;
use crate::chain::chain;
use crate::config::{Config, Sources};
use crate::control::{CommandReceiver, ControlCommand, ControlError, PauseReport, ReloadReport};
use crate::ledger::SqliteLedger;
use crate::shutdown::Shutdown;
use crate::status::LastReload;
use crate::systemd::Service;
use crate::telemetry::LevelSwitch;

/// What a command may change.
pub(super) struct Daemon {
    /// What is in force.
    pub config: Config,
    /// Counts the configurations in force since the start.
    pub generation: u64,
    pub sources: Sources,
    pub link: Connector,
    pub pools: Pools,
    pub pauses: Pauses,
    pub observability: Observability,
    pub retention: Retention,
    pub ledger: Arc<SqliteLedger>,
    pub level: LevelSwitch,
    pub drain_timeout: watch::Sender<Duration>,
    pub service: Service,
    pub shutdown: Shutdown,
}

/// Waits for the start. Meanwhile the last wish for a reload is kept, to be fulfilled after it; to whatever else is asked
/// the answer is that it is too early.
pub(super) async fn hold_back<T>(
    start: impl Future<Output = T>,
    commands: &mut CommandReceiver,
) -> (T, Option<ControlCommand>) {
    tokio::pin!(start);
    let mut kept = None;
    loop {
        // Cancel-safe: the start is kept, and a command not received now is received by the next turn.
        tokio::select! {
            started = &mut start => return (started, kept),
            Some(command) = commands.recv() => match command {
                ControlCommand::Reload { by, .. } => {
                    info!(by, "still starting; the configuration is read again after it");
                    kept = Some(command);
                }
                ControlCommand::SetPaused { consumer, paused, .. } => {
                    warn!(consumer, paused, "still starting: neither paused nor resumed");
                }
            },
        }
    }
}

impl Daemon {
    /// Obeys `first`, and then what comes, until a shutdown begins: that wins over a reload under way.
    pub async fn obey(&mut self, first: Option<ControlCommand>, mut commands: CommandReceiver) {
        if let Some(command) = first {
            self.carry_out(command).await;
        }
        let shutdown = self.shutdown.clone();
        loop {
            // Cancel-safe: `outdated` and `ended` say so themselves, and the others lose nothing.
            tokio::select! {
                () = shutdown.begun() => return,
                // Whatever came would fail, be retried, most likely here, and be dead-lettered in the end.
                () = self.ledger.outdated() => return shutdown.begin(),
                Some(command) = commands.recv() => self.carry_out(command).await,
                () = self.pools.ended() => self.former_ended().await,
            }
        }
    }

    /// Whoever asked may be gone; a command dropped unanswered says that it was not the time.
    async fn carry_out(&mut self, command: ControlCommand) {
        match command {
            ControlCommand::Reload { by, answer } => {
                if let Some(verdict) = self.reload(by).await {
                    let _ = answer.send(verdict);
                }
            }
            ControlCommand::SetPaused { consumer, paused, answer } => {
                let outcome = self.set_paused(consumer, paused).await;
                let _ = answer.send(outcome);
            }
        }
    }

    /// A former pool has finished. If it was one of another queue than its consumer's now, the counts of both, which the
    /// poller left alone, can be told apart again.
    async fn former_ended(&mut self) {
        let elsewhere = || self.observability.live.consumers().iter().filter(|one| one.drains_elsewhere).count();
        let before = elsewhere();
        self.pools.show(&self.config, &self.pauses);
        if elsewhere() < before {
            self.observability.poll(&self.config).await;
        }
    }

    /// Reads the configuration again and puts in force what can be. `None` if a shutdown came first.
    async fn reload(&mut self, by: &'static str) -> Option<ReloadReport> {
        info!(by, "reading the configuration again");
        // Until this returns, with whatever verdict, the service manager knows that it is under way.
        let _reloading = self.service.reloading();
        let shutdown = self.shutdown.clone();
        // Cancel-safe: until the plan is made nothing has changed here; what was declared on the broker may stay.
        let planned = tokio::select! {
            planned = reload::plan(&self.sources, &self.config, &self.link, &mut self.pools, &self.pauses) => planned,
            () = shutdown.begun() => return None,
        };
        // Room may have been made meanwhile.
        self.former_ended().await;
        let log_by = self.config.log.level;
        let verdict = match planned {
            Ok(plan) => self.put_in_force(plan).await,
            Err(refused) => refused.verdict(self.generation),
        };
        // The verdict is to be seen if either level shows it.
        self.level.set(tracing::Level::from(log_by).max(self.config.log.level.into()));
        reload::tell(by, &verdict);
        self.level.set(self.config.log.level.into());
        let last = LastReload { at: Timestamp::now(), by: by.to_owned(), report: verdict.clone() };
        self.observability.live.reloaded(last);
        Some(verdict)
    }

    /// The pools first: that is all that can fail, and it changes nothing then.
    async fn put_in_force(&mut self, plan: Plan) -> ReloadReport {
        let Plan { next, changes, notes } = plan;
        if next != self.config {
            if let Err(error) = self.pools.apply(&next, &self.pauses) {
                let refused = reload::Refused { problems: vec![chain(&error)], temporary: false, changes };
                return refused.verdict(self.generation);
            }
            self.pools.taken_over().await;
            let old = std::mem::replace(&mut self.config, next);
            let new = &self.config;
            if old.ledger.retention != new.ledger.retention {
                self.retention.keep(new.ledger.retention);
            }
            self.drain_timeout.send_replace(new.shutdown.drain_timeout);
            if old.management != new.management || old.topology() != new.topology() {
                self.observability.poll(&self.config).await;
            }
            self.generation += 1;
        }
        let outcome = reload::outcome(&changes);
        ReloadReport { outcome, generation: self.generation, changes, problems: Vec::new(), temporary: false, notes }
    }

    /// Pauses or resumes a consumer. A pause of a consumer that is gone can be ended too.
    async fn set_paused(&mut self, consumer: String, pause: bool) -> Result<PauseReport, ControlError> {
        let is_known = self.config.consumers.contains_key(&consumer);
        if !is_known && (pause || self.pauses.since(&consumer).is_none()) {
            let known = self.config.consumers.keys().cloned().collect();
            return Err(ControlError::UnknownConsumer { consumer, known });
        }
        if let (false, Some(draining)) = (pause, self.pools.crowd_of(&consumer)) {
            return Err(ControlError::Busy { consumer, draining });
        }
        let written = if pause {
            self.pauses.pause(&consumer, Timestamp::now()).await
        } else {
            self.pauses.resume(&consumer).await
        };
        let changed = written.map_err(|error| {
            error!(consumer, pause, error = %chain(&error), "cannot remember it, so it is not done");
            ControlError::NotPersisted { reason: chain(&error) }
        })?;
        if changed {
            self.pools.apply(&self.config, &self.pauses).expect("what is in force names handlers that there are");
            self.pools.taken_over().await;
            match pause {
                true => warn!(consumer, "paused: takes nothing in, also after a restart, until it is resumed"),
                false => info!(consumer, "resumed"),
            }
        }
        Ok(PauseReport { consumer, paused: pause, changed })
    }
}
