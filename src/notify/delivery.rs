//! The attempts to deliver one notification: through its channel, or through a fallback while the channel's own server is unavailable.
//!
//! ```text
//! ready     what each provider would send; waits for a server that may be called; may be dropped
//! deliver   the attempts, each with limits of its own; must not be dropped: a server may accept what it has got
//! ```
//! It never records what was delivered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{FutureExt, select_all};
use tokio::time::{Instant, timeout_at};

use super::content::Content;
use super::lease::{Lease, RECORDING_MARGIN};
use super::provider::{AttemptError, Outgoing, Provider, Slot, Unrecorded};
use super::{Channels, Notice, failed_delivery};
use crate::ledger::FailedDelivery;
use crate::pipeline::{HandlerError, Interruption, SharedServices, StepServices};
use crate::recovery::{Failure, FailureKind};
use crate::steps::{FailureCause, StepFailure};

/// The longest time that a server may ask to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How a delivery ended.
#[derive(Debug)]
pub enum Delivered {
    /// It was delivered now.
    Now {
        /// By this provider.
        provider: String,
        /// To this recipient, shortened so that it names nobody.
        recipient: Option<String>,
        /// To be dropped once it is recorded.
        unrecorded: Unrecorded,
    },
    /// Another instance had delivered it meanwhile.
    Before,
}

/// A provider, and what it would send.
struct Candidate {
    provider: Arc<Provider>,
    outgoing: Outgoing,
    recipient: Option<String>,
}

/// A notification whose first attempt may be made, and must be made at once.
pub struct ReadyDelivery {
    channels: Arc<Channels>,
    candidates: Vec<Candidate>,
    index: usize,
    slot: Slot,
}

impl Channels {
    /// Prepares a notification and waits for a server that may be called, at most until the delivery, which has `begun` then, may wait no
    /// longer. What cannot be prepared is added to `failed`. `None`: the order has no address or number, and the channel skips such orders.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The notification cannot be made, or no server may be called in time.
    pub async fn ready(
        self: &Arc<Self>,
        notice: Notice<'_>,
        services: &dyn StepServices,
        begun: Instant,
        failed: &mut Vec<FailedDelivery>,
    ) -> Result<Option<ReadyDelivery>, HandlerError> {
        let content = Content::read(notice.body)
            .map_err(|error| Failure::new(FailureKind::Malformed, "invalid_event", error.to_string()))?;
        let route = self.route(notice.channel)?;
        if route.providers()[0].skips(&content) {
            return Ok(None);
        }
        route.used();
        let mut candidates = Vec::new();
        for (index, provider) in route.providers().iter().enumerate() {
            let recipient = provider.recipient(&content);
            match provider.prepare(notice, route.mail_domain(), &content) {
                Ok(outgoing) => candidates.push(Candidate { provider: Arc::clone(provider), outgoing, recipient }),
                Err(StepFailure { failure, .. }) if index == 0 => {
                    failed.push(failed_delivery(notice.channel, provider, recipient, &failure));
                    return Err(failure.into());
                }
                // A fallback that cannot reach this customer is none.
                Err(_) => {}
            }
        }
        let until = begun + services.max_hold();
        let (index, slot) = timeout_at(until, available(&candidates))
            .await
            .map_err(|_| HandlerError::Interrupted(Interruption::TakenOver))?;
        Ok(Some(ReadyDelivery { channels: Arc::clone(self), candidates, index, slot }))
    }
}

impl ReadyDelivery {
    /// Makes the attempts. Those that fail are added to `failed`.
    ///
    /// # Errors
    /// The failure of the last attempt, or an interruption.
    pub async fn deliver(
        self,
        notice: Notice<'_>,
        services: &SharedServices,
        mut lease: Option<&mut Lease>,
        failed: &mut Vec<FailedDelivery>,
    ) -> Result<Delivered, HandlerError> {
        let ReadyDelivery { channels, candidates, mut index, mut slot } = self;
        loop {
            let Candidate { provider, outgoing, recipient } = &candidates[index];
            if provider.is_log() {
                channels.file_used();
            }
            let attempt = attempt(provider, slot, notice, outgoing, services);
            let attempted = match &mut lease {
                Some(lease) => {
                    if !lease.cover(provider.timeout() + RECORDING_MARGIN).await? {
                        return Ok(Delivered::Before);
                    }
                    lease.extended_during(attempt).await?
                }
                None => attempt.await?,
            };
            let failure = match attempted {
                Ok(unrecorded) => {
                    let (provider, recipient) = (provider.name().to_string(), recipient.clone());
                    return Ok(Delivered::Now { provider, recipient, unrecorded });
                }
                Err(failure) => failure,
            };
            failed.push(failed_delivery(notice.channel, provider, recipient.clone(), &failure.failure));
            let StepFailure { failure, retry_after, cause } = failure;
            let retry_after = retry_after.map(|delay| delay.min(MAX_RETRY_AFTER));
            // Only what was certainly not delivered may be delivered another way, and what may have been is not repeated at once.
            let (next, retry_after) = match cause {
                FailureCause::NotReached => (available_now(&candidates, index + 1).await, retry_after),
                FailureCause::Refused => (None, retry_after),
                FailureCause::Unanswered => (None, retry_after.or(Some(Duration::ZERO))),
            };
            match next {
                Some(next) => (index, slot) = next,
                None => return Err(failure.with_retry_after(retry_after).into()),
            }
        }
    }
}

/// One attempt, counted.
async fn attempt(
    provider: &Provider,
    slot: Slot,
    notice: Notice<'_>,
    outgoing: &Outgoing,
    services: &SharedServices,
) -> Result<Result<Unrecorded, StepFailure>, HandlerError> {
    let counted = services.counters.channels().begun(notice.channel, provider.name());
    let failure = match provider.deliver(notice, outgoing).await {
        Ok(()) => None,
        Err(AttemptError::Failed(failure)) => Some(failure),
        Err(AttemptError::Interrupted(error)) => return Err(error),
    };
    let unrecorded = slot.ended(failure.as_ref());
    counted.ended(failure.as_ref().map(|failure| &failure.failure));
    Ok(failure.map_or(Ok(unrecorded), Err))
}

/// The first provider that may be called, waiting until one may if none does.
async fn available(candidates: &[Candidate]) -> (usize, Slot) {
    if let Some(found) = available_now(candidates, 0).await {
        return found;
    }
    let waits = candidates.iter().enumerate();
    let waits = waits.map(|(index, candidate)| async move { (index, candidate.provider.slot().await) }.boxed());
    select_all(waits).await.0
}

/// The first provider, from this one on, whose circuit breaker allows an attempt. One that is busy is waited for.
async fn available_now(candidates: &[Candidate], from: usize) -> Option<(usize, Slot)> {
    for (index, candidate) in candidates.iter().enumerate().skip(from) {
        if let Some(slot) = candidate.provider.try_slot().await {
            return Some((index, slot));
        }
    }
    None
}
