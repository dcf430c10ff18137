//! The claims of notifications of the ledger in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::entry::Recorded;

/// Owner and end of each claim, by the notification's id.
#[derive(Debug, Default)]
pub(super) struct MemoryClaims(BTreeMap<String, (Arc<str>, Timestamp)>);

impl MemoryClaims {
    /// Claims or renews it, unless another owner holds it.
    pub fn claim(&mut self, id: String, owner: Arc<str>, at: Timestamp, until: Timestamp) -> Recorded {
        match self.0.get(&id) {
            Some((other, held_until)) if *other != owner && *held_until > at => Recorded::Held,
            _ => {
                self.0.insert(id, (owner, until));
                Recorded::New
            }
        }
    }

    /// Ends the claim of this owner. Returns whether there was one.
    pub fn release(&mut self, id: &str, owner: &Arc<str>) -> bool {
        let is_own = self.0.get(id).is_some_and(|(holder, _)| holder == owner);
        if is_own {
            self.end(id);
        }
        is_own
    }

    /// Ends the claim of any owner.
    pub fn end(&mut self, id: &str) {
        self.0.remove(id);
    }
}
