//! Messages and deliveries, and the traits through which they are consumed and published.
//!
//! Pure. The types here know nothing about the AMQP client, so that it can be replaced.

mod cloud_event;
mod consumer;
mod delivery;
mod exchange_names;
mod header;
mod identity;
mod publisher;
mod size;
mod trusted_users;

pub use cloud_event::{CloudEventError, DocumentError};
pub use consumer::{
    ANSWERS_OVERDUE, Consumer, LossCause, SettleError, Settlement, Settler, SubscribeError, Subscription,
};
pub use delivery::{Delivery, DeliveryId, Message, Properties};
pub use exchange_names::ExchangeNames;
pub use header::{HeaderContent, HeaderName, HeaderValue, Headers, STRIPPED, names};
pub use identity::{GeneratedId, Provenance, Sender};
pub use publisher::{CONFIRMS_OVERDUE, MAX_HOLD, Publication, PublishError, Publisher, Unpublished};
pub use size::{headers_len, headers_memory};
pub use trusted_users::TrustedUsers;
