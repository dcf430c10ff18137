//! A message as orderd sees it, and the ports through which messages come and go.
//!
//! Pure: the types here know nothing of the AMQP client, so that it can be replaced.

mod delivery;
mod exchange_names;
mod header;
mod port;

pub use delivery::{Delivery, DeliveryId, Message, Properties};
pub use exchange_names::ExchangeNames;
pub use header::{HeaderName, HeaderValue, Headers, STRIPPED, names};
pub use port::{
    Consumer, Publication, PublishError, Publisher, SettleError, Settlement, Settler, SubscribeError, Subscription,
};
