//! Turns a line of the input into a publication, or an error. Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Number;

use super::input_lines::MAX_LINE_BYTES;
use crate::domain::{DecodeError, Order, RuleError};
use crate::message::{Message, Properties, Publication};

/// Maximum length of a message id, in bytes: AMQP's limit for a short string.
const MAX_MESSAGE_ID: usize = 255;
/// Routing key of orders without priority.
pub(super) const NORMAL_KEY: &str = "order.normal.created";
/// Routing key of orders with priority.
pub(super) const PRIORITY_KEY: &str = "order.priority.created";

/// Parses the lines of an input: what they contain, and where they are published.
#[derive(Debug, Clone)]
pub(super) struct LineParser {
    /// Name of the exchange.
    pub exchange: Arc<str>,
    /// Routing key of every line; `None`: chosen by the order's priority.
    pub routing_key: Option<String>,
    /// Accept any JSON object instead of orders only.
    pub raw: bool,
}

/// Why a line is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("not UTF-8")]
    NotUtf8,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error("not a JSON object")]
    NotAnObject(#[source] serde_json::Error),
}

impl LineParser {
    /// Checks one line. Its bytes are published unchanged. `None` stands for a line that is too long.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn parse(&self, line: Option<Vec<u8>>) -> Result<Publication, LineError> {
        let body = line.ok_or(LineError::TooLong)?;
        if std::str::from_utf8(&body).is_err() {
            return Err(LineError::NotUtf8);
        }
        let (message_id, key) = if self.raw { (raw_id(&body)?, NORMAL_KEY) } else { order_id_and_key(&body)? };
        let properties =
            Properties { content_type: Some("application/json".to_owned()), message_id, ..Properties::default() };
        Ok(Publication {
            exchange: Arc::clone(&self.exchange),
            routing_key: self.routing_key.clone().unwrap_or_else(|| key.to_owned()),
            message: Message { properties, body: Bytes::from(body), ..Message::default() },
        })
    }
}

fn order_id_and_key(body: &[u8]) -> Result<(Option<String>, &'static str), LineError> {
    let order = Order::decode(body, None)?;
    order.check()?;
    let key = if order.priority { PRIORITY_KEY } else { NORMAL_KEY };
    Ok((Some(order.id.as_str().to_owned()), key))
}

/// The id of a JSON object: its `message_id`, else its `id`, if that is a string or a number of a valid length.
fn raw_id(body: &[u8]) -> Result<Option<String>, LineError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(Number),
        Other(serde::de::IgnoredAny),
    }
    // Not a struct: serde would also accept a JSON array for it.
    let fields: std::collections::HashMap<String, &serde_json::value::RawValue> =
        serde_json::from_slice(body).map_err(LineError::NotAnObject)?;
    let id =
        ["message_id", "id"].into_iter().find_map(|name| match serde_json::from_str(fields.get(name)?.get()).ok()? {
            Id::Text(text) => Some(text),
            Id::Number(number) => Some(number.to_string()),
            Id::Other(_) => None,
        });
    Ok(id.filter(|id| (1..=MAX_MESSAGE_ID).contains(&id.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::chain;

    fn parser(routing_key: Option<&str>, raw: bool) -> LineParser {
        LineParser { exchange: "orders".into(), routing_key: routing_key.map(str::to_owned), raw }
    }

    fn parse(parser: &LineParser, line: &[u8]) -> Result<Publication, String> {
        parser.parse(Some(line.to_vec())).map_err(|error| chain(&error))
    }

    #[test]
    fn an_order_gets_its_routing_key_from_its_priority_and_its_message_id_from_its_id() {
        let normal = br#"{"id": 2, "product": "Mouse", "quantity": 1, "price": 10, "note": "kept"}"#;
        let publication = parse(&parser(None, false), normal).unwrap();
        assert_eq!(publication.routing_key, "order.normal.created");
        assert_eq!(publication.message.properties.message_id.as_deref(), Some("2"));
        assert_eq!(publication.message.body, normal.as_slice(), "a line is published unchanged");
        let urgent = br#"{"id": "ord-3", "product": "Mouse", "quantity": 1, "price": 10, "priority": true}"#;
        assert_eq!(parse(&parser(None, false), urgent).unwrap().routing_key, "order.priority.created");
        assert_eq!(
            parse(&parser(Some("order.normal.import"), false), urgent).unwrap().routing_key,
            "order.normal.import"
        );
    }

    #[test]
    fn an_invalid_order_is_refused_with_its_reason() {
        let orders = parser(None, false);
        for (line, reason) in [
            (&b"nonsense"[..], "not JSON"),
            (b"[1]", "must be a JSON object, is a list"),
            (br#"{"id": 1}"#, "product is missing"),
            (
                br#"{"id": 1, "product": "Mouse", "quantity": 0, "price": 1}"#,
                "quantity must be 1 to 1000000000000, is 0",
            ),
            (b"\xff{}", "not UTF-8"),
        ] {
            let error = parse(&orders, line).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(orders.parse(None).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn with_raw_any_object_is_accepted_and_its_id_is_the_message_id() {
        let raw = parser(Some("order.analytics.page_view"), true);
        for (line, id) in [
            (r#"{"message_id": "m-1", "id": 7}"#, Some("m-1")),
            (r#"{"id": 7}"#, Some("7")),
            (r#"{"id": {"x": 1}}"#, None),
            (r#"{"page": "/"}"#, None),
        ] {
            let publication = parse(&raw, line.as_bytes()).unwrap();
            assert_eq!(publication.message.properties.message_id.as_deref(), id, "{line}");
            assert_eq!(publication.routing_key, "order.analytics.page_view");
        }
        assert!(parse(&raw, b"[1]").unwrap_err().starts_with("not a JSON object"));
    }
}
