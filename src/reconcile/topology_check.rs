//! Compares the broker with the topology again and again, in a task of its own, so that slow answers delay nothing else.
//!
//! It only reads. If something is missing, it requests a declaration from the task that declares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::audit::{Audit, audit};
use crate::amqp::Redeclaration;
use crate::chain::chain;
use crate::management::ManagementClient;
use crate::topology::Topology;

/// The shortest pause between two comparisons.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// How long one comparison may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);
/// The time that each declaration adds to the pause between two comparisons, which limits the requests a second.
const PAUSE_PER_DECLARATION: Duration = Duration::from_millis(100);

/// The running comparison.
#[derive(Debug)]
pub(super) struct TopologyCheck {
    latest: watch::Receiver<Option<Arc<Audit>>>,
    _task: AbortOnDropHandle<()>,
}

impl TopologyCheck {
    /// Compares now, then every `every`, and after each declaration of the topology.
    pub fn start(
        client: ManagementClient,
        topology: Arc<Topology>,
        longest_holds: BTreeMap<String, Duration>,
        every: Duration,
        redeclaration: Redeclaration,
    ) -> Self {
        let (sender, latest) = watch::channel(None);
        let task = tokio::spawn(async move {
            let declarations = u32::try_from(topology.declarations().len()).unwrap_or(u32::MAX);
            let pause = every.max(PAUSE_PER_DECLARATION.saturating_mul(declarations));
            let mut answers = redeclaration.answers();
            let mut was_incomplete = false;
            loop {
                match timeout(CHECK_TIMEOUT, client.observe(&topology)).await {
                    Ok(Ok(observed)) => {
                        let audit = audit(&topology, &observed).with_consumer_timeouts(&longest_holds, &observed);
                        let is_incomplete = !audit.missing.is_empty();
                        if is_incomplete {
                            redeclaration.request();
                        } else if was_incomplete {
                            // Someone else may have declared it, of which orderd's connections learn nothing.
                            redeclaration.repaired();
                        }
                        was_incomplete = is_incomplete;
                        sender.send_replace(Some(Arc::new(audit)));
                    }
                    // The poller reports that the API does not answer.
                    Ok(Err(error)) => debug!(error = %chain(&error), "cannot compare the topology with the broker"),
                    Err(_) => debug!("cannot compare the topology with the broker in time"),
                }
                sleep(MIN_PAUSE.min(pause)).await;
                // Cancel-safe: both only wait. The sender of the answers is kept by `redeclaration`.
                tokio::select! {
                    () = sleep(pause.saturating_sub(MIN_PAUSE)) => {}
                    _ = answers.changed() => {}
                }
            }
        });
        TopologyCheck { latest, _task: AbortOnDropHandle::new(task) }
    }

    /// The latest result, if it has not been taken yet.
    pub fn take(&mut self) -> Option<Arc<Audit>> {
        if self.latest.has_changed().unwrap_or(false) { self.latest.borrow_and_update().clone() } else { None }
    }
}
