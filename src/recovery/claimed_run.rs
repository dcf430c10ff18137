//! The run of steps that a message has claimed, which copies of the message state in a header. So it is found, and undone, whatever the
//! configuration says now about ids and names.
//!
//! It believes the header on proven copies only.

use std::sync::{Mutex, PoisonError};

use crate::ledger::{MessageHash, RunKey};
use crate::message::{Delivery, HeaderValue, Provenance, names};

/// A claim of a run by a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedRun {
    /// The run.
    pub key: RunKey,
    /// The message, as it was when it claimed the run.
    pub message: MessageHash,
    /// The round of the run.
    pub round: u32,
}

impl ClaimedRun {
    /// The claim that a copy states.
    pub fn read(delivery: &Delivery, provenance: Provenance<'_>) -> Option<Self> {
        let stated = delivery.message.headers.get(names::RUN).filter(|_| provenance.is_copy)?;
        let mut parts = stated.as_text()?.splitn(4, '/');
        let (round, digits) = (parts.next()?.parse().ok()?, parts.next()?);
        let (scope, identity) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        Some(ClaimedRun { key: RunKey { scope, identity }, message: hash(digits)?, round })
    }

    /// The value of the header: `<round>/<hash>/<consumer, empty for orders>/<identity>`. No consumer has a slash in its name.
    pub(super) fn header(&self) -> HeaderValue {
        let digits: String = self.message.iter().map(|byte| format!("{byte:02x}")).collect();
        let RunKey { scope, identity } = &self.key;
        HeaderValue::Text(format!("{}/{digits}/{scope}/{identity}", self.round))
    }
}

fn hash(digits: &str) -> Option<MessageHash> {
    let mut hash = MessageHash::default();
    if digits.len() != 2 * hash.len() || !digits.is_ascii() {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

/// What a delivery has claimed, while attempts at it are made.
#[derive(Debug, Default)]
pub struct ClaimNote(Mutex<Option<Box<ClaimedRun>>>);

impl ClaimNote {
    /// The delivery has claimed this run.
    pub fn set(&self, claimed: ClaimedRun) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(claimed));
    }

    /// The run that it has claimed last.
    pub fn get(&self) -> Option<ClaimedRun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DeliveryId, Message, Sender};

    #[test]
    fn a_claim_is_read_from_proven_copies_only_whatever_the_identity_contains() {
        for (scope, identity) in [("", "ord-2"), ("invoices", "a/b//ü/from/shop"), ("", "/")] {
            let key = RunKey { scope: scope.to_owned(), identity: identity.to_owned() };
            let claimed = ClaimedRun { key, message: [0xa7; 32], round: 3 };
            let message = Message { headers: [(names::RUN.to_owned(), claimed.header())].into(), ..Message::default() };
            let id = DeliveryId { connection: 1, tag: 1 };
            let (exchange, routing_key) = ("orders.requeue".to_owned(), "order_queue".to_owned());
            let delivery = Delivery { id, exchange, routing_key, redelivered: false, message };
            let read = |is_copy| {
                let provenance = Provenance { sender: Sender::Own, is_copy, generated: None, cloud_event: None };
                ClaimedRun::read(&delivery, provenance)
            };
            assert_eq!((read(true), read(false)), (Some(claimed), None));
        }
        assert_eq!(hash(&"é".repeat(32)), None);
    }
}
