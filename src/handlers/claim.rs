//! Claims on message identities: of two copies of a message that arrive at the same time, the second waits for the first.
//!
//! A claim is valid within one handler of one process, and ends when it is dropped. The caller decides which messages are
//! copies of each other.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// The identities that are being processed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    identities: Mutex<HashSet<String>>,
    released: Notify,
}

/// The exclusive right to process an identity; released when dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    identity: &'a str,
}

impl Claims {
    /// Waits until the identity is not claimed, and claims it. Cancel-safe: nothing is claimed until it returns.
    pub(super) async fn claim<'a>(&'a self, identity: &'a str) -> Claim<'a> {
        while !self.insert(identity) {
            let released = self.released.notified();
            tokio::pin!(released);
            // From here on, releases are noticed. One may have happened before, so try again.
            released.as_mut().enable();
            if self.insert(identity) {
                break;
            }
            released.await;
        }
        Claim { claims: self, identity }
    }

    fn insert(&self, identity: &str) -> bool {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(identity.to_owned())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.identities.lock().unwrap_or_else(PoisonError::into_inner).remove(self.identity);
        self.claims.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn the_second_copy_waits_for_the_first_and_others_do_not() {
        let claims = Claims::default();
        let first = claims.claim("a").await;
        let second = claims.claim("a");
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        assert!(claims.claim("b").now_or_never().is_some());
        assert!(second.as_mut().now_or_never().is_none(), "the claim of another identity was released");
        drop(first);
        assert!(second.now_or_never().is_some());
        assert!(claims.claim("a").now_or_never().is_some());
    }
}
