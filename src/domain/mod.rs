//! A shop's orders: their JSON, the rules they must follow, the events published about them, and exact sums of amounts.
//!
//! Pure: no clock, no randomness, no I/O. It never decides what happens to an order that breaks a rule.

mod body;
mod decimal;
mod decode;
mod event;
mod exact_sum;
mod json;
mod model;

pub use body::{BodyError, body_text, decompressed_length};
pub use decode::DecodeError;
pub use event::{AnalyticsEvent, EVENT_ID_SUFFIXES, Notification, Sale};
pub use exact_sum::{ExactSum, InvalidSum};
pub use json::{JsonError, ObjectFields, OtherFields, object_fields, text};
pub use model::{Currency, MAX_PRODUCT_BYTES, MAX_QUANTITY, Order, OrderId, RuleError, TextField};
