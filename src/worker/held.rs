//! A delivery in a worker's hands: settled once, and released if the hands let go of it.

use std::sync::Arc;

use super::counters::{Counters, Ending, Flight, Taken};
use crate::message::{Delivery, Settler};

/// Guards a delivery. Dropped unsettled (a worker died, a drain ended) it goes back to its queue.
pub(super) struct Held {
    /// In a box, since it is large and passed on from hand to hand.
    delivery: Box<Delivery>,
    settler: Arc<dyn Settler>,
    counters: Arc<Counters>,
    flight: Flight,
    taken: Taken,
    ending: Ending,
}

impl Held {
    pub(super) fn new(delivery: Delivery, settler: Arc<dyn Settler>, counters: Arc<Counters>, taken: Taken) -> Self {
        let flight = counters.taken(taken);
        let delivery = Box::new(delivery);
        Held { delivery, settler, counters, flight, taken, ending: Ending::Released }
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(super) fn settle(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.settler.settle(self.delivery.id, self.ending.settlement());
        self.counters.let_go(&self.flight, &self.ending, self.taken, self.delivery.message.properties.timestamp);
    }
}
