//! From a stored letter to the publication that replays it. Pure.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::super::message_json::{headers_from, properties_from};
use super::super::order::whole_order;
use super::super::reading::{KnownConsumer, KnownConsumers, consumer_of, first_provenance};
use crate::ledger::{DeadLetter, DeadLetterDetail, LetterOrigin, LetterSource, NewOrder};
use crate::message::{Delivery, DeliveryId, ExchangeNames, Message, Provenance, Publication, TrustedUsers, names};
use crate::recovery::{ReplayMark, copy_for_replay};

/// Why a letter is not replayed: no consumer has its queue. It can be given one.
pub(super) const NO_QUEUE: &str = "no_queue";
/// Why a letter is not replayed: it is an order, and the consumer of the queue that was named processes no orders.
pub(super) const NO_ORDER_QUEUE: &str = "no_order_queue";
/// Why a letter is not replayed: its properties or headers cannot be read.
pub(super) const UNREADABLE: &str = "unreadable";

/// Why a letter is not replayed: the broker has dead-lettered a message that claims to be a copy of orderd's, under a user that does not
/// count as orderd's now. It did if that user is added to `broker.trusted_users`.
pub(super) const UNPROVEN_USER: &str = "unproven_user";

/// A letter that can be replayed.
pub(super) struct Prepared {
    letter: DeadLetter,
    delivery: Delivery,
    /// Where it goes.
    pub queue: String,
    /// The order that it is, if it is a valid one.
    pub order: Option<Box<NewOrder>>,
    /// The identity of the CloudEvent that it is. It is read with the body, since a body may end its reader.
    event: Option<String>,
}

/// What is needed to read letters.
pub(super) struct ReplayContext<'a> {
    pub consumers: &'a KnownConsumers,
    pub users: &'a TrustedUsers,
    pub max_body: usize,
}

/// The queue for a letter: `to`, else the one that it came from, else that of the consumer that failed.
pub(super) fn target<'c>(
    consumers: &'c KnownConsumers,
    to: Option<&str>,
    origin_queue: Option<&str>,
    consumer: Option<&str>,
) -> Option<(&'c String, &'c KnownConsumer)> {
    if let Some(to) = to {
        return consumers.get_key_value(to);
    }
    consumer_of(consumers, origin_queue, consumer)
}

/// Whether a letter is an order, and would go to a consumer that processes none. That one could take it for another message, so that it
/// would count as processed although no order was. `came_from`: the consumer that failed. `has_total`: whether it was read as an order.
pub(super) fn is_misdirected(target: &KnownConsumer, came_from: Option<&KnownConsumer>, has_total: bool) -> bool {
    target.format.is_none() && (has_total || came_from.is_some_and(|consumer| consumer.format.is_some()))
}

/// The message as it was delivered to the collector, with its present content.
pub(in crate::dead_letters) fn stored_delivery(detail: DeadLetterDetail) -> Option<(DeadLetter, Delivery)> {
    let DeadLetterDetail { letter, content, .. } = detail;
    let message = Message {
        properties: properties_from(&content.properties)?,
        headers: headers_from(&content.headers)?,
        body: content.body.into(),
        missing_bytes: 0,
    };
    let delivery = Delivery {
        id: DeliveryId { connection: 0, tag: 0 },
        exchange: letter.exchange.clone(),
        routing_key: letter.routing_key.clone(),
        redelivered: false,
        message,
    };
    Some((letter, delivery))
}

impl Prepared {
    /// Prepares a letter.
    ///
    /// # Errors
    /// The code of why it is not replayed.
    pub fn new(
        detail: DeadLetterDetail,
        to: Option<&str>,
        context: &ReplayContext<'_>,
        now: Timestamp,
    ) -> Result<Self, &'static str> {
        let (letter, delivery) = stored_delivery(detail).ok_or(UNREADABLE)?;
        let (origin_queue, failed) = (letter.origin_queue.as_deref(), letter.consumer.as_deref());
        let (queue, consumer) = target(context.consumers, to, origin_queue, failed).ok_or(NO_QUEUE)?;
        let came_from = consumer_of(context.consumers, origin_queue, failed).map(|(_, consumer)| consumer);
        if is_misdirected(consumer, came_from, letter.total.is_some()) {
            return Err(NO_ORDER_QUEUE);
        }
        let is_marked = is_marked(&delivery);
        let user = delivery.message.properties.user_id.as_deref().unwrap_or_default();
        if letter.origin == LetterOrigin::Broker && is_marked && !user.is_empty() && !context.users.contains(user) {
            return Err(UNPROVEN_USER);
        }
        let order = match &consumer.format {
            Some(format) => whole_order(&delivery, format, &consumer.name, context.max_body, now),
            None => None,
        };
        let event = delivery.message.cloud_event_identity(context.max_body);
        Ok(Prepared { letter, delivery, queue: queue.clone(), order, event })
    }

    /// The letter's number.
    pub fn id(&self) -> i64 {
        self.letter.id
    }

    /// How many bytes its body has.
    pub fn bytes(&self) -> usize {
        self.delivery.message.body.len()
    }

    /// What is published.
    pub fn publication(
        &self,
        key: &str,
        fingerprint: &[u8; 32],
        (users, names): (&TrustedUsers, &ExchangeNames),
        now: Timestamp,
    ) -> Publication {
        let provenance = Provenance { cloud_event: self.event.as_deref(), ..self.provenance(users) };
        let identity = identity(&self.letter, fingerprint);
        let DeadLetter { reason, code, failed_at, .. } = &self.letter;
        let own_user = users.own();
        let failed_at = *failed_at;
        let mark = ReplayMark { key, at: now, identity: &identity, reason, code, failed_at, own_user: &own_user };
        copy_for_replay(&self.delivery, provenance, &self.queue, mark, names)
    }

    fn provenance(&self, users: &TrustedUsers) -> Provenance<'_> {
        provenance(&self.letter, &self.delivery, users)
    }
}

/// Who published the message of a letter first. Only of what orderd's user has published, headers say so. That was proven when it was
/// collected: orderd's user may have another name now.
pub(super) fn provenance<'d>(letter: &DeadLetter, delivery: &'d Delivery, users: &TrustedUsers) -> Provenance<'d> {
    let user = delivery.message.properties.user_id.as_deref().unwrap_or_default();
    let is_own =
        |name: &str| users.contains(name) || letter.origin == LetterOrigin::Orderd && !name.is_empty() && name == user;
    let is_copy = is_own(user)
        && letter.source == LetterSource::DeadLetterQueue
        && letter.origin != LetterOrigin::Others
        && is_marked(delivery);
    first_provenance(&delivery.message, is_copy, is_own)
}

/// Whether the headers are those of a copy.
fn is_marked(delivery: &Delivery) -> bool {
    let headers = &delivery.message.headers;
    [names::FAILURE_KIND, names::REPLAY_ID].iter().any(|name| headers.contains_key(*name))
}

/// The identity of a letter that does not say which message it is: no other letter has it, and all copies of this one have it. It
/// begins as no `message_id` can.
fn identity(letter: &DeadLetter, fingerprint: &[u8; 32]) -> String {
    let mut digest = Sha256::new();
    digest.update(fingerprint);
    digest.update(letter.collected_at.as_millisecond().to_be_bytes());
    digest.update(letter.id.to_be_bytes());
    let hex: String = digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
