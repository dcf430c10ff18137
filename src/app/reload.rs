//! Plans a reload: reads the new configuration, compares it with the active one, and prepares the broker for it.
//!
//! Any problem rejects the whole configuration. It never changes the running daemon; `daemon` applies the plan.

use tracing::{info, warn};

use super::broker_setup::{BrokerSetup, PolicyCheck};
use super::orphaned_objects::orphaned_objects;
use super::pauses::Pauses;
use super::pools::Pools;
use crate::amqp::Connector;
use crate::chain::chain;
use crate::config::{self, Config, Sources};
use crate::config_watcher;
use crate::control::{ConfigChange, Effect, ReloadOutcome, ReloadReport};

/// A configuration that is ready to be applied.
pub(super) struct ReloadPlan {
    /// The new configuration, except for keys that need a restart.
    pub next: Config,
    /// Each changed key.
    pub changes: Vec<ConfigChange>,
    /// How to declare again or check what the configuration needs on the broker, once it is applied. `None` if that was just
    /// declared.
    pub unchecked: Option<BrokerSetup>,
    /// Warnings, and what an operator has to do outside orderd.
    pub notes: Vec<String>,
}

/// Why a configuration was rejected.
pub(super) struct Rejection {
    pub problems: Vec<String>,
    /// The same configuration may be accepted later.
    pub temporary: bool,
    /// The changed keys, if the configuration could be read.
    pub changes: Vec<ConfigChange>,
}

impl Rejection {
    pub fn report(self, generation: u64) -> ReloadReport {
        let Rejection { problems, temporary, changes } = self;
        ReloadReport {
            outcome: ReloadOutcome::Rejected,
            generation,
            changes,
            applied_after_ms: None,
            problems,
            temporary,
            notes: Vec::new(),
        }
    }
}

/// Reads the configuration again and makes sure that it can be applied. Declares now what it adds on the broker; that
/// remains there even if the reload fails afterwards. Takes at most a minute and a half, and does not wait for the broker if
/// it adds nothing. Cancel-safe.
///
/// # Errors
/// [`Rejection`], with every problem of the file, or with the one problem that the broker or the pools have with it.
pub(super) async fn plan(
    sources: &Sources,
    active: &Config,
    connector: &Connector,
    pools: &mut Pools,
    pauses: &Pauses,
) -> Result<ReloadPlan, Rejection> {
    let reread = config_watcher::reread(sources, active).await;
    let loaded =
        reread.map_err(|error| Rejection { problems: error.problems(), temporary: false, changes: Vec::new() })?;
    let changes = config::changes(active, &loaded.config, &loaded.written);
    let next = config::applicable(active, &loaded.config);
    let rejected = |problem, temporary| Rejection { problems: vec![problem], temporary, changes: changes.clone() };
    pools.wait_for_capacity(&next.consumers, pauses).await.map_err(|error| rejected(error.to_string(), true))?;
    let mut notes: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let setup = BrokerSetup::new(&next);
    let extends = setup.extends(&BrokerSetup::new(active));
    if extends {
        let extended = setup.extend(connector).await;
        match extended.map_err(|error| rejected(chain(&error), error.is_temporary()))? {
            PolicyCheck::Passed => {}
            PolicyCheck::Incomplete => notes.push(
                "the broker does not report which policies apply to the new queues; check that none drops messages"
                    .to_owned(),
            ),
        }
        connector.redeclaration().repaired();
    }
    notes.extend(orphaned_objects(active, &next));
    Ok(ReloadPlan { next, changes, unchecked: (!extends).then_some(setup), notes })
}

/// The outcome of applying these changes, with these problems of the broker. Without changes there is nothing to apply,
/// whatever problems the broker has.
pub(super) fn outcome(changes: &[ConfigChange], problems: &[String]) -> ReloadOutcome {
    if changes.is_empty() {
        ReloadOutcome::Unchanged
    } else if problems.is_empty() && changes.iter().all(|change| change.effect == Effect::Live) {
        ReloadOutcome::Applied
    } else {
        ReloadOutcome::PartlyApplied
    }
}

/// Logs one line for the outcome, and one for each change, problem and note.
pub(super) fn log_report(by: &str, report: &ReloadReport) {
    let ReloadReport { outcome, generation, changes, applied_after_ms: _, problems, temporary: _, notes } = report;
    match outcome {
        ReloadOutcome::Unchanged => info!(by, generation, "reloaded: no changes"),
        ReloadOutcome::Applied => info!(by, generation, "reloaded: all changes are active"),
        ReloadOutcome::PartlyApplied => warn!(by, generation, "reloaded: not everything is active"),
        ReloadOutcome::Rejected => warn!(by, generation, "reload rejected, configuration unchanged"),
    }
    for problem in problems {
        match outcome {
            ReloadOutcome::Rejected => warn!(problem, "reload rejected"),
            ReloadOutcome::Unchanged | ReloadOutcome::Applied | ReloadOutcome::PartlyApplied => {
                warn!(problem, "the broker does not match the configuration");
            }
        }
    }
    for ConfigChange { key, from, to, effect } in changes {
        match (outcome, effect) {
            (ReloadOutcome::Rejected, _) => warn!(key, from, to, "not changed"),
            (_, Effect::Live) => info!(key, from, to, "changed"),
            (_, Effect::Restart) => warn!(key, from, to, "changes with a restart"),
            (_, Effect::Broker) => warn!(key, from, to, "changed, except on the broker: see the notes"),
        }
    }
    for note in notes {
        warn!(note, "reloaded");
    }
}
