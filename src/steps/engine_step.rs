//! One step as the engine calls it: its services, and how many calls may be made at the same time.
//!
//! It decides when a call may be made, and records nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::circuit_breaker::{BreakerPermit, CircuitBreaker, CircuitBreakers};
use super::command::{ChildProcesses, CommandName, CommandService};
use super::http::HttpService;
use super::service::{StepFailure, StepService};
use super::settings::{ServiceSettings, StepSettings};
use crate::ledger::StepAction;

/// What the steps of all consumers share.
#[derive(Debug, Clone, Default)]
pub struct StepResources {
    /// The children of all commands.
    pub processes: ChildProcesses,
    /// The circuit breakers of all steps.
    pub breakers: CircuitBreakers,
}

/// One step.
pub(super) struct EngineStep {
    pub name: Arc<str>,
    pub settings: StepSettings,
    pub service: Arc<dyn StepService>,
    /// What undoes it, with the timeout of one call.
    pub undo: Option<(Arc<dyn StepService>, Duration)>,
    /// Its calls and those of its undo.
    permits: Arc<Semaphore>,
    /// Of these calls too.
    pub breaker: Option<Arc<CircuitBreaker>>,
}

/// The right to make one call.
pub(super) struct CallPermit {
    _concurrency: OwnedSemaphorePermit,
    breaker: Option<BreakerPermit>,
}

impl CallPermit {
    /// The call has ended: with this failure, or without one.
    pub(super) fn ended(self, failure: Option<&StepFailure>) {
        if let Some(breaker) = self.breaker {
            breaker.ended(failure);
        }
    }
}

impl EngineStep {
    /// Sets up the services of a step. A command has at most as many children as the consumer has workers.
    pub(super) fn new(consumer: &Arc<str>, workers: usize, settings: &StepSettings, resources: &StepResources) -> Self {
        let max_concurrent = settings.max_concurrent;
        let service = |service: &ServiceSettings, name: &Arc<str>, timeout| -> Arc<dyn StepService> {
            match service {
                ServiceSettings::Http(http) => Arc::new(HttpService::new(http.clone(), timeout, max_concurrent)),
                ServiceSettings::Command(command) => {
                    let name = CommandName { consumer: Arc::clone(consumer), step: Arc::clone(name) };
                    let children = workers.min(max_concurrent);
                    Arc::new(CommandService::new(command, name, children, &resources.processes))
                }
            }
        };
        let name: Arc<str> = settings.name.as_str().into();
        let undo_name: Arc<str> = [&*name, "/undo"].concat().into();
        let undo = settings.undo.as_ref();
        EngineStep {
            service: service(&settings.service, &name, settings.timeout),
            undo: undo.map(|undo| (service(&undo.service, &undo_name, undo.timeout), undo.timeout)),
            permits: Arc::new(Semaphore::new(settings.calls_at_once(workers))),
            breaker: settings.circuit_breaker.map(|settings| resources.breakers.breaker(consumer, &name, settings)),
            settings: settings.clone(),
            name,
        }
    }

    /// The right to make a call now; `None` if none may be made.
    pub(super) fn try_permit(&self) -> Option<CallPermit> {
        let concurrency = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let breaker = match &self.breaker {
            Some(breaker) => Some(breaker.try_begin()?),
            None => None,
        };
        Some(CallPermit { _concurrency: concurrency, breaker })
    }

    /// Waits until one more call may be made; `None` if that takes longer than `max_hold`.
    pub(super) async fn permit(&self, max_hold: Duration) -> Option<CallPermit> {
        let permit = async {
            // The semaphore is never closed.
            let concurrency = Arc::clone(&self.permits).acquire_owned().await.ok()?;
            // Last, because a call that the breaker allows must be made at once: all others wait for its end.
            let breaker = match &self.breaker {
                Some(breaker) => Some(breaker.begin().await),
                None => None,
            };
            Some(CallPermit { _concurrency: concurrency, breaker })
        };
        timeout(max_hold, permit).await.ok().flatten()
    }

    /// How long one call may take.
    pub(super) fn timeout(&self, action: StepAction) -> Duration {
        match (action, &self.undo) {
            (StepAction::Undo, Some((_, timeout))) => *timeout,
            (StepAction::Undo, None) | (StepAction::Do, _) => self.settings.timeout,
        }
    }
}
