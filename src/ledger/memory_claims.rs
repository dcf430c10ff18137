//! The claims and deliveries of notifications of the ledger in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{FailedDelivery, MAX_FAILED_DELIVERIES, NotificationDelivery, Recorded};
use super::trace::TraceEvent;

/// All by the notification's id.
#[derive(Debug, Default)]
pub(super) struct MemoryClaims {
    /// Owner and end of each claim.
    claims: BTreeMap<String, (Arc<str>, Timestamp)>,
    failed: BTreeMap<String, Vec<FailedDelivery>>,
    /// How each was delivered, without the failed attempts, or why it was not.
    delivered: BTreeMap<String, NotificationDelivery>,
}

impl MemoryClaims {
    /// Claims or renews it, unless another owner holds it.
    pub fn claim(&mut self, id: String, owner: Arc<str>, at: Timestamp, until: Timestamp) -> Recorded {
        match self.claims.get(&id) {
            Some((other, held_until)) if *other != owner && *held_until > at => Recorded::Held,
            _ => {
                self.claims.insert(id, (owner, until));
                Recorded::New
            }
        }
    }

    /// Ends the claim of this owner. Returns whether there was one.
    pub fn release(&mut self, id: &str, owner: &Arc<str>, failed: Vec<FailedDelivery>) -> bool {
        self.keep_failed(id, failed);
        let is_own = self.claims.get(id).is_some_and(|(holder, _)| holder == owner);
        if is_own {
            self.claims.remove(id);
        }
        is_own
    }

    /// Ends the claim of any owner.
    pub fn delivered(&mut self, id: &str, mut delivery: NotificationDelivery) {
        self.claims.remove(id);
        self.keep_failed(id, std::mem::take(&mut delivery.failed));
        self.delivered.entry(id.to_owned()).or_insert(delivery);
    }

    /// Keeps the latest ones.
    fn keep_failed(&mut self, id: &str, failed: Vec<FailedDelivery>) {
        let kept = self.failed.entry(id.to_owned()).or_default();
        kept.extend(failed);
        kept.drain(..kept.len().saturating_sub(MAX_FAILED_DELIVERIES));
    }

    /// What a trace shows about the attempts that have failed.
    pub fn failed(&self, id: &str) -> impl Iterator<Item = (Timestamp, TraceEvent)> {
        self.failed.get(id).into_iter().flatten().map(|failed| {
            let FailedDelivery { channel, provider, recipient, kind, code, reason, at } = failed.clone();
            (at, TraceEvent::DeliveryFailed { channel, provider, recipient, kind: kind.to_owned(), code, reason })
        })
    }

    /// What a trace shows about the delivery.
    pub fn notified(&self, id: &str, channel: String) -> TraceEvent {
        let NotificationDelivery { provider, recipient, not_delivered, .. } =
            self.delivered.get(id).cloned().unwrap_or_default();
        match not_delivered {
            Some(code) => TraceEvent::Skipped { channel, code: code.to_owned() },
            None => TraceEvent::Notified { channel, provider, recipient },
        }
    }
}
