//! What handlers know of the other consumers. Values only.

use std::sync::Arc;

use crate::formats::Format;
use crate::recovery::RetryPolicy;

/// The consumer in which a message failed, as far as recovery needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct OriginConsumer {
    /// Its name.
    pub name: Arc<str>,
    /// Its retry policy.
    pub policy: RetryPolicy,
    /// The format of its messages if they are orders: a dead-lettered order is reported to analytics.
    pub format: Option<Format>,
    /// Whether its handler calls steps, which are undone before a message is dead-lettered.
    pub has_steps: bool,
    /// Whether it is in the present configuration. One that a reload has removed is still known, because its messages may fail.
    pub is_configured: bool,
}
