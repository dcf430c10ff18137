//! The line of an event in an event file, which every JSON parser can read and a terminal can show.
//!
//! Bodies are other programs' JSON. What is valid by the grammar but not readable by common parsers is kept as text: numbers
//! out of range, and deep nesting. Nothing is left out, and no body makes this fail.

use std::io::Write;

use jiff::Timestamp;

use crate::escape::json_escaped;

/// Length of a line without id, event and body, in bytes.
const OVERHEAD_BYTES: usize = 96;
/// The deepest nesting of a body that is kept as it is. Parsers commonly refuse more than 128 levels.
const MAX_DEPTH: usize = 100;
/// A number with fewer characters and no exponent is always in the range of a 64-bit floating-point number.
const LONG_NUMBER: usize = 300;

/// One line: `{"id":…,"event":…,"received_at":…,"body":…}`. The body must be a JSON value.
pub(super) fn event_line(id: &str, event: &str, received_at: Timestamp, body: &str) -> Vec<u8> {
    const INFALLIBLE: &str = "writing to a buffer does not fail, and text can be written as JSON";
    let mut line = Vec::with_capacity(id.len() + event.len() + body.len() + OVERHEAD_BYTES);
    line.extend_from_slice(b"{\"id\":");
    serde_json::to_writer(&mut line, id).expect(INFALLIBLE);
    line.extend_from_slice(b",\"event\":");
    serde_json::to_writer(&mut line, event).expect(INFALLIBLE);
    write!(line, ",\"received_at\":\"{received_at}\",\"body\":").expect(INFALLIBLE);
    write_body(body, &mut line);
    line.extend_from_slice(b"}\n");
    // ASCII control characters other than DEL are escaped in every JSON string.
    if line.iter().all(|byte| byte.is_ascii() && *byte != 0x7f) {
        return line;
    }
    json_escaped(&String::from_utf8(line).expect("it consists of texts")).into_bytes()
}

/// Copies a JSON value token by token.
fn write_body(body: &str, line: &mut Vec<u8>) {
    let bytes = body.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        let end = match byte {
            b'"' => end_of_string(bytes, at),
            b'{' | b'[' if depth == MAX_DEPTH => end_of_nested(bytes, at),
            b'-' | b'0'..=b'9' => end_of_number(bytes, at),
            b'\n' | b'\r' | b'\t' | b'{' | b'[' | b'}' | b']' => at + 1,
            _ => end_of_other(bytes, at),
        };
        let token = &bytes[at..end];
        match byte {
            b'"' => write_string(token, line),
            b'{' | b'[' if depth == MAX_DEPTH => write_as_text(&body[at..end], line),
            b'-' | b'0'..=b'9' if is_out_of_range(&body[at..end]) => write_as_text(&body[at..end], line),
            // White space between tokens.
            b'\n' | b'\r' | b'\t' => line.push(b' '),
            b'{' | b'[' => {
                depth += 1;
                line.push(*byte);
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line.push(*byte);
            }
            _ => line.extend_from_slice(token),
        }
        at = end;
    }
}

fn write_as_text(json: &str, line: &mut Vec<u8>) {
    serde_json::to_writer(line, json).expect("text can be written as JSON");
}

/// Copies a string; an escaped half of a surrogate pair becomes U+FFFD, since it is no character.
fn write_string(string: &[u8], line: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(escape) = string[at..].iter().position(|byte| *byte == b'\\').map(|found| at + found) {
        line.extend_from_slice(&string[at..escape]);
        let (text, length): (&[u8], usize) = match (unit(string, escape), unit(string, escape + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (&string[escape..escape + 12], 12),
            (Some(0xd800..=0xdfff), _) => (b"\\ufffd", 6),
            // Another escape has two characters, or continues with characters that are copied as they are.
            (Some(_), _) | (None, _) => (&string[escape..escape + 2], 2),
        };
        line.extend_from_slice(text);
        at = escape + length;
    }
    line.extend_from_slice(&string[at..]);
}

/// The UTF-16 code unit of an escape `\uXXXX` at this position.
fn unit(string: &[u8], at: usize) -> Option<u16> {
    let digits = string.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn is_out_of_range(number: &str) -> bool {
    (number.len() >= LONG_NUMBER || number.contains(['e', 'E'])) && number.parse().is_ok_and(f64::is_infinite)
}

/// The position after the string that begins here.
fn end_of_string(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        match json[at + found] {
            b'"' => return at + found + 1,
            _ => at += found + 2,
        }
    }
    json.len()
}

/// The position after the spaces, separators and literals that begin here, which are copied as they are.
fn end_of_other(json: &[u8], start: usize) -> usize {
    let is_other =
        |byte: &u8| !matches!(byte, b'"' | b'{' | b'[' | b'}' | b']' | b'-' | b'0'..=b'9' | b'\n' | b'\r' | b'\t');
    json[start..].iter().position(|byte| !is_other(byte)).map_or(json.len(), |length| start + length)
}

/// The position after the array or object that begins here.
fn end_of_nested(json: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at = end_of_string(json, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    json.len()
}

fn end_of_number(json: &[u8], start: usize) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    json[start..].iter().position(|byte| !is_part(byte)).map_or(json.len(), |length| start + length)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::escape::is_escaped;

    fn line(body: &str) -> (String, Value) {
        let at = "2026-11-22T08:00:01Z".parse().unwrap();
        let line = String::from_utf8(event_line("a\"b\u{1b}\u{9b}", "email\u{7f}", at, body)).unwrap();
        assert!(!line.strip_suffix('\n').unwrap().contains(is_escaped), "{line:?}");
        let mut read: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!((read["id"].as_str(), read["event"].as_str()), (Some("a\"b\u{1b}\u{9b}"), Some("email\u{7f}")));
        (line, read["body"].take())
    }

    #[test]
    fn every_event_is_one_line_of_json_that_can_be_shown_on_a_terminal() {
        let hostile =
            "\u{1b}[2J\r\n\t\0\u{7f}\u{85}\u{9b}31m\u{202e}\u{2066}\u{2028}\u{2029}\u{200b}\u{feff}\u{e0041}\"\\/";
        let value =
            json!({ hostile: [hostile, {"n": [1, -2.5, 1e300, null, true]}], "long": "\u{9f}x".repeat(1 << 19) });
        assert_eq!(line(&value.to_string()).1, value);
        assert_eq!(line(&format!("{value:#}").replace("\n  ", "\r\n\t")).1, value);
    }

    #[test]
    fn half_a_surrogate_pair_does_not_make_a_line_unreadable() {
        for (body, expected) in [
            (r#"{"a":"\ud83d\ude00"}"#, "\u{1f600}"),
            (r#"{"a":"\ud83d"}"#, "\u{fffd}"),
            (r#"{"a":"\uDE00\uD83Dx"}"#, "\u{fffd}\u{fffd}x"),
            (r#"{"a":"\ud83d\u0041"}"#, "\u{fffd}A"),
            (r#"{"a":"\ud83d\n"}"#, "\u{fffd}\n"),
            (r#"{"a":"\\ud83d"}"#, "\\ud83d"),
            (r#"{"a":"\\\ud83d\\"}"#, "\\\u{fffd}\\"),
            (r#"{"a":"\u00e9\""}"#, "é\""),
        ] {
            assert_eq!(line(body).1["a"].as_str(), Some(expected), "{body}");
        }
    }

    #[test]
    fn numbers_out_of_range_and_deep_nesting_are_kept_as_text() {
        let digits = "9".repeat(400);
        let (_, body) = line(&format!(r#"{{"a":1e999,"b":[-1E+400,{digits}],"c":1e-999,"d":12.50}}"#));
        assert_eq!((&body["a"], &body["b"][0], &body["b"][1]), (&json!("1e999"), &json!("-1E+400"), &json!(digits)));
        assert_eq!((&body["c"], &body["d"]), (&json!(0.0), &json!(12.5)));
        for depth in [99, 100, 5_000, 500_000] {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            let (line, _) = line(&format!(r#"{{"deep":{open}"]}}"{close},"after":[{{}}]}}"#));
            let rest = line.split_once(r#""after":"#).map(|(_, rest)| rest);
            assert_eq!(rest, Some("[{}]}}\n"), "{depth}");
        }
    }
}
