//! Whole dead letters as JSON, and their bodies for people. It loses nothing: a body that is no text is in Base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;

use crate::ledger::{DeadLetter, DeadLetterDetail, LetterAttempt, LetterStep};

/// One dead letter with everything about it. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize)]
pub(super) struct WholeLetter<'a> {
    #[serde(flatten)]
    letter: &'a DeadLetter,
    /// All products of the order.
    product_names: &'a [String],
    /// 0: the content is as it came.
    revision: i64,
    properties: &'a Value,
    /// Each with its type.
    headers: &'a Value,
    #[serde(flatten)]
    body: Body<'a>,
    attempts: &'a [LetterAttempt],
    steps: &'a [LetterStep],
}

/// The payload.
#[derive(Debug, Serialize)]
enum Body<'a> {
    /// It is text.
    #[serde(rename = "body")]
    Text(&'a str),
    /// It is not, so this is Base64.
    #[serde(rename = "body_base64")]
    Binary(String),
}

impl<'a> From<&'a DeadLetterDetail> for WholeLetter<'a> {
    fn from(detail: &'a DeadLetterDetail) -> Self {
        let DeadLetterDetail { letter, products, content, attempts, steps } = detail;
        WholeLetter {
            letter,
            product_names: products,
            revision: content.revision,
            properties: &content.properties,
            headers: &content.headers,
            body: body(&content.body),
            attempts,
            steps,
        }
    }
}

fn body(bytes: &[u8]) -> Body<'_> {
    std::str::from_utf8(bytes).map_or_else(|_| Body::Binary(STANDARD.encode(bytes)), Body::Text)
}

/// The body as lines of text: JSON indented, other text as it is, anything else in Base64.
pub(super) fn readable(bytes: &[u8]) -> String {
    match body(bytes) {
        Body::Binary(base64) => format!("(Base64) {base64}"),
        Body::Text(text) => match serde_json::from_str::<Value>(text) {
            Ok(value) if value.is_object() || value.is_array() => format!("{value:#}"),
            _ => text.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_shown_whatever_it_is() {
        assert_eq!(readable(br#"{"id":1}"#), "{\n  \"id\": 1\n}");
        assert_eq!(readable(b"{\"id\":"), "{\"id\":");
        assert_eq!(readable(b"\xff\x00"), "(Base64) /wA=");
        assert_eq!(readable(b""), "");
    }
}
