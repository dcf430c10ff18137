//! Bodies of dead letters for people.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

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

    #[test]
    fn a_body_is_shown_whatever_it_is() {
        assert_eq!(readable(br#"{"id":1}"#), "{\n  \"id\": 1\n}");
        assert_eq!(readable(b"{\"id\":"), "{\"id\":");
        assert_eq!(readable(b"\xff\x00"), "(Base64) /wA=");
        assert_eq!(readable(b""), "");
    }
}
