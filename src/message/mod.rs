//! A message as orderd sees it, and the ports through which messages come and go.
//!
//! Pure: the types here know nothing of the AMQP client, so that it can be replaced.

mod delivery;
mod header;
mod port;
mod route;

pub use delivery::{Delivery, DeliveryId, Message, Properties};
pub use header::{HeaderName, HeaderValue, Headers, STRIPPED, names};
pub use port::{
    Consumer, Publication, PublishError, Publisher, SettleError, Settlement, Settler, SubscribeError, Subscription,
};
pub use route::ExchangeNames;
