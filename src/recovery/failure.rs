//! A failure of one message: its kind, code and reason. Pure.

use std::fmt;
use std::time::Duration;

/// The longest reason that is kept, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

/// The longest code that is kept, in bytes. Only a header that orderd did not write has a longer one.
pub const MAX_CODE_BYTES: usize = 64;

/// The code of a message whose body is larger than `broker.max_body`.
pub const BODY_TOO_LARGE: &str = "body_too_large";

/// The class of a failure, which decides whether a retry can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// The body cannot be decoded. Never retried.
    Malformed,
    /// The message breaks a rule. Never retried.
    Permanent,
    /// A retry may help. The only kind that is also retried immediately.
    Transient,
    /// The handler's deadline passed. Retried.
    TimedOut,
    /// The handler panicked. Retried.
    Panicked,
    /// The broker dead-lettered it, because it was delivered too often without being settled. Retried.
    DeliveryLimit,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [FailureKind; 6] = [
        FailureKind::Malformed,
        FailureKind::Permanent,
        FailureKind::Transient,
        FailureKind::TimedOut,
        FailureKind::Panicked,
        FailureKind::DeliveryLimit,
    ];

    /// The value of `x-failure-kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Malformed => "malformed",
            FailureKind::Permanent => "permanent",
            FailureKind::Transient => "transient",
            FailureKind::TimedOut => "timed_out",
            FailureKind::Panicked => "panicked",
            FailureKind::DeliveryLimit => "delivery_limit",
        }
    }

    /// Parses the value of `x-failure-kind`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failure of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// A stable code for programs, such as `ledger_unavailable`; at most [`MAX_CODE_BYTES`].
    pub code: String,
    /// The explanation, at most [`MAX_REASON_BYTES`].
    pub reason: String,
    /// When the service that failed asked to be called again. Then the message is not retried immediately, and not before this
    /// time if a configured delay is as long.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Cuts the code to [`MAX_CODE_BYTES`] and the reason to [`MAX_REASON_BYTES`], at character boundaries.
    pub fn new(kind: FailureKind, code: impl Into<String>, reason: impl Into<String>) -> Self {
        let (mut code, mut reason) = (code.into(), reason.into());
        code.truncate(code.floor_char_boundary(MAX_CODE_BYTES));
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Failure { kind, code, reason, retry_after: None }
    }

    /// The same failure of a service that asked to be called again after this time, if it did.
    #[must_use]
    pub fn with_retry_after(self, retry_after: Option<Duration>) -> Self {
        Failure { retry_after, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.kind, self.code, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let failure = Failure::new(FailureKind::Transient, "x", "ä".repeat(1000));
        assert_eq!(failure.reason.len(), 1024);
        let odd = Failure::new(FailureKind::Transient, "x", format!("a{}", "ä".repeat(1000)));
        assert_eq!(odd.reason.len(), 1023);
    }

    #[test]
    fn every_kind_parses_from_its_text() {
        for kind in FailureKind::ALL {
            assert_eq!(FailureKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(FailureKind::parse("other"), None);
    }
}
