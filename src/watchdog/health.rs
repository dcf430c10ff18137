//! Which tasks are stuck now, shared between the watchdog and those who report it.

use std::sync::{Arc, Mutex, PoisonError};

use super::Stuck;

/// Who is stuck now. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Vec<Stuck>>>);

impl Health {
    /// Who is stuck now; nobody, mostly.
    pub fn stuck(&self) -> Vec<Stuck> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, stuck: Vec<Stuck>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stuck;
    }
}
