//! What a failed message is about. Values only.

use crate::domain::OrderId;
use crate::ledger::NewOrder;

/// What a failed message is about.
#[derive(Debug, Clone)]
pub(super) enum FailedSubject {
    /// It is an order with this id. `whole`: what the ledger compares; `None` unless all of it was read and it passes its checks.
    Order { id: OrderId, whole: Option<Box<NewOrder>> },
    /// It is the cancellation of this order.
    Cancellation(OrderId),
    /// It is no order, or none whose id can be read.
    Other,
}

impl FailedSubject {
    /// The same with the id that it had when its steps were called. The configuration may read another one from the message now, or
    /// none.
    pub(super) fn with_id(self, id: OrderId) -> Self {
        match self {
            FailedSubject::Order { whole, .. } => {
                let whole = whole.map(|order| Box::new(NewOrder { id: id.clone(), ..*order }));
                FailedSubject::Order { id, whole }
            }
            FailedSubject::Cancellation(_) => FailedSubject::Cancellation(id),
            FailedSubject::Other => FailedSubject::Order { id, whole: None },
        }
    }
}
