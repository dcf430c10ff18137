//! Claims on message identities: of two copies of a message that arrive at the same time, the second waits for the first.
//!
//! All handlers of a process share the claims, so that they also hold between the former and the new handler of a consumer
//! during a reload. A claim ends when it is dropped. The caller decides which messages are copies of each other.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::config::MessageKind;

/// The identities that are being processed.
#[derive(Debug, Default)]
pub struct Claims {
    /// With the kind of message: an event and a notification may have the same identity.
    identities: Mutex<HashSet<(MessageKind, String)>>,
    released: Notify,
}

/// The exclusive right to process an identity; released when dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    claimed: (MessageKind, String),
}

impl Claims {
    /// Waits until the identity is not claimed, and claims it. Cancel-safe: nothing is claimed until it returns.
    pub(super) async fn claim(&self, kind: MessageKind, identity: &str) -> Claim<'_> {
        let claimed = (kind, identity.to_owned());
        while !self.insert(&claimed) {
            let released = self.released.notified();
            tokio::pin!(released);
            // From here on, releases are noticed. One may have happened before, so try again.
            released.as_mut().enable();
            if self.insert(&claimed) {
                break;
            }
            released.await;
        }
        Claim { claims: self, claimed }
    }

    fn insert(&self, claimed: &(MessageKind, String)) -> bool {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(claimed.clone())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.identities.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.claimed);
        self.claims.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn the_second_copy_waits_for_the_first_and_others_do_not() {
        use MessageKind::{Analytics, Notification};
        let claims = Claims::default();
        let first = claims.claim(Analytics, "a").await;
        let second = claims.claim(Analytics, "a");
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        assert!(claims.claim(Analytics, "b").now_or_never().is_some());
        assert!(claims.claim(Notification, "a").now_or_never().is_some());
        assert!(second.as_mut().now_or_never().is_none(), "the claim of another identity was released");
        drop(first);
        assert!(second.now_or_never().is_some());
        assert!(claims.claim(Analytics, "a").now_or_never().is_some());
    }
}
