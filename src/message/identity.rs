//! Who published a message first, and which message it is: what makes two deliveries the same message.
//!
//! Pure. Believes nothing that the broker has not verified.

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest, Sha256};

use super::cloud_event::CLOUD_EVENT_PREFIX;
use super::{Delivery, ExchangeNames, HeaderValue, TrustedUsers, names};
use crate::domain::EVENT_ID_SUFFIXES;

/// Longest identity, in bytes. The id of an order may have 200, and its events are found by theirs, such as
/// `<id>/notification/processed`. With a further suffix such as `/analytics/failed` it must fit AMQP's limit of 255.
const MAX_IDENTITY_BYTES: usize = 224;

/// What identities begin with that are not a `message_id`.
const GENERATED_PREFIX: &str = "generated:";
const HASH_PREFIX: &str = "sha256:";
/// What is put before a `message_id` that begins with one of these prefixes, or with this one: so no `message_id` is taken for
/// the identity of something else.
const MESSAGE_ID_PREFIX: &str = "message_id:";

/// Who published a message first, verified by the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender<'a> {
    /// orderd, or another instance of it.
    Own,
    /// Another user of the broker, by name.
    User(&'a str),
    /// The message states no user, so it may be anyone who may publish.
    Unverified,
}

impl fmt::Display for Sender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sender::Own => f.write_str("orderd"),
            Sender::User(name) => write!(f, "user {name:?}"),
            Sender::Unverified => f.write_str("unverified"),
        }
    }
}

/// The routing keys of events that only orderd publishes.
const OWN_EVENT_KEYS: [&str; 3] = ["order.analytics.processed", "order.analytics.failed", "order.analytics.cancelled"];

/// Where a delivery comes from, as far as the broker has verified it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance<'a> {
    /// Who published the message first.
    pub sender: Sender<'a>,
    /// Whether it is a copy that orderd published after a failure. Only then are its failure headers believed.
    pub is_copy: bool,
    /// The identity of a message without a `message_id`, unless it is a copy that states one.
    pub generated: Option<GeneratedId>,
    /// The identity of a CloudEvent ([`super::Message::cloud_event_identity`]). [`Delivery::provenance`] leaves it out: reading it
    /// may decompress the body, for which the caller needs room.
    pub cloud_event: Option<&'a str>,
}

/// The identity of a message without a `message_id`, unique in every process that ever ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GeneratedId {
    /// A random number of this process.
    pub run: u64,
    /// Counts the messages of this process.
    pub number: u64,
}

impl fmt::Display for GeneratedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{GENERATED_PREFIX}{:016x}-{}", self.run, self.number)
    }
}

impl Delivery {
    /// Who published the message first, and whether this is a copy that orderd published after a failure.
    ///
    /// A copy states the first sender in a header. It is proven by its `user_id`, which the broker has verified, and by the
    /// exchange it was published to: orderd publishes only copies to the requeue exchange, and with keys that begin with
    /// [`ExchangeNames::FAILED_KEY`].
    pub fn provenance(
        &self,
        exchanges: &ExchangeNames,
        users: &TrustedUsers,
        generated: Option<GeneratedId>,
    ) -> Provenance<'_> {
        let user = self.message.properties.user_id.as_deref().unwrap_or_default();
        let stated = |user| if users.contains(user) { Sender::Own } else { Sender::User(user) };
        let publisher = if user.is_empty() { Sender::Unverified } else { stated(user) };
        if publisher != Sender::Own {
            return Provenance { sender: publisher, is_copy: false, generated, cloud_event: None };
        }
        // A message that the broker dead-lettered is a copy only if orderd published it as one before. Copies that orderd
        // publishes carry no `x-death`.
        let is_copy = match self.last_death("exchange") {
            Some(exchange) => *exchange == *exchanges.requeue,
            None => {
                *self.exchange == *exchanges.requeue
                    || *self.exchange == *exchanges.orders && self.routing_key.starts_with(ExchangeNames::FAILED_KEY)
            }
        };
        if !is_copy {
            return Provenance { sender: Sender::Own, is_copy, generated, cloud_event: None };
        }
        let original = self.message.headers.get(names::ORIGINAL_USER_ID).and_then(HeaderValue::as_text);
        let sender = original.filter(|user| !user.is_empty()).map_or(Sender::Unverified, stated);
        Provenance { sender, is_copy, generated, cloud_event: None }
    }

    /// Whether the message claims to be what only orderd publishes, without the proof: a copy of a failed message, or an event
    /// about an order. Such a claim is not believed. It is made by the exchange, the routing key, the headers or the message id:
    /// with `CC` and `BCC`, a message reaches queues that its routing key does not lead to.
    pub fn is_unproven_claim(&self, exchanges: &ExchangeNames, provenance: Provenance<'_>) -> bool {
        if provenance.is_copy || provenance.sender == Sender::Own {
            return false;
        }
        let message_id = self.message.properties.message_id.as_deref().unwrap_or_default();
        let headers = &self.message.headers;
        *self.exchange == *exchanges.requeue
            || self.routing_key.starts_with(ExchangeNames::FAILED_KEY) && self.last_death("exchange").is_none()
            || headers.contains_key(names::ORIGINAL_USER_ID)
            || headers.contains_key(names::FAILURE_KIND)
            || EVENT_ID_SUFFIXES.iter().any(|end| message_id.ends_with(end))
            || OWN_EVENT_KEYS.contains(&self.routing_key.as_str())
    }

    /// A field of the newest `x-death` entry if the broker has dead-lettered this message to the failed-order queue.
    fn last_death(&self, field: &str) -> Option<&str> {
        if !self.routing_key.starts_with(ExchangeNames::FAILED_KEY) {
            return None;
        }
        let HeaderValue::List(deaths) = self.message.headers.get(names::DEATH)? else { return None };
        let HeaderValue::Table(death) = deaths.first()? else { return None };
        death.get(field).and_then(HeaderValue::as_text)
    }

    /// Whether the message is known to say which one it is: with a `message_id`, or as a CloudEvent. Decompresses nothing, so it is
    /// false for a compressed body that may be an event.
    pub fn has_message_id(&self) -> bool {
        self.message_id().is_some() || self.message.is_cloud_event() == Some(true)
    }

    fn message_id(&self) -> Option<&str> {
        self.message.properties.message_id.as_deref().filter(|id| !id.is_empty())
    }

    /// The identity that orderd gave to this message when it failed before, if it is a proven copy.
    fn identity_of_copy(&self, provenance: Provenance<'_>) -> Option<&str> {
        let identity = self.message.headers.get(names::IDENTITY).and_then(HeaderValue::as_text);
        identity.filter(|_| provenance.is_copy)
    }

    /// The identity of a message that is not an order: that of a CloudEvent by its source and id, else its `message_id`. Messages
    /// of different senders are different, whatever their `message_id`: those of others get a suffix with their sender, which no identity of orderd's own messages has. A
    /// message without a `message_id` has the generated identity. An identity that is too long to derive other ids from is
    /// replaced by its hash.
    pub fn identity(&self, provenance: Provenance<'_>) -> String {
        let id = provenance.cloud_event.map(Cow::Borrowed).or_else(|| self.message_id().map(unambiguous));
        let identity = match (id, provenance.sender) {
            (Some(id), Sender::Own) => id,
            (Some(id), Sender::User(user)) => Cow::Owned([&*id, "/from/", user].concat()),
            (Some(id), Sender::Unverified) => Cow::Owned([&*id, "/unverified"].concat()),
            (None, _) => match (self.identity_of_copy(provenance), provenance.generated) {
                (Some(given), _) => Cow::Borrowed(given),
                (None, Some(generated)) => Cow::Owned(generated.to_string()),
                // Deliveries that no worker received, in tests.
                (None, None) => Cow::Owned(hash(&[self.routing_key.as_bytes(), b"\0", &self.message.body])),
            },
        };
        if identity.len() <= MAX_IDENTITY_BYTES { identity.into_owned() } else { hash(&[identity.as_bytes()]) }
    }
}

/// A `message_id` as an identity, which nothing else has.
fn unambiguous(message_id: &str) -> Cow<'_, str> {
    let reserved = [CLOUD_EVENT_PREFIX, GENERATED_PREFIX, HASH_PREFIX, MESSAGE_ID_PREFIX];
    if reserved.iter().any(|prefix| message_id.starts_with(prefix)) {
        Cow::Owned([MESSAGE_ID_PREFIX, message_id].concat())
    } else {
        Cow::Borrowed(message_id)
    }
}

fn hash(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let hex: String = digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{HASH_PREFIX}{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DeliveryId, Headers, Message, Properties};

    fn users() -> TrustedUsers {
        TrustedUsers::known("orderd")
    }

    fn delivery(exchange: &str, routing_key: &str, user: Option<&str>) -> Delivery {
        let text = |text: &str| Some(text.to_owned());
        let properties = Properties { message_id: text("m-1"), user_id: user.and_then(text), ..Properties::default() };
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            redelivered: false,
            message: Message { properties, headers: Headers::new(), body: "{}".into(), missing_bytes: 0 },
        }
    }

    fn provenance(delivery: &Delivery) -> Provenance<'_> {
        delivery.provenance(&ExchangeNames::new("orders"), &users(), None)
    }

    fn claiming(mut delivery: Delivery, user: &str) -> Delivery {
        delivery.message.headers.insert(names::ORIGINAL_USER_ID.to_owned(), user.into());
        delivery.message.headers.insert(names::IDENTITY.to_owned(), "forged".into());
        delivery
    }

    fn dead(mut delivery: Delivery, exchange: &str) -> Delivery {
        let death = Headers::from([("exchange".to_owned(), HeaderValue::from(exchange))]);
        delivery.message.headers.insert(names::DEATH.to_owned(), HeaderValue::List(vec![HeaderValue::Table(death)]));
        delivery
    }

    #[test]
    fn only_a_copy_published_by_orderd_says_who_sent_the_message_first() {
        for (exchange, key) in [("orders.requeue", "notification_queue"), ("orders", "order.failed.notification")] {
            for forger in [None, Some("shop")] {
                let forged = claiming(delivery(exchange, key, forger), "orderd");
                let sender = forger.map_or(Sender::Unverified, Sender::User);
                assert_eq!(
                    provenance(&forged),
                    Provenance { sender, is_copy: false, generated: None, cloud_event: None }
                );
            }
            let copy = claiming(delivery(exchange, key, Some("orderd")), "shop");
            assert_eq!(
                provenance(&copy),
                Provenance { sender: Sender::User("shop"), is_copy: true, generated: None, cloud_event: None }
            );
            let copy = claiming(delivery(exchange, key, Some("orderd")), "");
            assert_eq!(
                provenance(&copy),
                Provenance { sender: Sender::Unverified, is_copy: true, generated: None, cloud_event: None }
            );
            let copy = claiming(delivery(exchange, key, Some("orderd")), "orderd");
            assert_eq!(
                provenance(&copy),
                Provenance { sender: Sender::Own, is_copy: true, generated: None, cloud_event: None }
            );
        }
    }

    #[test]
    fn a_message_that_claims_to_be_orderds_own_is_counted_unless_orderds_user_published_it() {
        let is_claim =
            |delivery: &Delivery| delivery.is_unproven_claim(&ExchangeNames::new("orders"), provenance(delivery));
        let with_id = |id: &str, user| {
            let mut delivery = delivery("orders", "order.normal.created", user);
            delivery.message.properties.message_id = Some(id.to_owned());
            delivery
        };
        let claims = |user| {
            [
                delivery("orders.requeue", "order_queue", user),
                delivery("orders", "order.failed.order", user),
                delivery("orders", "order.analytics.processed", user),
                claiming(delivery("orders", "order.normal.created", user), "orderd"),
                with_id("ord-1/notification/processed", user),
            ]
        };
        assert!(claims(Some("shop")).iter().all(is_claim) && claims(None).iter().all(is_claim));
        assert!(!claims(Some("orderd")).iter().any(is_claim));
        let ordinary = ["order.normal.created", "order.analytics.page_view", "order.notification.email"];
        assert!(!ordinary.iter().any(|key| is_claim(&delivery("orders", key, Some("shop")))));
        assert!(!is_claim(&dead(delivery("orders", "order.failed.order", Some("shop")), "orders")));
    }

    #[test]
    fn an_event_of_orderd_is_its_own_and_no_copy() {
        let event = claiming(delivery("orders", "order.analytics.processed", Some("orderd")), "shop");
        assert_eq!(
            provenance(&event),
            Provenance { sender: Sender::Own, is_copy: false, generated: None, cloud_event: None }
        );
    }

    #[test]
    fn the_events_of_an_order_with_the_longest_id_are_found_by_their_ids() {
        for suffix in EVENT_ID_SUFFIXES {
            let mut event = delivery("orders", "order.analytics.processed", Some("orderd"));
            let id = ["o".repeat(200).as_str(), suffix].concat();
            event.message.properties.message_id = Some(id.clone());
            assert_eq!(event.identity(provenance(&event)), id);
        }
    }

    #[test]
    fn what_the_broker_dead_lettered_is_a_copy_only_if_it_was_one_before() {
        let event = dead(delivery("orders", "order.failed.analytics", Some("orderd")), "orders");
        assert_eq!(
            provenance(&event),
            Provenance { sender: Sender::Own, is_copy: false, generated: None, cloud_event: None }
        );
        let copy =
            dead(claiming(delivery("orders", "order.failed.analytics", Some("orderd")), "shop"), "orders.requeue");
        assert_eq!(
            provenance(&copy),
            Provenance { sender: Sender::User("shop"), is_copy: true, generated: None, cloud_event: None }
        );
        let producers =
            dead(claiming(delivery("orders", "order.failed.order", Some("shop")), "orderd"), "orders.requeue");
        assert_eq!(
            provenance(&producers),
            Provenance { sender: Sender::User("shop"), is_copy: false, generated: None, cloud_event: None }
        );
    }

    #[test]
    fn the_same_message_id_of_different_senders_is_not_the_same_message() {
        let of = |user| {
            let delivery = delivery("orders", "order.analytics.processed", user);
            delivery.identity(provenance(&delivery))
        };
        assert_eq!([of(Some("orderd")), of(Some("shop")), of(None)], ["m-1", "m-1/from/shop", "m-1/unverified"]);
    }

    #[test]
    fn a_cloud_event_is_identified_by_its_source_and_id() {
        let of = |source: &str, message_id: Option<&str>| {
            let mut delivery = delivery("orders", "order.analytics.view", Some("shop"));
            delivery.message.properties.message_id = message_id.map(str::to_owned);
            for (name, value) in [("specversion", "1.0"), ("id", "e-1"), ("source", source), ("type", "view")] {
                delivery.message.headers.insert(format!("ce-{name}"), value.into());
            }
            assert!(delivery.has_message_id());
            let event = delivery.message.cloud_event_identity(1 << 20);
            delivery.identity(Provenance { cloud_event: event.as_deref(), ..provenance(&delivery) })
        };
        assert_eq!(of("/a", Some("m-1")), "cloudevent:2:/a:e-1/from/shop");
        assert_eq!(of("/a", Some("m-2")), of("/a", None), "the same event");
        assert_ne!(of("/b", Some("m-1")), of("/a", Some("m-1")));
    }

    #[test]
    fn no_message_id_is_taken_for_a_cloud_event_or_for_a_generated_identity() {
        for user in [Some("orderd"), Some("shop"), None] {
            let of = |message_id: &str| {
                let mut delivery = delivery("orders", "order.analytics.view", user);
                delivery.message.properties.message_id = Some(message_id.to_owned());
                delivery.identity(provenance(&delivery))
            };
            for id in
                ["cloudevent:2:/a:e-1", "generated:0000000000000001-7", "sha256:00", "message_id:cloudevent:2:/a:e-1"]
            {
                assert!(of(id).starts_with(&format!("message_id:{id}")), "{}", of(id));
            }
        }
    }

    #[test]
    fn an_identity_is_short_enough_to_derive_message_ids_from() {
        let mut delivery = delivery("orders", "order.analytics.view", Some("shop"));
        delivery.message.properties.message_id = Some("x".repeat(255));
        assert!(delivery.identity(provenance(&delivery)).len() < 50);
    }

    #[test]
    fn a_message_without_a_message_id_keeps_its_generated_identity_on_proven_copies_only() {
        let generated = Some(GeneratedId { run: 1, number: 7 });
        for (user, expected) in [(Some("orderd"), "forged"), (Some("shop"), "generated:0000000000000001-7")] {
            for id in [None, Some(String::new())] {
                let mut copy = claiming(delivery("orders.requeue", "analytics_queue", user), "");
                copy.message.properties.message_id = id;
                assert_eq!(copy.identity(Provenance { generated, ..provenance(&copy) }), expected);
            }
        }
    }
}
