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

/// What one attempt to claim a run has come to.
pub enum ClaimAttempt {
    /// The ledger has answered.
    Answered(Claimed),
    /// Another instance works on the run. It is to be tried again after this time.
    Wait(Duration),
}

/// Claims a run for the time of one call. Waits while another instance works on it, within the delivery's budget; before that it
/// calls `on_wait`, and the claim asks for no first call any more.
///
/// # Errors
/// The ledger was closed, or another instance still works on the run.
pub(super) async fn claim(
    ledger: &dyn LedgerWriter,
    key: &RunKey,
    mut purpose: ClaimPurpose,
    order: Option<&NewOrder>,
    lease: Duration,
    waits: &WaitBudget,
    mut on_wait: impl FnMut(),
) -> Result<Claimed, RunError> {
    loop {
        match try_claim(ledger, key, &purpose, order, lease).await? {
            ClaimAttempt::Answered(claimed) => return Ok(claimed),
            ClaimAttempt::Wait(wait) => {
                on_wait();
                if let ClaimPurpose::Work { first, .. } = &mut purpose {
                    *first = None;
                }
                waits.wait_for(sleep(wait)).await.ok_or(RunError::WaitedTooLong)?;
            }
        }
    }
}

/// Claims a run for the time of one call, without waiting.
///
/// # Errors
/// The ledger was closed.
pub async fn try_claim(
    ledger: &dyn LedgerWriter,
    key: &RunKey,
    purpose: &ClaimPurpose,
    order: Option<&NewOrder>,
    lease: Duration,
) -> Result<ClaimAttempt, RunError> {
    let (at, asked_at) = (Timestamp::now(), Instant::now());
    let claim = RunClaim {
        key: key.clone(),
        purpose: purpose.clone(),
        owner: instance::owner().into(),
        at,
        until: after(at, lease + LEASE_MARGIN),
        order: order.cloned().map(Box::new),
    };
    Ok(ClaimAttempt::Answered(match ledger.claim_run(claim).await? {
        ClaimAnswer::Granted(run) => Claimed::Run(run, asked_at),
        ClaimAnswer::NotConcerned => Claimed::NotConcerned,
        ClaimAnswer::NotAccepted(answer) => Claimed::NotAccepted(answer),
        ClaimAnswer::OtherQueue { queue } => Claimed::OtherQueue(queue),
        ClaimAnswer::ClaimedByAnother { until } => {
            let wait = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
            return Ok(ClaimAttempt::Wait(wait.clamp(MIN_WAIT, MAX_WAIT)));
        }
    }))
}

/// The time this long after another.
pub(super) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}
