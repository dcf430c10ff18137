//! Identities of messages without a `message_id`, which would otherwise all look alike.
//!
//! A delivery that the broker hands out for the first time is a message of its own. Of a redelivery, this process knows more
//! than its content: which earlier deliveries of the same content it released. A redelivery gets the identity of one of
//! them, so that the ledger recognises what was recorded. Each identity is given to one redelivery only.
//!
//! What no released delivery explains gets a new identity: after a crash, after a lost ack, or if another instance had the
//! message before. Its effect may then be recorded twice. Comparing it with what was acked or recorded could take it for
//! an older message with the same content and lose it.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Delivery, GeneratedId};

/// The most deliveries remembered of each kind. A subscription rarely has more in flight.
const MAX_REMEMBERED: usize = 4096;
/// How long a delivery is remembered. The broker redelivers at once, or when it notices that a connection is dead: after two
/// heartbeats, which are of 5 minutes at most.
const REMEMBERED_FOR: Duration = Duration::from_secs(15 * 60);

/// Distinguishes the identities of this process from those of any other.
static RUN: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A delivery without a `message_id`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unidentified {
    /// The identity it was given.
    pub id: GeneratedId,
    /// Hash of what it is compared by: sender, routing key and body.
    content: u64,
}

/// What has become of the deliveries without a `message_id` of one consumer.
#[derive(Debug, Default)]
pub struct UnidentifiedDeliveries {
    /// Whether the consumer's messages are identified by their `message_id`. Orders are not: they have an id of their own.
    by_message_id: bool,
    hasher: RandomState,
    /// Released, or in flight when their connection was lost: each will be redelivered, here or elsewhere.
    released: Mutex<Released>,
}

/// Deliveries, oldest first, and when they were released.
type Released = VecDeque<(Unidentified, Instant)>;

impl UnidentifiedDeliveries {
    /// For a consumer whose messages are identified by their `message_id`, or otherwise.
    pub fn new(by_message_id: bool) -> Self {
        UnidentifiedDeliveries { by_message_id, ..UnidentifiedDeliveries::default() }
    }

    /// Whether a `message_id` is missed on messages that have none.
    pub(super) fn by_message_id(&self) -> bool {
        self.by_message_id
    }

    /// Gives a delivery without a `message_id` its identity; `None` for any other.
    pub(super) fn identify(&self, delivery: &Delivery) -> Option<Unidentified> {
        if delivery.has_message_id() {
            return None;
        }
        let user = &delivery.message.properties.user_id;
        let content = match self.by_message_id {
            true => self.hasher.hash_one((user, &delivery.routing_key, &delivery.message.body)),
            false => 0,
        };
        let is_redelivered = self.by_message_id && (delivery.redelivered || delivery.delivery_count() > 0);
        let known = if is_redelivered { take(&mut self.lock(), content) } else { None };
        Some(known.unwrap_or_else(|| {
            let id = GeneratedId { run: *RUN, number: NEXT.fetch_add(1, Ordering::Relaxed) };
            Unidentified { id, content }
        }))
    }

    /// Remembers a delivery that will be redelivered.
    pub(super) fn released(&self, delivery: Unidentified) {
        if !self.by_message_id {
            return;
        }
        let mut released = self.lock();
        if released.len() == MAX_REMEMBERED {
            released.pop_front();
        }
        released.push_back((delivery, Instant::now()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Released> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes and returns a delivery of this content.
fn take(released: &mut Released, content: u64) -> Option<Unidentified> {
    let known = |(delivery, at): &(Unidentified, Instant)| delivery.content == content && at.elapsed() < REMEMBERED_FOR;
    let position = released.iter().rposition(known)?;
    released.remove(position).map(|(delivery, _)| delivery)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::message::{DeliveryId, Message};

    fn delivery(body: &'static str, redelivered: bool) -> Delivery {
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders".to_owned(),
            routing_key: "order.analytics.page_view".to_owned(),
            redelivered,
            message: Message { body: body.into(), ..Message::default() },
        }
    }

    fn identify(deliveries: &UnidentifiedDeliveries, body: &'static str, redelivered: bool) -> Unidentified {
        deliveries.identify(&delivery(body, redelivered)).unwrap()
    }

    #[test]
    fn five_identical_page_views_are_five_messages() {
        let deliveries = UnidentifiedDeliveries::new(true);
        let ids: HashSet<_> = (0..5).map(|_| identify(&deliveries, "{}", false).id).collect();
        assert_eq!(ids.len(), 5);
    }

    #[test]
    fn of_identical_messages_none_is_lost_when_a_connection_is_lost() {
        let deliveries = UnidentifiedDeliveries::new(true);
        let first: Vec<_> = (0..5).map(|_| identify(&deliveries, "{}", false)).collect();
        // Three were acked, of which the broker received two acks; two were in flight.
        first[3..].iter().for_each(|delivery| deliveries.released(*delivery));
        let again: Vec<_> = (0..3).map(|_| identify(&deliveries, "{}", true).id).collect();
        let in_flight: HashSet<_> = first[3..].iter().map(|delivery| delivery.id).collect();
        assert_eq!(again[..2].iter().copied().collect::<HashSet<_>>(), in_flight);
        assert!(first.iter().all(|delivery| delivery.id != again[2]), "it could be another message");
    }

    #[test]
    fn other_content_and_unknown_redeliveries_are_new_messages() {
        let deliveries = UnidentifiedDeliveries::new(true);
        let first = identify(&deliveries, "{}", false);
        deliveries.released(first);
        assert_ne!(identify(&deliveries, "{\"a\":1}", true).id, first.id);
        assert_ne!(identify(&deliveries, "{}", false).id, first.id);
        assert_eq!(identify(&deliveries, "{}", true).id, first.id);
        assert_ne!(identify(&deliveries, "{}", true).id, first.id, "an identity was given twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_released_long_ago_is_not_the_one_redelivered_now() {
        let deliveries = UnidentifiedDeliveries::new(true);
        let first = identify(&deliveries, "{}", false);
        deliveries.released(first);
        tokio::time::advance(REMEMBERED_FOR).await;
        assert_ne!(identify(&deliveries, "{}", true).id, first.id);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let deliveries = UnidentifiedDeliveries::new(true);
        (0..MAX_REMEMBERED + 10).for_each(|_| deliveries.released(identify(&deliveries, "{}", false)));
        assert_eq!(deliveries.lock().len(), MAX_REMEMBERED);
    }
}
