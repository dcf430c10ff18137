//! A shop's orders: their JSON, the rules they must follow, the events published about them, and exact sums of amounts.
//!
//! Pure: no clock, no randomness, no I/O. It never decides what happens to an order that breaks a rule.

mod event;
mod exact_sum;
mod model;

pub use event::{AnalyticsEvent, Notification, Sale};
pub use exact_sum::{ExactSum, InvalidSum};
pub use model::{Currency, DecodeError, MAX_PRODUCT_BYTES, MAX_QUANTITY, Order, OrderId, RuleError, TextField};
