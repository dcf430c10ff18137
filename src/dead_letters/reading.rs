//! How the body of a dead letter is read: by its consumer, or if no consumer has its queue, as an order in each format. The collector, an
//! edit and a replay read it in the same way. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::order::{Reading, check_order, read_failed_order, read_order, whole_order};
use crate::domain::EVENT_ID_SUFFIXES;
use crate::formats::Format;
use crate::ledger::{LetterOrder, MAX_SEARCH_BYTES, NewOrder};
use crate::message::{Delivery, Message, Provenance, Sender, names};
use crate::recovery::Failure;

/// Whether a handler of messages that are no orders can read one. The number: the longest text that a body may have once it is
/// decompressed, in bytes.
pub type MessageCheck = fn(&Delivery, Provenance<'_>, usize) -> Result<(), Failure>;

/// A consumer whose messages may be dead-lettered.
#[derive(Debug, Clone)]
pub struct KnownConsumer {
    /// Its name.
    pub name: Arc<str>,
    /// The format of its messages, if they are orders.
    pub format: Option<Format>,
    /// What its handler can read, if they are no orders.
    pub check: MessageCheck,
}

/// By queue. A reload changes them.
pub type KnownConsumers = BTreeMap<String, KnownConsumer>;

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyRefused {
    /// By the consumer.
    #[error("consumer {consumer} would refuse it: {reason}")]
    ByConsumer { consumer: Arc<str>, reason: String },
    /// It was an order, and is none any more.
    #[error("no consumer has its queue, and it is no valid order in any format: {0}")]
    NoOrder(String),
}

/// The consumer that reads a letter: that of the queue that it failed in, else the one of this name.
pub(super) fn consumer_of<'c>(
    consumers: &'c KnownConsumers,
    queue: Option<&str>,
    name: Option<&str>,
) -> Option<(&'c String, &'c KnownConsumer)> {
    let by_queue = queue.and_then(|queue| consumers.get_key_value(queue));
    by_queue.or_else(|| consumers.iter().find(|(_, known)| Some(&*known.name) == name))
}

/// How a letter is read.
pub(super) enum LetterReading<'c> {
    /// As an order, in its consumer's format.
    Order(&'c KnownConsumer, &'c Format),
    /// By the handler of its consumer, for which it is no order.
    Message(&'c KnownConsumer),
    /// No consumer has its queue, or it came from none: as an order, in each of these formats.
    AnyFormat(Vec<&'c Format>),
}

impl<'c> LetterReading<'c> {
    /// How a letter from this queue, or of the consumer with this name, is read.
    pub fn new(consumers: &'c KnownConsumers, queue: Option<&str>, name: Option<&str>) -> Self {
        match consumer_of(consumers, queue, name) {
            Some((_, consumer)) => match &consumer.format {
                Some(format) => LetterReading::Order(consumer, format),
                None => LetterReading::Message(consumer),
            },
            None => {
                let mut formats: Vec<&Format> = Vec::new();
                for format in consumers.values().filter_map(|consumer| consumer.format.as_ref()).chain([&Format::Own]) {
                    if !formats.contains(&format) {
                        formats.push(format);
                    }
                }
                LetterReading::AnyFormat(formats)
            }
        }
    }

    /// What it says about the order that it is. `is_copy`: orderd has published it as a copy of a failed message.
    pub fn read(&self, delivery: &Delivery, is_copy: bool, max_body: usize) -> Reading {
        match self {
            LetterReading::Order(_, format) => read_failed_order(delivery, format, max_body),
            LetterReading::Message(_) => Reading::default(),
            LetterReading::AnyFormat(formats) => {
                let mut reading = read_order(delivery, formats, max_body);
                // The failed-order consumer has recorded such a copy by the identity of the message.
                reading.identity = reading.identity.filter(|_| !is_copy);
                reading
            }
        }
    }

    /// Refuses what nobody could process. `was_order`: the letter was an order before.
    pub fn check(
        &self,
        delivery: &Delivery,
        provenance: Provenance<'_>,
        was_order: bool,
        max_body: usize,
    ) -> Result<(), BodyRefused> {
        let by = |consumer: &KnownConsumer, reason| BodyRefused::ByConsumer { consumer: consumer.name.clone(), reason };
        match self {
            LetterReading::Order(consumer, format) => {
                check_order(delivery, format, max_body).map_err(|reason| by(consumer, reason))
            }
            LetterReading::Message(consumer) => {
                (consumer.check)(delivery, provenance, max_body).map_err(|failure| by(consumer, failure.reason))
            }
            LetterReading::AnyFormat(formats) => {
                let mut reasons = Vec::new();
                for format in formats.iter().filter(|_| was_order) {
                    match check_order(delivery, format, max_body) {
                        Ok(()) => return Ok(()),
                        Err(reason) => reasons.push(format!("{}: {reason}", format.name())),
                    }
                }
                if was_order { Err(BodyRefused::NoOrder(reasons.join("; "))) } else { Ok(()) }
            }
        }
    }

    /// The whole order, if it is a valid one.
    pub fn whole_order(&self, delivery: &Delivery, max_body: usize, now: Timestamp) -> Option<Box<NewOrder>> {
        match self {
            LetterReading::Order(consumer, format) => whole_order(delivery, format, &consumer.name, max_body, now),
            LetterReading::Message(_) => None,
            LetterReading::AnyFormat(formats) => {
                formats.iter().find_map(|format| whole_order(delivery, format, &Arc::from(""), max_body, now))
            }
        }
    }
}

/// Whether a stored letter is an order, and not only about one, as an event is.
pub(super) fn is_order(order_id: Option<&str>, identity: Option<&str>) -> bool {
    let is_event_of = |order: &str| {
        let suffix = identity.and_then(|identity| identity.strip_prefix(order));
        suffix.is_some_and(|suffix| EVENT_ID_SUFFIXES.contains(&suffix))
    };
    order_id.is_some_and(|order| !is_event_of(order))
}

/// Who published a message first. Of a copy, a header says so. `is_own`: whether this user counts as orderd's.
pub(super) fn first_provenance(message: &Message, is_copy: bool, is_own: impl Fn(&str) -> bool) -> Provenance<'_> {
    let user = message.properties.user_id.as_deref().unwrap_or_default();
    let first = match is_copy {
        true => message.headers.get(names::ORIGINAL_USER_ID).and_then(|user| user.as_text()).unwrap_or_default(),
        false => user,
    };
    let sender = match first {
        "" => Sender::Unverified,
        first if is_own(first) => Sender::Own,
        first => Sender::User(first),
    };
    Provenance { sender, is_copy, generated: None, cloud_event: None }
}

/// What a search finds.
pub(super) struct Searched<'a> {
    pub identity: Option<&'a str>,
    pub order: &'a LetterOrder,
    pub message_id: Option<&'a str>,
    pub routing_key: &'a str,
    pub code: &'a str,
    pub failure_reason: Option<&'a str>,
    /// The text of the body, if it was read.
    pub body: Option<&'a str>,
}

impl Searched<'_> {
    /// In lower case: what a person may know about the message, then the beginning of its text.
    pub fn text(&self) -> String {
        let Searched { identity, order, message_id, routing_key, code, failure_reason, body } = *self;
        let (id, customer) = (order.id.as_deref(), order.customer_id.as_deref());
        let known = [identity, id, customer, message_id, Some(routing_key), Some(code), failure_reason];
        let body = body.map(|body| &body[..body.floor_char_boundary(MAX_SEARCH_BYTES)]);
        let mut search = String::new();
        for part in known.into_iter().flatten().chain(order.products.iter().map(String::as_str)).chain(body) {
            if search.len() >= MAX_SEARCH_BYTES {
                break;
            }
            search.push_str(&part.to_lowercase());
            search.push('\n');
        }
        search.truncate(search.floor_char_boundary(MAX_SEARCH_BYTES));
        search
    }
}
