//! A reload up to the point at which it changes anything: the new configuration read, compared, checked on the broker.
//!
//! Whatever is wrong refuses it whole. Once a plan is made, putting it in force does not fail.

use tracing::{info, warn};

use super::broker::{self, Policies};
use super::orphaned_objects::orphaned_objects;
use super::pauses::Pauses;
use super::pools::Pools;
use crate::amqp::Connector;
use crate::chain::chain;
use crate::config::{self, Config, Sources};
use crate::control::{ConfigChange, Effect, ReloadOutcome, ReloadReport};
use crate::{config_watcher, handlers};

/// What is to be put in force.
pub(super) struct Plan {
    /// The new configuration, but for what needs a restart.
    pub next: Config,
    /// Each changed key.
    pub changes: Vec<ConfigChange>,
    /// What a person should know besides.
    pub notes: Vec<String>,
}

/// Why nothing is put in force.
pub(super) struct Refused {
    pub problems: Vec<String>,
    /// Whether they pass by themselves.
    pub temporary: bool,
    /// As far as they could be told.
    pub changes: Vec<ConfigChange>,
}

impl Refused {
    pub fn verdict(self, generation: u64) -> ReloadReport {
        let Refused { problems, temporary, changes } = self;
        ReloadReport { outcome: ReloadOutcome::Rejected, generation, changes, problems, temporary, notes: Vec::new() }
    }
}

/// Reads the configuration again and makes sure that it can be put in force. What it needs on the broker is declared, and
/// stays declared whatever happens then. Takes at the most a minute and a half. Cancel-safe.
///
/// # Errors
/// [`Refused`], with every problem of the file, or the one that the broker or the pools have with it.
pub(super) async fn plan(
    sources: &Sources,
    old: &Config,
    link: &Connector,
    pools: &mut Pools,
    pauses: &Pauses,
) -> Result<Plan, Refused> {
    let reread = config_watcher::reread(sources, &handlers::NAMES, old).await;
    let loaded =
        reread.map_err(|error| Refused { problems: error.problems(), temporary: false, changes: Vec::new() })?;
    let changes = config::changes(old, &loaded.config);
    let next = config::in_force(old, &loaded.config);
    let refused = |problem, temporary| Refused { problems: vec![problem], temporary, changes: changes.clone() };
    pools.room(&next, pauses).await.map_err(|crowded| refused(crowded.to_string(), true))?;
    let mut notes: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    if needs_broker(old, &next) {
        match broker::extend(link, &next).await.map_err(|error| refused(chain(&error), error.passes()))? {
            Policies::Judged => {}
            Policies::Untold => notes.push(
                "the broker does not tell which policies rule the new queues; check that none drops messages"
                    .to_owned(),
            ),
        }
    }
    notes.extend(orphaned_objects(old, &next));
    Ok(Plan { next, changes, notes })
}

/// Whether something must be there that nobody has looked for yet.
fn needs_broker(old: &Config, next: &Config) -> bool {
    let (before, after) = (old.topology(), next.topology());
    old.topology.declare != next.topology.declare
        || after.declarations().iter().any(|step| !before.declarations().contains(step))
}

/// What became of changes that were put in force as far as they could be.
pub(super) fn outcome(changes: &[ConfigChange]) -> ReloadOutcome {
    if changes.is_empty() {
        ReloadOutcome::Unchanged
    } else if changes.iter().all(|change| change.effect == Effect::Live) {
        ReloadOutcome::Applied
    } else {
        ReloadOutcome::PartlyApplied
    }
}

/// Logs a verdict: one line for the whole, and one for each change, problem and note.
pub(super) fn tell(by: &str, verdict: &ReloadReport) {
    let ReloadReport { outcome, generation, changes, problems, temporary: _, notes } = verdict;
    match outcome {
        ReloadOutcome::Unchanged => info!(by, generation, "reloaded: the configuration says what is in force already"),
        ReloadOutcome::Applied => info!(by, generation, "reloaded: all of the configuration is in force"),
        ReloadOutcome::PartlyApplied => warn!(by, generation, "reloaded: part of the configuration is in force"),
        ReloadOutcome::Rejected => warn!(by, generation, "not reloaded: what was in force stays in force, whole"),
    }
    for problem in problems {
        warn!(problem, "not reloaded");
    }
    for ConfigChange { key, from, to, effect } in changes {
        match (outcome, effect) {
            (ReloadOutcome::Rejected, _) => warn!(key, from, to, "not changed"),
            (_, Effect::Live) => info!(key, from, to, "changed"),
            (_, Effect::Restart) => warn!(key, from, to, "changes with a restart"),
            (_, Effect::Broker) => warn!(key, from, to, "changed, but the broker goes on by what it has"),
        }
    }
    for note in notes {
        warn!(note, "reloaded");
    }
}
