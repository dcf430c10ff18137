//! A delivery in a worker's hands: settled once, and released if the hands let go of it.

use std::sync::Arc;

use super::counters::Counters;
use crate::message::{Delivery, Settlement, Settler};

/// Guards a delivery. Dropped unsettled (a worker died, a drain ended) it goes back to its queue.
pub(super) struct Held {
    delivery: Delivery,
    settler: Arc<dyn Settler>,
    counters: Arc<Counters>,
    settled: bool,
}

impl Held {
    pub(super) fn new(delivery: Delivery, settler: Arc<dyn Settler>, counters: Arc<Counters>) -> Self {
        Counters::count(&counters.deliveries);
        Held { delivery, settler, counters, settled: false }
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(super) fn settle(mut self, settlement: Settlement) {
        self.settle_once(settlement);
    }

    fn settle_once(&mut self, settlement: Settlement) {
        self.settled = true;
        match settlement {
            Settlement::Ack => {}
            Settlement::Release => Counters::count(&self.counters.released),
            Settlement::Reject => Counters::count(&self.counters.rejected),
        }
        self.settler.settle(self.delivery.id, settlement);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.settled {
            self.settle_once(Settlement::Release);
        }
    }
}
