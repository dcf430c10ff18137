//! What the broker says about itself: a client of its management API, a poller that keeps asking, and pure functions that
//! judge what is answered; and the status, which joins it to what orderd says of itself. It never declares, deletes or
//! consumes anything.
//!
//! ```text
//! poller ─► ask (client, answers) ─► judge ─► balance, overdue, findings ─► view ─► status ─► whoever reads it
//! ```

mod answers;
mod ask;
pub mod audit;
mod balance;
mod findings;
mod judge;
mod management;
mod observed;
mod overdue;
mod poller;
mod roles;
pub mod status;
pub mod view;

pub use judge::{Limits, Own};
pub use management::{ManagementClient, ManagementError};
pub use observed::{Observed, ObservedExchange, ObservedQueue};
pub use poller::Poller;
pub use view::BrokerView;
