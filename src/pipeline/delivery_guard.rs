//! A delivery in a worker's hands: settled once, and released if the hands let go of it.

use std::sync::Arc;

use crate::message::{Delivery, Settler};
use crate::metrics::{Counters, DeliveryOutcome, InFlightKey, ReceivedAt};

/// Guards a delivery. Dropped unsettled (a worker died, a drain ended) it goes back to its queue.
pub(super) struct DeliveryGuard {
    /// In a box, since it is large and passed on from hand to hand.
    delivery: Box<Delivery>,
    settler: Arc<dyn Settler>,
    counters: Arc<Counters>,
    flight: InFlightKey,
    taken: ReceivedAt,
    ending: DeliveryOutcome,
}

impl DeliveryGuard {
    pub(super) fn new(
        delivery: Delivery,
        settler: Arc<dyn Settler>,
        counters: Arc<Counters>,
        taken: ReceivedAt,
    ) -> Self {
        let flight = counters.taken(taken);
        let delivery = Box::new(delivery);
        DeliveryGuard { delivery, settler, counters, flight, taken, ending: DeliveryOutcome::Released }
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(super) fn settle(mut self, ending: DeliveryOutcome) {
        self.ending = ending;
    }
}

impl Drop for DeliveryGuard {
    fn drop(&mut self) {
        self.settler.settle(self.delivery.id, self.ending.settlement());
        self.counters.finish(&self.flight, &self.ending, self.taken, self.delivery.message.properties.timestamp);
    }
}
