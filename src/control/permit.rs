//! Whether a command may still be carried out: not after its caller was refused, or no longer waits.
//!
//! The daemon asks right before it changes anything; the sender cancels when it stops waiting. Exactly one of them is first.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::ControlError;

/// The permission to carry out one command; clones share it.
#[derive(Clone)]
pub struct Permit {
    state: Arc<Mutex<PermitState>>,
    limit: Option<Limit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PermitState {
    /// The command has not begun.
    Waiting,
    /// The daemon carries it out, or has.
    Begun,
    /// It is never carried out.
    Cancelled,
}

#[derive(Clone)]
struct Limit {
    valid_until: Instant,
    is_caller_waiting: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let valid_until = self.limit.as_ref().map(|limit| limit.valid_until);
        f.debug_struct("Permit").field("state", &self.state).field("valid_until", &valid_until).finish()
    }
}

impl Permit {
    /// A permit without a limit, for commands without a caller that waits, such as SIGHUP.
    pub fn unlimited() -> Self {
        Permit { state: Arc::new(Mutex::new(PermitState::Waiting)), limit: None }
    }

    /// A permit to begin before `valid_until`, and only while the caller waits for the answer.
    pub fn limited(valid_until: Instant, is_caller_waiting: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let limit = Limit { valid_until, is_caller_waiting: Arc::new(is_caller_waiting) };
        Permit { limit: Some(limit), ..Permit::unlimited() }
    }

    /// Whether it may expire.
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether the command could begin now.
    pub fn is_valid(&self) -> bool {
        let in_time =
            self.limit.as_ref().is_none_or(|limit| Instant::now() < limit.valid_until && (limit.is_caller_waiting)());
        in_time && self.state() != PermitState::Cancelled
    }

    /// Takes the permission right before the command changes anything. From then on it cannot be cancelled.
    ///
    /// # Errors
    /// [`ControlError::Expired`]: the command must not be carried out.
    pub fn begin(&self) -> Result<(), ControlError> {
        let in_time = self.is_valid();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            PermitState::Waiting if in_time => *state = PermitState::Begun,
            PermitState::Begun => {}
            PermitState::Waiting | PermitState::Cancelled => {
                *state = PermitState::Cancelled;
                return Err(ControlError::Expired);
            }
        }
        Ok(())
    }

    /// Cancels the command. `false` if it has begun.
    pub fn cancel(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == PermitState::Waiting {
            *state = PermitState::Cancelled;
        }
        *state == PermitState::Cancelled
    }

    fn state(&self) -> PermitState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_command_begins_only_in_time_while_its_caller_waits_and_before_it_is_cancelled() {
        let soon = Instant::now() + Duration::from_secs(1);
        let in_time = Permit::limited(soon, || true);
        assert_eq!((in_time.begin(), in_time.cancel()), (Ok(()), false), "what has begun is not cancelled");
        let cancelled = Permit::limited(soon, || true);
        assert_eq!((cancelled.cancel(), cancelled.begin()), (true, Err(ControlError::Expired)));
        let is_waiting = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&is_waiting);
        let alone = Permit::limited(soon, move || flag.load(Ordering::Relaxed));
        assert!(alone.is_valid());
        is_waiting.store(false, Ordering::Relaxed);
        assert_eq!((alone.is_valid(), alone.begin()), (false, Err(ControlError::Expired)));
        let late = Permit::limited(soon, || true);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((late.is_valid(), late.begin()), (false, Err(ControlError::Expired)));
        assert_eq!(Permit::unlimited().begin(), Ok(()));
    }
}
