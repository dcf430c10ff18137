//! Makes a publication of a line, or says why not. Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Number;

use super::lines::MAX_LINE_BYTES;
use crate::domain::{DecodeError, Order, RuleError};
use crate::message::{Message, Properties, Publication};

/// Longest message id, as AMQP bounds it, in bytes.
const MAX_MESSAGE_ID: usize = 255;
/// The routing keys of orders.
pub(super) const NORMAL_KEY: &str = "order.normal.created";
pub(super) const PRIORITY_KEY: &str = "order.priority.created";

/// What the lines are and where they go.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// The exchange's name.
    pub exchange: Arc<str>,
    /// For every line; without it orders go by their priority.
    pub routing_key: Option<String>,
    /// Any JSON object instead of orders.
    pub raw: bool,
}

/// Why a line is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
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

impl Shape {
    /// Checks one line; what is published is the line as it came.
    pub fn publication(&self, line: Option<Vec<u8>>) -> Result<Publication, Refusal> {
        let body = line.ok_or(Refusal::TooLong)?;
        if std::str::from_utf8(&body).is_err() {
            return Err(Refusal::NotUtf8);
        }
        let (id, key) = if self.raw { (raw_id(&body)?, NORMAL_KEY) } else { order_id_and_key(&body)? };
        let properties =
            Properties { content_type: Some("application/json".to_owned()), message_id: id, ..Properties::default() };
        Ok(Publication {
            exchange: Arc::clone(&self.exchange),
            routing_key: self.routing_key.clone().unwrap_or_else(|| key.to_owned()),
            message: Message { properties, body: Bytes::from(body), ..Message::default() },
        })
    }
}

fn order_id_and_key(body: &[u8]) -> Result<(Option<String>, &'static str), Refusal> {
    let order = Order::decode(body)?;
    order.check()?;
    let key = if order.priority { PRIORITY_KEY } else { NORMAL_KEY };
    Ok((Some(order.id.as_str().to_owned()), key))
}

/// The id of an object that names one in `message_id` or `id`, as text or as a number.
fn raw_id(body: &[u8]) -> Result<Option<String>, Refusal> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(Number),
        Other(serde::de::IgnoredAny),
    }
    // A struct would also be read from a JSON array.
    let fields: std::collections::HashMap<String, &serde_json::value::RawValue> =
        serde_json::from_slice(body).map_err(Refusal::NotAnObject)?;
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

    fn shape(routing_key: Option<&str>, raw: bool) -> Shape {
        Shape { exchange: "orders".into(), routing_key: routing_key.map(str::to_owned), raw }
    }

    fn read(shape: &Shape, line: &[u8]) -> Result<Publication, String> {
        shape.publication(Some(line.to_vec())).map_err(|refusal| chain(&refusal))
    }

    #[test]
    fn an_order_goes_by_its_priority_and_bears_its_id() {
        let normal = br#"{"id": 2, "product": "Mouse", "quantity": 1, "price": 10, "note": "kept"}"#;
        let publication = read(&shape(None, false), normal).unwrap();
        assert_eq!(publication.routing_key, "order.normal.created");
        assert_eq!(publication.message.properties.message_id.as_deref(), Some("2"));
        assert_eq!(publication.message.body, normal.as_slice(), "a line is published as it came");
        let urgent = br#"{"id": "ord-3", "product": "Mouse", "quantity": 1, "price": 10, "priority": true}"#;
        assert_eq!(read(&shape(None, false), urgent).unwrap().routing_key, "order.priority.created");
        assert_eq!(
            read(&shape(Some("order.normal.import"), false), urgent).unwrap().routing_key,
            "order.normal.import"
        );
    }

    #[test]
    fn what_is_no_valid_order_is_refused_with_its_reason() {
        let orders = shape(None, false);
        for (line, reason) in [
            (&b"nonsense"[..], "not an order"),
            (b"[1]", "not an order"),
            (br#"{"id": 1}"#, "missing field `product`"),
            (
                br#"{"id": 1, "product": "Mouse", "quantity": 0, "price": 1}"#,
                "quantity must be 1 to 1000000000000, is 0",
            ),
            (b"\xff{}", "not UTF-8"),
        ] {
            let refusal = read(&orders, line).unwrap_err();
            assert!(refusal.contains(reason), "{refusal}");
        }
        assert!(orders.publication(None).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn raw_takes_any_object_and_its_id_where_it_has_one() {
        let raw = shape(Some("order.analytics.page_view"), true);
        for (line, id) in [
            (r#"{"message_id": "m-1", "id": 7}"#, Some("m-1")),
            (r#"{"id": 7}"#, Some("7")),
            (r#"{"id": {"x": 1}}"#, None),
            (r#"{"page": "/"}"#, None),
        ] {
            let publication = read(&raw, line.as_bytes()).unwrap();
            assert_eq!(publication.message.properties.message_id.as_deref(), id, "{line}");
            assert_eq!(publication.routing_key, "order.analytics.page_view");
        }
        assert!(read(&raw, b"[1]").unwrap_err().starts_with("not a JSON object"));
    }
}
