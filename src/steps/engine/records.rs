//! Records what a worker does with its run, and keeps its claim.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::super::claim::{LEASE_MARGIN, MAX_LEASE_DELAY, after};
use super::super::run_error::RunError;
use super::{Change, RunWork};
use crate::ledger::{EndedCall, RunRecord, RunRecorded, RunState, StepCallEntry};

impl RunWork<'_> {
    /// The claim lasts for the lease from now on: if the ledger took long to record it, it is renewed.
    pub(super) async fn record(&self, mut ended: Option<EndedCall>, mut change: Change) -> Result<(), RunError> {
        loop {
            let leased_at = Instant::now();
            self.record_once(ended.take(), std::mem::take(&mut change.next), change.lease, change.state.take()).await?;
            if change.lease.is_none() || leased_at.elapsed() <= MAX_LEASE_DELAY {
                return Ok(());
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
}
