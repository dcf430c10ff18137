//! A shop's orders: their JSON, the rules they must follow, the events published about them, and exact sums of amounts.
//!
//! Pure: no clock, no randomness, no I/O. It never decides what happens to an order that breaks a rule.

mod body;
mod currency;
mod decimal;
mod decode;
mod event;
mod exact_sum;
mod item;
mod json;
mod limits;
mod model;
mod order_event;
mod rule;
mod sale;
pub mod value;

pub use body::{BodyError, body_text, decompressed_length, encoded_body, is_compressed};
pub use currency::Currency;
pub use decode::DecodeError;
pub use event::{AnalyticsEvent, CANCELLATION_SUFFIX, CancelledEvent, EVENT_ID_SUFFIXES, Notification};
pub use exact_sum::{ExactSum, InvalidSum};
pub use item::{Amounts, Charges, Item, StatedTotal, sum_exactly};
pub use json::{JsonError, ListItems, ObjectFields, OtherFields, list_items, object_fields, object_values, text};
pub use limits::{MAX_ITEMS, MAX_PRODUCT_BYTES, MAX_QUANTITY};
pub use model::{DEFAULT_NOTIFY, Order, OrderId, OrderSummary, UnknownFields, is_channel, is_locale, is_phone};
pub use order_event::{OrderDocument, OrderEvent, UnsupportedEvent};
pub use rule::{AmountField, RuleError, TextField};
pub use sale::{ProductSale, Sale};
