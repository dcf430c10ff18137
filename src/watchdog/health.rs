//! The tasks that are stuck now, shared between the watchdog and its readers.
//!
//! It only stores what the watchdog found; it never checks anything itself.

use std::sync::{Arc, Mutex, PoisonError};

use super::Stuck;

/// The tasks that are stuck now; clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Vec<Stuck>>>);

impl Health {
    /// The tasks that are stuck now; empty in normal operation.
    pub fn stuck(&self) -> Vec<Stuck> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, stuck: Vec<Stuck>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stuck;
    }
}
