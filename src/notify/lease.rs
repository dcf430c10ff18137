//! The claim of a notification, so that of several instances with one ledger only one delivers it.
//!
//! ```text
//! claim ─► delivered before
//!       ─► claimed ─► server accepts ─► recorded, which ends the claim
//!                  ─► failure ─► released
//!       ─► held by another instance until its lease ends: wait, at most as long as a delivery may
//! ```
//! While a server takes its time, the claim is extended. An instance that was killed leaves its claim until the lease ends. What it had delivered and not recorded is delivered again.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until};

use crate::instance;
use crate::ledger::{FailedDelivery, LedgerEntry, LedgerWriter, Recorded};
use crate::pipeline::{HandlerError, Interruption, StepServices};

/// How much longer than its attempts a notification stays claimed: time to record it.
pub(super) const RECORDING_MARGIN: Duration = Duration::from_secs(5);
/// How much longer than needed a lease is renewed for, and claimed for at first: time that passes before it is needed.
pub(super) const RENEWAL_MARGIN: Duration = Duration::from_secs(5);
/// How long a lease is extended for while an attempt takes longer than it covers.
const EXTENSION: Duration = Duration::from_secs(15);
/// The least time between two attempts to claim the same notification.
const MIN_WAIT: Duration = Duration::from_millis(50);
/// The most: the other instance may release it before its lease ends.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The exclusive right to deliver a notification.
pub struct Lease {
    ledger: Arc<dyn LedgerWriter>,
    id: String,
    owner: Arc<str>,
    until: Instant,
}

impl Lease {
    /// Claims a notification for this time. Waits while another instance delivers it, at most until its delivery, which has begun then,
    /// may wait no longer. `None`: it was delivered before.
    ///
    /// # Errors
    /// The ledger was closed, or another instance still delivers it.
    pub async fn claim(
        services: &dyn StepServices,
        id: &str,
        time: Duration,
        begun: Instant,
    ) -> Result<Option<Self>, HandlerError> {
        let ledger = services.shared().ledger;
        let mut lease = Lease { ledger, id: id.to_owned(), owner: instance::owner().into(), until: begun };
        let mut wait = MIN_WAIT;
        loop {
            match lease.record(time).await? {
                Recorded::New => return Ok(Some(lease)),
                Recorded::Held => {}
                Recorded::Duplicate
                | Recorded::Unfinished
                | Recorded::Undone
                | Recorded::Cancelled
                | Recorded::InProgress
                | Recorded::UnknownReplay
                | Recorded::Conflict(_) => return Ok(None),
            }
            let left = services.max_hold().saturating_sub(begun.elapsed());
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
                | Recorded::UnknownReplay
                | Recorded::Conflict(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Does this, and meanwhile extends the lease whenever it is about to end.
    pub(super) async fn extended_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let soon = self.until.checked_sub(RECORDING_MARGIN).unwrap_or(self.until);
            // Cancel-safe: it only waits.
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep_until(soon) => {}
            }
            // Cancel-safe: it is then open whether the lease was extended, and it is not needed any more.
            let extended = tokio::select! {
                biased;
                done = &mut work => return done,
                extended = self.record(EXTENSION) => extended,
            };
            if !matches!(extended, Ok(Recorded::New)) {
                // The ledger was closed, or another instance has taken over what cannot be stopped any more.
                return work.await;
            }
        }
    }

    /// Ends the claim of a notification that was not delivered, so that the next attempt need not wait, and records why.
    ///
    /// # Errors
    /// The ledger was closed.
    pub async fn release(self, failed: Vec<FailedDelivery>) -> Result<(), HandlerError> {
        let entry = LedgerEntry::ReleaseNotification { id: self.id, owner: self.owner, failed };
        self.ledger.record(entry).await.map(drop).map_err(HandlerError::from)
    }

    async fn record(&mut self, time: Duration) -> Result<Recorded, HandlerError> {
        let (asked_at, at) = (Instant::now(), Timestamp::now());
        let until = at.checked_add(time).unwrap_or(Timestamp::MAX);
        let (id, owner) = (self.id.clone(), Arc::clone(&self.owner));
        let recorded = self.ledger.record(LedgerEntry::ClaimNotification { id, owner, at, until }).await?;
        self.until = asked_at + time;
        Ok(recorded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::memory::MemoryLedger;

    const TIMEOUT: Duration = Duration::from_secs(20);

    async fn lease() -> Lease {
        let ledger = Arc::new(MemoryLedger::default());
        let mut lease = Lease { ledger, id: "1".to_owned(), owner: "a".into(), until: Instant::now() };
        lease.record(TIMEOUT + RECORDING_MARGIN + RENEWAL_MARGIN).await.unwrap();
        lease
    }

    #[tokio::test(start_paused = true)]
    async fn an_ordinary_attempt_records_one_claim() {
        let mut lease = lease().await;
        let until = lease.until;
        sleep(RENEWAL_MARGIN / 2).await;
        assert!(lease.cover(TIMEOUT + RECORDING_MARGIN).await.unwrap());
        lease.extended_during(sleep(TIMEOUT)).await;
        assert_eq!(lease.until, until);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_minutes_to_answer_keeps_its_notification_claimed() {
        let mut lease = lease().await;
        for _ in 0..10 {
            lease.extended_during(sleep(Duration::from_secs(30))).await;
            assert!(lease.until >= Instant::now() + RECORDING_MARGIN);
        }
    }
}
