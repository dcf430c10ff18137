//! A delivery in flight: settled exactly once, and released if it is dropped before.
//!
//! It never decides how a delivery is settled.

use std::sync::Arc;

use crate::message::{Delivery, Settler};
use crate::metrics::{Counters, DeliveryOutcome, InFlightKey, ReceivedAt};

/// Owns a delivery until it is settled. If it is dropped before (connection lost, drain aborted, worker died), it releases
/// the delivery, and the broker delivers it again.
pub(super) struct DeliveryGuard {
    /// Boxed, because it is large and the guard is moved often.
    delivery: Box<Delivery>,
    settler: Arc<dyn Settler>,
    counters: Arc<Counters>,
    in_flight: InFlightKey,
    received_at: ReceivedAt,
    /// Released, until `settle` is called.
    outcome: DeliveryOutcome,
}

impl DeliveryGuard {
    pub(super) fn new(
        delivery: Delivery,
        settler: Arc<dyn Settler>,
        counters: Arc<Counters>,
        received_at: ReceivedAt,
    ) -> Self {
        let in_flight = counters.received(received_at);
        let delivery = Box::new(delivery);
        DeliveryGuard { delivery, settler, counters, in_flight, received_at, outcome: DeliveryOutcome::Released }
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// Settles and counts the delivery.
    pub(super) fn settle(mut self, outcome: DeliveryOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for DeliveryGuard {
    fn drop(&mut self) {
        self.settler.settle(self.delivery.id, self.outcome.settlement());
        let published = self.delivery.message.properties.timestamp;
        self.counters.finish(&self.in_flight, &self.outcome, self.received_at, published);
    }
}
