//! Whole dead letters as JSON. It loses nothing: a body that is no text is in Base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::ledger::{
    DeadLetter, DeadLetterContent, DeadLetterDetail, LetterAttempt, LetterDelivery, LetterReplay, LetterRevision,
    LetterStep, content_hash,
};

/// One dead letter with everything about it. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WholeLetter {
    /// The dead letter.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// All products of the order.
    pub product_names: Vec<String>,
    /// 0: the content is as it came.
    pub revision: i64,
    /// The properties of the message.
    pub properties: Value,
    /// The headers, each with its type.
    pub headers: Value,
    /// The body, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body in Base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// The SHA-256 hash of the body as it is stored: the journal has it of each body before and after an edit.
    pub body_sha256: String,
    /// What persons have edited, the oldest first.
    pub edits: Vec<LetterRevision>,
    /// Its replays, the oldest first; at most the latest 100.
    pub replays: Vec<LetterReplay>,
    /// Its failed attempts, also those before a replay, the oldest first; at most the latest 1,000.
    pub attempts: Vec<LetterAttempt>,
    /// Of a notification, the deliveries that failed, the oldest first; at most the latest 100.
    pub deliveries: Vec<LetterDelivery>,
    /// What was called for it, the oldest first.
    pub steps: Vec<LetterStep>,
}

impl From<DeadLetterDetail> for WholeLetter {
    fn from(detail: DeadLetterDetail) -> Self {
        let DeadLetterDetail { letter, products, content, edits, replays, attempts, deliveries, steps } = detail;
        let DeadLetterContent { revision, properties, headers, body } = content;
        let body_sha256 = content_hash(&body);
        let (body, body_base64) = match String::from_utf8(body) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        WholeLetter {
            letter,
            product_names: products,
            revision,
            properties,
            headers,
            body,
            body_base64,
            body_sha256,
            edits,
            replays,
            attempts,
            deliveries,
            steps,
        }
    }
}
