//! Claims: of two copies of a message that arrive at the same moment, the second waits until the first is done.
//!
//! Only within one handler of one process; a claim ends with its guard, whatever becomes of the work. It never decides what a
//! copy is.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// The identities being worked on.
#[derive(Debug, Default)]
pub(super) struct Claims {
    identities: Mutex<HashSet<String>>,
    released: Notify,
}

/// The right to work on an identity; given up when dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    identity: &'a str,
}

impl Claims {
    /// Waits until nobody else works on this identity. Cancel-safe: nothing is claimed until it returns.
    pub(super) async fn claim<'a>(&'a self, identity: &'a str) -> Claim<'a> {
        while !self.insert(identity) {
            let released = self.released.notified();
            tokio::pin!(released);
            // From here on a release is noticed; it may have come before.
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
        assert!(second.as_mut().now_or_never().is_none(), "another's end is not the first's");
        drop(first);
        assert!(second.now_or_never().is_some());
        assert!(claims.claim("a").now_or_never().is_some());
    }
}
