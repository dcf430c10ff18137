//! The claim of a notification, so that of several instances with one ledger only one delivers it.
//!
//! ```text
//! claim ─► delivered before
//!       ─► claimed ─► server accepts ─► recorded, which ends the claim
//!                  ─► failure ─► released
//!       ─► held by another instance until its lease ends: wait, at most as long as a delivery may
//! ```
//! An instance that was killed leaves its claim until the lease ends. What it had delivered and not recorded is delivered again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::instance;
use crate::ledger::{FailedDelivery, LedgerEntry, Recorded};
use crate::pipeline::{HandlerError, HandlerInput, Interruption, LedgerAccess};

/// How much longer than needed a lease is renewed for: the time that recording it may take.
const RENEWAL_MARGIN: Duration = Duration::from_secs(5);
/// The least time between two attempts to claim the same notification.
const MIN_WAIT: Duration = Duration::from_millis(50);
/// The most: the other instance may release it before its lease ends.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The exclusive right to deliver a notification.
#[derive(Debug)]
pub struct Lease<'a> {
    ledger: LedgerAccess<'a>,
    id: &'a str,
    owner: Arc<str>,
    until: Instant,
    /// How long the delivery has waited for another instance.
    waited: Duration,
}

impl<'a> Lease<'a> {
    /// Claims a notification for this time. Waits while another instance delivers it. `None`: it was delivered before.
    ///
    /// # Errors
    /// The ledger was closed, or another instance still delivers it.
    pub async fn claim(input: HandlerInput<'a>, id: &'a str, time: Duration) -> Result<Option<Self>, HandlerError> {
        let _suspended = input.ledger.suspend_deadline();
        let mut lease = Lease {
            ledger: input.ledger,
            id,
            owner: instance::owner().into(),
            until: Instant::now(),
            waited: Duration::ZERO,
        };
        let max_hold = input.steps.0.map_or(Duration::MAX, |services| services.max_hold());
        let begun = Instant::now();
        let mut wait = MIN_WAIT;
        loop {
            match lease.record(time).await? {
                Recorded::New => {
                    lease.waited = begun.elapsed();
                    return Ok(Some(lease));
                }
                Recorded::Held => {}
                Recorded::Duplicate
                | Recorded::Unfinished
                | Recorded::Undone
                | Recorded::Cancelled
                | Recorded::InProgress
                | Recorded::Conflict(_) => return Ok(None),
            }
            let left = max_hold.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(HandlerError::Interrupted(Interruption::TakenOver));
            }
            sleep(wait.min(left)).await;
            wait = (wait * 2).min(MAX_WAIT);
        }
    }

    /// Extends the lease if less than this time is left of it. `false`: another instance has delivered the notification.
    ///
    /// # Errors
    /// The ledger was closed, or another instance has taken the notification over.
    pub(super) async fn cover(&mut self, time: Duration) -> Result<bool, HandlerError> {
        // Recording may take long, during an outage of the ledger: then what was asked for has ended before it is granted.
        while self.until.saturating_duration_since(Instant::now()) < time {
            match self.record(time + RENEWAL_MARGIN).await? {
                Recorded::New => {}
                Recorded::Held => return Err(HandlerError::Interrupted(Interruption::TakenOver)),
                Recorded::Duplicate
                | Recorded::Unfinished
                | Recorded::Undone
                | Recorded::Cancelled
                | Recorded::InProgress
                | Recorded::Conflict(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// How long the delivery has waited for another instance.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// Ends the claim of a notification that was not delivered, so that the next attempt need not wait, and records why.
    ///
    /// # Errors
    /// The ledger was closed.
    pub async fn release(self, failed: Vec<FailedDelivery>) -> Result<(), HandlerError> {
        let entry = LedgerEntry::ReleaseNotification { id: self.id.to_owned(), owner: self.owner, failed };
        self.ledger.record(entry).await.map(drop)
    }

    async fn record(&mut self, time: Duration) -> Result<Recorded, HandlerError> {
        let (asked_at, at) = (Instant::now(), Timestamp::now());
        let until = at.checked_add(time).unwrap_or(Timestamp::MAX);
        let (id, owner) = (self.id.to_owned(), Arc::clone(&self.owner));
        let recorded = self.ledger.record(LedgerEntry::ClaimNotification { id, owner, at, until }).await?;
        self.until = asked_at + time;
        Ok(recorded)
    }
}
