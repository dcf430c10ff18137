//! Why a call of a command failed, and what that means for the message: kind, code and effect.

use std::io;
use std::time::Duration;

use super::child::ChildExit;
use crate::chain::chain;
use crate::recovery::{Failure, FailureKind};
use crate::steps::{FailureCause, StepFailure};

/// Why a call of a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The operating system cannot start the program.
    #[error("cannot start the command")]
    NotStarted(#[source] io::Error),
    /// It did not say hello in time.
    #[error("the command was not ready within {within:?}{}", after_failure(.last_failure.as_deref()))]
    NotReady {
        /// The time for its start, or that of the call.
        within: Duration,
        /// How it failed when it was started before.
        last_failure: Option<String>,
    },
    /// It did not begin with a hello line of this version.
    #[error("the command does not speak orderd's protocol: {0}")]
    BadHello(String),
    /// The call's time passed while all children were busy.
    #[error("all processes of the command were busy for {0:?}")]
    Busy(Duration),
    /// It ended before it answered.
    #[error("the command {0} before it answered")]
    Exited(ChildExit),
    /// It did not answer in time.
    #[error("the command did not answer within {0:?}")]
    TimedOut(Duration),
    /// It wrote something that is no answer.
    #[error("the command's answer is malformed: {0}")]
    MalformedAnswer(String),
    /// It wrote more than an answer may have.
    #[error("the command's answer has more than {0} bytes")]
    AnswerTooLarge(usize),
    /// It wrote too much to standard error.
    #[error("the command wrote too much to standard error")]
    StderrFlood,
    /// orderd stops.
    #[error("orderd is stopping")]
    Stopping,
    /// The request is larger than any command gets.
    #[error("the request has more than {} bytes", super::protocol::MAX_REQUEST_BYTES)]
    RequestTooLarge,
    /// It asked to be called again.
    #[error("{reason}")]
    Retry {
        /// Its explanation.
        reason: String,
        /// When.
        after: Option<Duration>,
    },
    /// It refused for good.
    #[error("{0}")]
    Rejected(String),
}

fn after_failure(last_failure: Option<&str>) -> String {
    last_failure.map_or_else(String::new, |failure| format!("; before, it failed: {failure}"))
}

impl CallError {
    pub(super) fn into_failure(self) -> StepFailure {
        use FailureCause::{NotReached, Refused, Unanswered};
        use FailureKind::{Permanent, Transient};
        let (kind, code, cause) = match &self {
            CallError::NotStarted(_) => (Transient, "command_not_started", NotReached),
            CallError::NotReady { .. } => (Transient, "command_not_ready", NotReached),
            CallError::BadHello(_) => (Transient, "command_bad_hello", NotReached),
            CallError::Busy(_) => (Transient, "command_busy", NotReached),
            CallError::Exited(_) | CallError::Stopping => (Transient, "command_exited", Unanswered),
            // As the engine calls it, which may notice it first.
            CallError::TimedOut(_) => (FailureKind::TimedOut, "step_timeout", Unanswered),
            CallError::MalformedAnswer(_) => (Transient, "command_malformed_answer", Unanswered),
            CallError::AnswerTooLarge(_) => (Transient, "command_answer_too_large", Unanswered),
            CallError::StderrFlood => (Transient, "command_stderr_flood", Unanswered),
            // It may have done a part of its work.
            CallError::Retry { .. } => (Transient, "command_retry", Unanswered),
            CallError::RequestTooLarge => (Permanent, "command_request_too_large", Refused),
            CallError::Rejected(_) => (Permanent, "command_rejected", Refused),
        };
        // What the command says is the reason as it is.
        let (reason, retry_after) = match self {
            CallError::Retry { reason, after } => (reason, after),
            CallError::Rejected(reason) => (reason, None),
            other => (chain(&other), None),
        };
        StepFailure { retry_after, ..StepFailure::new(Failure::new(kind, code, reason), cause) }
    }
}
