//! Turns a line of the input into a publication, or an error. Pure.

use std::sync::Arc;

use bytes::Bytes;

use super::input_form::InputProblem;
use super::input_lines::MAX_LINE_BYTES;
use crate::domain::{self, DecodeError, OrderDocument, OtherFields, RuleError, body_text, object_fields};
use crate::message::{Message, Properties, Publication};
use crate::notify::{RecipientCheck, RecipientWarning};

/// Maximum length of a message id, in bytes: AMQP's limit for a short string.
const MAX_MESSAGE_ID: usize = 255;
/// Routing key of orders without priority.
pub(super) const NORMAL_KEY: &str = "order.normal.created";
/// Routing key of orders with priority.
pub(super) const PRIORITY_KEY: &str = "order.priority.created";

/// Routing key of cancellations.
const CANCELLED_KEY: &str = "order.normal.cancelled";

/// Parses the lines of an input: what they contain, and where they are published.
#[derive(Debug, Clone)]
pub(super) struct LineParser {
    /// Name of the exchange.
    pub exchange: Arc<str>,
    /// Routing key of every line; `None`: chosen by the order's priority.
    pub routing_key: Option<String>,
    /// Accept any JSON object instead of orders only.
    pub raw: bool,
    /// Finds orders whose customer cannot be notified.
    pub recipients: RecipientCheck,
}

/// A line that can be published.
#[derive(Debug)]
pub(super) struct ParsedLine {
    pub publication: Publication,
    /// Why the customer may not be notified.
    pub warnings: Vec<RecipientWarning>,
}

/// Why a line is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// The first line, for the whole input.
    #[error(transparent)]
    Input(#[from] InputProblem),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Rule(#[from] RuleError),
}

impl LineParser {
    /// Checks one line. Its bytes are published unchanged. `None` stands for a line that is too long.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn parse(&self, line: Option<Vec<u8>>) -> Result<ParsedLine, LineError> {
        let body = line.ok_or(LineError::TooLong)?;
        let mut warnings = Vec::new();
        let (message_id, key) = if self.raw {
            (raw_id(&body)?, NORMAL_KEY)
        } else {
            let json = body_text(&body, None, body.len()).map_err(DecodeError::from)?;
            match OrderDocument::from_json(&json, None)? {
                OrderDocument::Placed(order) => {
                    order.check()?;
                    warnings = self.recipients.warnings(&order);
                    let key = if order.priority { PRIORITY_KEY } else { NORMAL_KEY };
                    (Some(order.id.as_str().to_owned()), key)
                }
                OrderDocument::Cancelled(id) => (Some([id.as_str(), "/cancellation"].concat()), CANCELLED_KEY),
            }
        };
        let properties =
            Properties { content_type: Some("application/json".to_owned()), message_id, ..Properties::default() };
        let publication = Publication {
            exchange: Arc::clone(&self.exchange),
            routing_key: self.routing_key.clone().unwrap_or_else(|| key.to_owned()),
            message: Message { properties, body: Bytes::from(body), ..Message::default() },
        };
        Ok(ParsedLine { publication, warnings })
    }
}

/// The id of a JSON object: its `message_id`, else its `id`, if that is a text or a number of a valid length.
fn raw_id(body: &[u8]) -> Result<Option<String>, LineError> {
    let json = body_text(body, None, body.len()).map_err(DecodeError::from)?;
    let fields = object_fields(&json, &["message_id", "id"], OtherFields::NONE).map_err(DecodeError::from)?;
    let id = fields.named.into_iter().flatten().find_map(|raw| match raw.get() {
        text if text.starts_with('"') => domain::text(text).map(|text| text.into_owned()),
        number if number.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) => {
            Some(number.to_owned())
        }
        _ => None,
    });
    Ok(id.filter(|id| (1..=MAX_MESSAGE_ID).contains(&id.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::chain;

    fn parser(routing_key: Option<&str>, raw: bool) -> LineParser {
        let recipients = RecipientCheck::default();
        LineParser { exchange: "orders".into(), routing_key: routing_key.map(str::to_owned), raw, recipients }
    }

    fn parse(parser: &LineParser, line: &[u8]) -> Result<Publication, String> {
        parser.parse(Some(line.to_vec())).map(|parsed| parsed.publication).map_err(|error| chain(&error))
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
        let cancellation = parse(&parser(None, false), br#"{"id": "ord-3", "event": "cancelled"}"#).unwrap();
        assert_eq!(cancellation.routing_key, "order.normal.cancelled");
        assert_eq!(cancellation.message.properties.message_id.as_deref(), Some("ord-3/cancellation"));
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
            (b"\xff\xfe{\0\"\0", "UTF-16"),
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
        for (line, reason) in [
            (&b"[1]"[..], "must be a JSON object, is a list"),
            (b"{\"id\":1", "not JSON: the text ends too early at column 7"),
            (b"\xff{}", "not UTF-8"),
        ] {
            let error = parse(&raw, line).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
