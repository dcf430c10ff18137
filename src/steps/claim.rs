//! Claims a run and waits, for a limited time, while another instance works on it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::run_error::RunError;
use crate::instance;
use crate::ledger::{ClaimAnswer, ClaimPurpose, LedgerWriter, NewOrder, Recorded, RunClaim, RunKey, StepRun};
use crate::wait_budget::WaitBudget;

/// How much longer than a call a run stays claimed: time to record its end.
pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// A lease that the ledger has accepted later than this, after an outage, is renewed before a call is made.
pub(super) const MAX_LEASE_DELAY: Duration = Duration::from_secs(2);
/// How long a run stays claimed while the events of an answer are published. It is renewed until they are, so that another process
/// need not wait for longer after a crash.
pub(super) const PUBLISHING_LEASE: Duration = Duration::from_secs(10);
/// The least time between two attempts to claim the same run.
const MIN_WAIT: Duration = Duration::from_millis(50);
/// The most: the other instance may end its claim before its lease ends.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The answer to a claim that did not have to wait too long.
pub enum Claimed {
    /// The run is claimed, with a lease that was computed at this time.
    Run(Box<StepRun>, Instant),
    /// The run has no part in what becomes of the failed message.
    NotConcerned,
    /// The order is a duplicate or a conflict.
    NotAccepted(Recorded),
    /// The consumer of this queue has called the order's steps, and they are not all done.
    OtherQueue(Arc<str>),
}

/// Claims a run for the time of one call. Waits while another instance works on it, within the delivery's budget; before that it
/// calls `on_wait`, and the claim asks for no first call any more.
///
/// # Errors
/// The ledger was closed, or another instance still works on the run.
pub async fn claim(
    ledger: &dyn LedgerWriter,
    key: &RunKey,
    mut purpose: ClaimPurpose,
    order: Option<&NewOrder>,
    lease: Duration,
    waits: &WaitBudget,
    mut on_wait: impl FnMut(),
) -> Result<Claimed, RunError> {
    let owner: Arc<str> = instance::owner().into();
    loop {
        let (at, asked_at) = (Timestamp::now(), Instant::now());
        let claim = RunClaim {
            key: key.clone(),
            purpose: purpose.clone(),
            owner: Arc::clone(&owner),
            at,
            until: after(at, lease + LEASE_MARGIN),
            order: order.cloned().map(Box::new),
        };
        match ledger.claim_run(claim).await? {
            ClaimAnswer::Granted(run) => return Ok(Claimed::Run(run, asked_at)),
            ClaimAnswer::NotConcerned => return Ok(Claimed::NotConcerned),
            ClaimAnswer::NotAccepted(answer) => return Ok(Claimed::NotAccepted(answer)),
            ClaimAnswer::OtherQueue { queue } => return Ok(Claimed::OtherQueue(queue)),
            ClaimAnswer::ClaimedByAnother { until } => {
                on_wait();
                if let ClaimPurpose::Work { first, .. } = &mut purpose {
                    *first = None;
                }
                let wait = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                waits.wait_for(sleep(wait.clamp(MIN_WAIT, MAX_WAIT))).await.ok_or(RunError::WaitedTooLong)?;
            }
        }
    }
}

/// The time this long after another.
pub(super) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}
