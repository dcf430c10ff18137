//! Records what a worker does with its run, keeps its claim, and waits until a recorded call may be made.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::super::claim::{LEASE_MARGIN, MAX_LEASE_DELAY, PUBLISHING_LEASE, after};
use super::super::engine_step::{Admission, CallPermit};
use super::super::run_error::RunError;
use super::{RecordedCall, RunChange, RunWork};
use crate::ledger::{CallOutcome, EndedCall, RunRecord, RunRecorded, RunState, StepAction, StepCallEntry};
use crate::message::{Publication, PublishError};
use crate::recovery::FailureKind;

impl RunWork<'_> {
    /// The claim lasts for the lease from now on: if the ledger took long to record it, it is renewed.
    pub(super) async fn record(&self, mut ended: Option<EndedCall>, mut change: RunChange) -> Result<(), RunError> {
        loop {
            let leased_at = Instant::now();
            self.record_once(ended.take(), std::mem::take(&mut change.next), change.lease, change.state.take()).await?;
            if change.lease.is_none() || leased_at.elapsed() <= MAX_LEASE_DELAY {
                return Ok(());
            }
        }
    }

    /// Publishes the events of an answer. The broker may be away meanwhile, so the claim is renewed until they are confirmed.
    pub(super) async fn publish_claimed(
        &self,
        events: Arc<[Publication]>,
    ) -> Result<Result<(), PublishError>, RunError> {
        let renewal = || RunChange { lease: Some(PUBLISHING_LEASE), ..RunChange::default() };
        self.record(None, renewal()).await?;
        let mut published = self.access.publisher.publish(events);
        loop {
            match timeout(PUBLISHING_LEASE / 2, &mut published).await {
                Ok(published) => return Ok(published),
                Err(_) => self.record(None, renewal()).await?,
            }
        }
    }

    async fn record_once(
        &self,
        ended: Option<EndedCall>,
        next: Option<StepCallEntry>,
        lease: Option<Duration>,
        state: Option<RunState>,
    ) -> Result<(), RunError> {
        let at = Timestamp::now();
        let record = RunRecord {
            key: self.input.key.clone(),
            fence: self.run.fence,
            at,
            until: lease.map(|lease| after(at, lease + LEASE_MARGIN)),
            ended,
            next,
            state,
            failure: None,
            dead_lettered: false,
        };
        match self.access.ledger.record_run(record).await? {
            RunRecorded::Recorded => Ok(()),
            RunRecorded::Stale | RunRecorded::Cancelled => Err(RunError::Lost),
        }
    }

    /// Waits until a recorded call may be made. If that takes long, the lease is renewed.
    pub(super) async fn permit(
        &self,
        index: usize,
        action: StepAction,
        call: RecordedCall,
    ) -> Result<(CallPermit, Option<Admission>), RunError> {
        let admission = match call {
            RecordedCall::Permitted(permit) => return Ok((permit, None)),
            RecordedCall::Admitted(admission) => admission,
        };
        let (step, waits_since) = (&self.engine.steps[index], Instant::now());
        let Some(permit) = step.permit(self.access.waits).await else {
            let not_made = CallOutcome::Failed {
                kind: FailureKind::Transient.as_str(),
                code: "not_called".to_owned(),
                reason: "no call could be made in time".to_owned(),
                uncertain: false,
            };
            self.record(Some(self.ended(index, action, not_made)), RunChange::default()).await?;
            return Err(RunError::WaitedTooLong);
        };
        if waits_since.elapsed() > MAX_LEASE_DELAY / 2 {
            self.record(None, RunChange { lease: Some(step.timeout(action)), ..RunChange::default() }).await?;
        }
        Ok((permit, Some(admission)))
    }
}
