//! Bodies of dead letters for people.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;

use crate::domain::{body_text, is_compressed};

/// The most of a decompressed body that is shown, in bytes.
const MAX_DECOMPRESSED: usize = 16 << 20;

/// What is nested more deeply is not indented further: indentation must not make a large body many times as large.
const MAX_INDENTED: usize = 32;

/// The text of a compressed body; `None` if it is not compressed. Some producers do not declare that it is compressed with gzip.
pub(super) fn decompressed(bytes: &[u8], content_encoding: Option<&str>) -> Option<String> {
    let declared = content_encoding.filter(|encoding| is_compressed(Some(encoding)));
    body_text(bytes, declared.or(Some("gzip")), MAX_DECOMPRESSED).ok().map(Cow::into_owned)
}

/// The body as lines of text: JSON indented, other text as it is, anything else in Base64.
pub(super) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Err(_) => format!("(Base64) {}", STANDARD.encode(bytes)),
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => indented(text),
        Ok(text) => text.to_owned(),
    }
}

/// Valid JSON with other white space. All else is shown as it is stored: a name that occurs twice or a number with many digits may be why
/// the message failed.
fn indented(json: &str) -> String {
    let (mut out, mut depth, mut in_string, mut is_escaped) =
        (String::with_capacity(json.len() * 2), 0_usize, false, false);
    let mut characters = json.chars().peekable();
    while let Some(character) = characters.next() {
        if in_string {
            out.push(character);
            in_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
            continue;
        }
        match character {
            '{' | '[' => {
                out.push(character);
                while characters.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                match characters.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(character);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            space if space.is_ascii_whitespace() => {}
            _ => {
                in_string = character == '"';
                out.push(character);
            }
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth.min(MAX_INDENTED)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::encoded_body;

    #[test]
    fn a_body_is_shown_whatever_it_is() {
        assert_eq!(readable(br#"{"id":1}"#), "{\n  \"id\": 1\n}");
        assert_eq!(readable(b"{\"id\":"), "{\"id\":");
        assert_eq!(readable(b" 17 "), "17");
        assert_eq!(readable(b"\xff\x00"), "(Base64) /wA=");
        assert_eq!(readable(b""), "");
        let stored = r#"{"q":1,"q":2,"id":12345678901234567890123,"price":0.10000000000000000001,"a" : [ ],"b":["\\",{"c":"\"{,:}"}]}"#;
        let shown = "{
  \"q\": 1,
  \"q\": 2,
  \"id\": 12345678901234567890123,
  \"price\": 0.10000000000000000001,
  \"a\": [],
  \"b\": [
    \"\\\\\",
    {
      \"c\": \"\\\"{,:}\"
    }
  ]
}";
        assert_eq!(readable(stored.as_bytes()), shown, "nothing but white space is another one");
        let packed = encoded_body(b"text".to_vec(), Some("deflate")).unwrap().unwrap();
        assert_eq!(decompressed(&packed, Some("deflate")).as_deref(), Some("text"));
        assert_eq!(decompressed(b"text", None), None);
        assert_eq!(decompressed(b"text", Some("gzip")), None, "it is damaged");
    }
}
