//! Bodies of dead letters for people.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::domain::{body_text, is_compressed};

/// The most of a decompressed body that is shown, in bytes.
const MAX_DECOMPRESSED: usize = 16 << 20;

/// The text of a compressed body; `None` if it is not compressed. Some producers do not declare that it is compressed with gzip.
pub(super) fn decompressed(bytes: &[u8], content_encoding: Option<&str>) -> Option<String> {
    let declared = content_encoding.filter(|encoding| is_compressed(Some(encoding)));
    body_text(bytes, declared.or(Some("gzip")), MAX_DECOMPRESSED).ok().map(Cow::into_owned)
}

/// The body as lines of text: JSON indented, other text as it is, anything else in Base64.
pub(super) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Err(_) => format!("(Base64) {}", STANDARD.encode(bytes)),
        Ok(text) => match serde_json::from_str::<Value>(text) {
            Ok(value) if value.is_object() || value.is_array() => format!("{value:#}"),
            _ => text.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::encoded_body;

    #[test]
    fn a_body_is_shown_whatever_it_is() {
        assert_eq!(readable(br#"{"id":1}"#), "{\n  \"id\": 1\n}");
        assert_eq!(readable(b"{\"id\":"), "{\"id\":");
        assert_eq!(readable(b"\xff\x00"), "(Base64) /wA=");
        assert_eq!(readable(b""), "");
        let packed = encoded_body(b"text".to_vec(), Some("deflate")).unwrap().unwrap();
        assert_eq!(decompressed(&packed, Some("deflate")).as_deref(), Some("text"));
        assert_eq!(decompressed(b"text", None), None);
        assert_eq!(decompressed(b"text", Some("gzip")), None, "it is damaged");
    }
}
