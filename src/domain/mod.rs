//! What a shop's order is: its shape on the wire, the rules it must keep, and what is told about it.
//!
//! Pure: no clock, no randomness, no I/O. It never decides what happens to an order that breaks a rule.

mod event;
mod exact_sum;
mod model;

pub use event::{AnalyticsEvent, Notification, Sale};
pub use exact_sum::{ExactSum, NotASum};
pub use model::{Currency, DecodeError, MAX_QUANTITY, Order, OrderId, RuleError};
