//! What the broker says about itself: a client of its management API, and pure functions that judge what it
//! answers. It never declares, deletes or consumes anything.

pub mod audit;
mod management;
mod observed;
pub mod status;
pub mod view;

pub use management::{ManagementClient, ManagementError};
pub use observed::{Observed, ObservedExchange, ObservedQueue};
pub use view::BrokerView;
