//! What an open connection waits for, shared by the task that serves it, the accept loop, and answers that take long to send.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// What an open connection waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// The client's request, since then.
    Request(Instant),
    /// The answer, which has a time limit.
    Answer,
    /// The client's receipt of the answer, since then.
    Receipt(Instant),
    /// The client's receipt of more of a long answer, since then.
    Part(Instant),
}

/// The phase of a connection. It is in the extensions of each request.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<Phase>>);

impl Default for Progress {
    fn default() -> Self {
        Progress(Arc::new(Mutex::new(Phase::Request(Instant::now()))))
    }
}

impl Progress {
    pub fn set(&self, phase: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    pub fn get(&self) -> Phase {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another part of a long answer is being sent.
    pub fn advanced(&self) {
        self.set(Phase::Part(Instant::now()));
    }

    /// Bytes were sent. An answer that is not long has its time, however slowly it is received.
    pub fn sent(&self) {
        if matches!(self.get(), Phase::Part(_)) {
            self.advanced();
        }
    }
}
