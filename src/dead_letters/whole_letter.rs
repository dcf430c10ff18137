//! Whole dead letters as JSON. It loses nothing: a body that is no text is in Base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::ledger::{DeadLetter, DeadLetterDetail, LetterAttempt, LetterStep};

/// One dead letter with everything about it. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize, ToSchema)]
pub struct WholeLetter<'a> {
    #[serde(flatten)]
    letter: &'a DeadLetter,
    /// All products of the order.
    product_names: &'a [String],
    /// 0: the content is as it came.
    revision: i64,
    /// The properties of the message.
    properties: &'a Value,
    /// The headers, each with its type.
    headers: &'a Value,
    /// The body, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// The body in Base64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    /// Its failed attempts, the oldest first.
    attempts: &'a [LetterAttempt],
    /// What was called for it, the oldest first.
    steps: &'a [LetterStep],
}

impl<'a> From<&'a DeadLetterDetail> for WholeLetter<'a> {
    fn from(detail: &'a DeadLetterDetail) -> Self {
        let DeadLetterDetail { letter, products, content, attempts, steps } = detail;
        let body = std::str::from_utf8(&content.body).ok();
        WholeLetter {
            letter,
            product_names: products,
            revision: content.revision,
            properties: &content.properties,
            headers: &content.headers,
            body,
            body_base64: body.is_none().then(|| STANDARD.encode(&content.body)),
            attempts,
            steps,
        }
    }
}
