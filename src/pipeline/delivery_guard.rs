//! A delivery in flight: settled exactly once, and released if it is dropped before.
//!
//! It never decides how a delivery is settled.

use std::sync::Arc;

use tracing::warn;

use super::unidentified::{Unidentified, UnidentifiedDeliveries};
use crate::message::{Delivery, GeneratedId, Settlement, Settler};
use crate::metrics::{Counters, DeliveryOutcome, InFlightKey, ReceivedAt};

/// Owns a delivery until it is settled. If it is dropped before (connection lost, drain aborted, worker died), it releases
/// the delivery, and the broker delivers it again.
pub(super) struct DeliveryGuard {
    /// Boxed, because it is large and the guard is moved often.
    delivery: Box<Delivery>,
    settler: Arc<dyn Settler>,
    counters: Arc<Counters>,
    /// Its identity if it has no `message_id`, and is no CloudEvent.
    unidentified: Option<Unidentified>,
    deliveries: Arc<UnidentifiedDeliveries>,
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
        deliveries: Arc<UnidentifiedDeliveries>,
        received_at: ReceivedAt,
    ) -> Self {
        let in_flight = counters.received(received_at);
        let unidentified = deliveries.identify(&delivery);
        let known_not_to_say = || delivery.message.is_cloud_event().is_some();
        if deliveries.by_message_id() && unidentified.is_some() && known_not_to_say() && counters.without_message_id() {
            let (exchange, routing_key) = (&delivery.exchange, &delivery.routing_key);
            warn!(
                exchange,
                routing_key,
                "a message without a message_id: after a crash such messages may be processed twice; set one in the producer"
            );
        }
        let delivery = Box::new(delivery);
        DeliveryGuard {
            delivery,
            settler,
            counters,
            unidentified,
            deliveries,
            in_flight,
            received_at,
            outcome: DeliveryOutcome::Released,
        }
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// Its identity if it has no `message_id`.
    pub(super) fn generated_id(&self) -> Option<GeneratedId> {
        self.unidentified.map(|delivery| delivery.id)
    }

    /// Settles and counts the delivery.
    pub(super) fn settle(mut self, outcome: DeliveryOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for DeliveryGuard {
    fn drop(&mut self) {
        self.settler.settle(self.delivery.id, self.outcome.settlement());
        if let Some(delivery) = self.unidentified {
            match self.outcome.settlement() {
                Settlement::Release => self.deliveries.released(delivery),
                Settlement::Ack | Settlement::Reject => {}
            }
        }
        let published = self.delivery.message.properties.timestamp;
        self.counters.finish(&self.in_flight, &self.outcome, self.received_at, published);
    }
}
