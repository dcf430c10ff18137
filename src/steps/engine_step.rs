//! One step as the engine calls it: its services, and how many calls may be made at the same time.
//!
//! It decides when a call may be made, and records nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::circuit_breaker::{BreakerKind, BreakerPermit, CircuitBreaker, CircuitBreakers};
use super::command::{ChildProcesses, CommandName, CommandService};
use super::http::HttpService;
use super::service::{StepFailure, StepService};
use super::settings::{ServiceSettings, StepSettings};
use crate::ledger::StepAction;
use crate::wait_budget::WaitBudget;

/// How many calls may be recorded, as a multiple of those that may be made at the same time: recording one takes longer than many
/// services take to answer, and must not leave their places empty.
const RECORDED_CALLS: usize = 4;
/// How long a first call waits until it may be recorded together with the claim of its run. Later it is recorded by itself.
const ADMISSION_WAIT: Duration = Duration::from_secs(1);

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
    /// Its calls that are recorded or made, and those of its undo.
    admissions: Arc<Semaphore>,
    /// Those of them that are made.
    permits: Arc<Semaphore>,
    /// Of these calls too.
    pub breaker: Option<Arc<CircuitBreaker>>,
}

/// The right to record one call, and to make it as soon as others have ended.
pub(super) struct Admission(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit);

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
            admissions: Arc::new(Semaphore::new(RECORDED_CALLS * settings.calls_at_once(workers))),
            permits: Arc::new(Semaphore::new(settings.calls_at_once(workers))),
            breaker: settings
                .circuit_breaker
                .map(|settings| resources.breakers.breaker(consumer, BreakerKind::Step, &name, settings)),
            settings: settings.clone(),
            name,
        }
    }

    /// The right to record a call together with something else. `None` if the service may be unavailable, or others wait for too
    /// long already.
    pub(super) async fn early_admission(&self) -> Option<Admission> {
        if self.may_be_unavailable() { None } else { timeout(ADMISSION_WAIT, self.admit()).await.ok().flatten() }
    }

    /// The right to record a call together with the end of the one before it, which must not wait.
    pub(super) fn admission_now(&self) -> Option<Admission> {
        let is_free = !self.may_be_unavailable();
        is_free.then(|| Arc::clone(&self.admissions).try_acquire_owned().ok().map(Admission)).flatten()
    }

    /// Whether its calls may have to wait until the service is available again.
    pub(super) fn may_be_unavailable(&self) -> bool {
        self.breaker.as_ref().is_some_and(|breaker| !breaker.is_closed())
    }

    /// Waits until one more call may be recorded; `None` if that takes too long.
    pub(super) async fn admission(&self, waits: &WaitBudget) -> Option<Admission> {
        waits.wait_for(self.admit()).await.flatten()
    }

    async fn admit(&self) -> Option<Admission> {
        if let Ok(admission) = Arc::clone(&self.admissions).try_acquire_owned() {
            return Some(Admission(admission));
        }
        // The semaphore is never closed.
        let admission = Arc::clone(&self.admissions).acquire_owned().boxed().await;
        admission.ok().map(Admission)
    }

    /// Waits until one more call may be made; `None` if that takes too long.
    pub(super) async fn permit(&self, waits: &WaitBudget) -> Option<CallPermit> {
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
        waits.wait_for(permit).await.flatten()
    }

    /// How long one call may take.
    pub(super) fn timeout(&self, action: StepAction) -> Duration {
        match (action, &self.undo) {
            (StepAction::Undo, Some((_, timeout))) => *timeout,
            (StepAction::Undo, None) | (StepAction::Do, _) => self.settings.timeout,
        }
    }
}
