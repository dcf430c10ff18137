//! What is stored of a message. Plain values; nothing here reads a message.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most text that is searched in one message, in bytes: the texts of two messages fit one of SQLite's pages, of which a search
/// reads all.
pub const MAX_SEARCH_BYTES: usize = 2_000;

/// Makes an enum whose values are texts in the store, in JSON and on the command line.
macro_rules! named {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$meaning])* #[serde(rename = $text)] $variant),+
        }

        // The derived schema does not see a name that a macro has passed on.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let text = utoipa::openapi::schema::Type::String;
                utoipa::openapi::ObjectBuilder::new().schema_type(text).enum_values(Some([$($text),+])).into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// Its name in the store, in JSON and on the command line.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text),+
                }
            }

            /// The one with this name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == text)
            }
        }
    };
}

pub(in crate::ledger) use named;

named! {
    /// The queue that a message was taken from.
    LetterSource {
        /// `dead_letter_queue`.
        DeadLetterQueue = "dead_letter_queue",
        /// `unrouted_queue`.
        UnroutedQueue = "unrouted_queue",
    }
}

named! {
    /// Who put the message into the queue.
    LetterOrigin {
        /// orderd: a copy with the headers of a failure, or an event of its own that no queue is bound for.
        Orderd = "orderd",
        /// The broker, which dead-lettered the message itself.
        Broker = "broker",
        /// Anyone else.
        Others = "others",
    }
}

named! {
    /// What has become of a stored message.
    LetterState {
        /// A person has to decide about it.
        Open = "open",
        /// A person has put it aside.
        Held = "held",
        /// It is being published again.
        Replaying = "replaying",
        /// It was published again.
        Replayed = "replayed",
        /// A person has decided that it is not needed, or its content was erased.
        Discarded = "discarded",
    }
}

impl LetterState {
    /// Whether nothing will come of it any more: retention removes it.
    pub fn is_closed(self) -> bool {
        match self {
            LetterState::Open | LetterState::Held | LetterState::Replaying => false,
            LetterState::Replayed | LetterState::Discarded => true,
        }
    }
}

/// Whether a message can be recognized that is delivered again although it is stored. Messages are the same only if all that they
/// contain is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identification {
    /// It says which message or which order it is, so the same content is the same message.
    ById,
    /// It does not: another message may have the same content.
    Unidentified,
}

/// A number that no other subscription has.
pub fn session_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// What is known about the order that a message is, or is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetterOrder {
    /// The order's id.
    pub id: Option<String>,
    /// The customer's id.
    pub customer_id: Option<String>,
    /// The products, each once.
    pub products: Vec<String>,
    /// What the order costs, as decimal text, with its currency.
    pub total: Option<(String, String)>,
}

/// A message to be stored.
#[derive(Debug, Clone)]
pub struct NewStoredLetter {
    /// The queue that it was taken from.
    pub source: LetterSource,
    /// Who put it there.
    pub origin: LetterOrigin,
    /// Why it is there: the value of `x-dead-letter-reason`, the broker's reason, `foreign` or `unrouted`.
    pub reason: String,
    /// The failure's stable code; `unknown` if there is none.
    pub code: String,
    /// The failure's kind, if it is known.
    pub failure_kind: Option<String>,
    /// The failure's text.
    pub failure_reason: Option<String>,
    /// The consumer that failed, as in the ledger's other tables; empty if there is none.
    pub consumer: String,
    /// Delayed retries before that.
    pub retries: u32,
    /// The message's identity: the order's id, else that of the message. `None` if nothing says which message it is.
    pub identity: Option<String>,
    /// The order.
    pub order: LetterOrder,
    /// The queue in which it first failed.
    pub origin_queue: Option<String>,
    /// The exchange that it was last published to.
    pub exchange: String,
    /// The routing key that it was last published with.
    pub routing_key: String,
    /// The property `message_id`.
    pub message_id: Option<String>,
    /// The property `user_id`, which the broker has verified.
    pub user_id: Option<String>,
    /// When it failed last; if that is not known, when it was taken out of the queue.
    pub failed_at: Timestamp,
    /// When the broker dead-lettered it, if the broker did.
    pub died_at: Option<Timestamp>,
    /// When it was taken out of the queue.
    pub at: Timestamp,
    /// The properties, as JSON.
    pub properties: String,
    /// The headers with their types, as JSON.
    pub headers: String,
    /// The payload, as it came.
    pub body: Bytes,
    /// What a search for text finds, in lower case; at most [`MAX_SEARCH_BYTES`].
    pub search: String,
    /// SHA-256 of everything that the message contains, apart from the broker's counts of deliveries.
    pub fingerprint: [u8; 32],
    /// The `x-replay-id` of a copy that orderd has published again.
    pub replay_key: Option<String>,
    /// Whether it can be recognized.
    pub identification: Identification,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// Whether its body was not read, because that has ended a process.
    pub unparsed: bool,
    /// The subscription that has received it.
    pub session: String,
}

impl NewStoredLetter {
    /// About how much memory it takes, in bytes.
    pub(in crate::ledger) fn bytes(&self) -> usize {
        let products: usize = self.order.products.iter().map(String::len).sum();
        let texts = [&self.reason, &self.code, &self.properties, &self.headers, &self.search, &self.routing_key];
        size_of::<Self>() + self.body.len() + products + texts.iter().map(|text| text.len()).sum::<usize>()
    }
}

/// A stored message whose reading had ended another version of orderd, and was read again.
#[derive(Debug, Clone)]
pub struct EndedParsing {
    /// The message.
    pub letter: i64,
    /// The version that has read it.
    pub version: String,
    /// What it says; `None` if it could not be read.
    pub found: Option<FoundInLetter>,
}

/// What the body of a stored message says.
#[derive(Debug, Clone)]
pub struct FoundInLetter {
    /// The order.
    pub order: LetterOrder,
    /// The message's identity, if it says which message it is.
    pub identity: Option<String>,
    /// What a search for text finds.
    pub search: String,
}

impl EndedParsing {
    /// About how much memory it takes, in bytes.
    pub(in crate::ledger) fn bytes(&self) -> usize {
        let found = self
            .found
            .as_ref()
            .map_or(0, |found| found.search.len() + found.order.products.iter().map(String::len).sum::<usize>());
        size_of::<Self>() + found
    }
}

/// The ledger's answer to a message that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAnswer {
    /// It was not stored before; this is its number.
    Stored(i64),
    /// It was stored before, under this number.
    Duplicate(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_one_name_everywhere() {
        for state in LetterState::ALL {
            assert_eq!(LetterState::parse(state.as_str()), Some(*state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(LetterState::parse("gone"), None);
    }
}
