//! Identities of messages without a `message_id`, which would otherwise all look alike.
//!
//! A delivery that the broker hands out for the first time is a message of its own. Of a redelivery, this process knows more
//! than its content: which earlier deliveries of the same content it released. A redelivery gets the identity of one of
//! them, so that the ledger recognises what was recorded. Each identity is given to one redelivery only.
//!
//! Two redeliveries of equal messages may get each other's identities, here or by way of another instance. None is lost by that:
//! each identity that is given again stands for one message that was released without an ack, so that there are never more acks
//! than recorded identities. Equal means the whole message, since only then does it not matter which of them is which.
//!
//! What no released delivery explains gets a new identity: after a crash, after a lost ack, or if another instance had the
//! message before. Its effect may then be recorded twice. Comparing it with what was acked or recorded could take it for
//! an older message with the same content and lose it.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Delivery, GeneratedId, STRIPPED};

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
    /// Hash of what it is compared by: routing key, properties, headers and body.
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
        let content = if self.by_message_id { self.content(delivery) } else { 0 };
        let is_redelivered = self.by_message_id && (delivery.redelivered || delivery.delivery_count() > 0);
        let known = if is_redelivered { take(&mut self.lock(), content) } else { None };
        Some(known.unwrap_or_else(|| {
            let id = GeneratedId { run: *RUN, number: NEXT.fetch_add(1, Ordering::Relaxed) };
            Unidentified { id, content }
        }))
    }

    /// Hash of everything that is the same whenever the message is delivered. The broker changes its own headers.
    fn content(&self, delivery: &Delivery) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        let message = &delivery.message;
        (&delivery.routing_key, &message.body, message.missing_bytes).hash(&mut hasher);
        let headers = message.headers.iter().filter(|(name, _)| !STRIPPED.contains(&name.as_str()));
        format!("{:?}{:?}", message.properties, headers.collect::<Vec<_>>()).hash(&mut hasher);
        hasher.finish()
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

    use proptest::prelude::*;

    use super::*;
    use crate::message::{DeliveryId, HeaderValue, Message};

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

    #[test]
    fn messages_that_differ_in_a_header_or_a_property_are_not_taken_for_each_other() {
        let deliveries = UnidentifiedDeliveries::new(true);
        let first = identify(&deliveries, "{}", false);
        deliveries.released(first);
        let mut other = delivery("{}", true);
        other.message.headers.insert("ce-id".to_owned(), "2".into());
        assert_ne!(deliveries.identify(&other).unwrap().id, first.id);
        let mut other = delivery("{}", true);
        other.message.properties.correlation_id = Some("2".to_owned());
        assert_ne!(deliveries.identify(&other).unwrap().id, first.id);
        let mut same = delivery("{}", false);
        same.message.headers.insert("x-delivery-count".to_owned(), HeaderValue::I64(1));
        assert_eq!(deliveries.identify(&same).unwrap().id, first.id);
    }

    proptest! {
        /// Equal messages, two instances, and a broker that redelivers to either of them. A step takes one message of the queue,
        /// delivers it to an instance, and ends the delivery in one of four ways.
        #[test]
        fn equal_messages_in_flight_on_lost_connections_are_never_counted_once_for_two(
            steps in proptest::collection::vec((0_usize..4, any::<bool>(), 0_u8..4), 0..60)
        ) {
            let instances = [UnidentifiedDeliveries::new(true), UnidentifiedDeliveries::new(true)];
            // For each message in the queue, whether it was delivered before.
            let mut queue = vec![false; 4];
            let (mut recorded, mut acked) = (HashSet::new(), 0);
            let finish = std::iter::repeat_n((0, false, 0), 4);
            for (index, instance, end) in steps.into_iter().chain(finish) {
                if queue.is_empty() {
                    break;
                }
                let instance = &instances[usize::from(instance)];
                let redelivered = queue.remove(index % queue.len());
                let received = identify(instance, "{}", redelivered);
                match end {
                    0 => {
                        recorded.insert(received.id);
                        acked += 1;
                    }
                    // The connection was lost before the effect was recorded, or after that.
                    1 => instance.released(received),
                    2 => {
                        recorded.insert(received.id);
                        instance.released(received);
                    }
                    // The ack was sent and lost.
                    _ => drop(recorded.insert(received.id)),
                }
                if end > 0 {
                    queue.push(true);
                }
                prop_assert!(acked <= recorded.len(), "{} acked, {} recorded", acked, recorded.len());
            }
            prop_assert_eq!(acked, 4);
        }
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
