//! JSON objects: the named fields as raw JSON, in one pass, and errors in plain words.
//!
//! Pure. Its errors never contain a value as it was sent: a rejected value may be a secret in the wrong field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Longest number that a message shows, in bytes.
const SHOWN_NUMBER: usize = 6;

/// A text is not a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// There is no text.
    #[error("the text is empty, it must be a JSON object")]
    Empty,
    /// It is not JSON.
    #[error("not JSON: {cause} at {}column {column}", line_prefix(*line))]
    Syntax {
        /// What is wrong.
        cause: &'static str,
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// It is JSON, but not an object.
    #[error("must be a JSON object, is {0}")]
    NotAnObject(String),
    /// The object has the same field twice, which is ambiguous.
    #[error("{0} is given twice")]
    Duplicate(&'static str),
}

/// Names the line, unless it is the first: the text of most messages has one line.
fn line_prefix(line: usize) -> String {
    if line > 1 { format!("line {line}, ") } else { String::new() }
}

/// An object's fields.
#[derive(Debug)]
pub struct ObjectFields<'a, const N: usize> {
    /// The named fields, in the order of the names.
    pub named: [Option<&'a RawValue>; N],
    /// The other fields. If one is given twice, the last. Empty if they exceed their limits.
    pub others: BTreeMap<String, Box<RawValue>>,
    /// There are other fields that were not kept.
    pub others_dropped: bool,
    /// How many other fields the object has.
    pub others_count: usize,
}

/// How much is kept of the fields that are not named.
#[derive(Debug, Clone, Copy)]
pub struct OtherFields {
    /// How many.
    pub max_count: usize,
    /// Their names and values as JSON, in bytes.
    pub max_bytes: usize,
}

impl OtherFields {
    /// Keeps none.
    pub const NONE: OtherFields = OtherFields { max_count: 0, max_bytes: 0 };
}

/// Reads an object: the named fields, and the others within their limits.
pub fn object_fields<'a, const N: usize>(
    text: &'a str,
    names: &'static [&'static str; N],
    others: OtherFields,
) -> Result<ObjectFields<'a, N>, JsonError> {
    if text.trim_ascii().is_empty() {
        return Err(JsonError::Empty);
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let (fields, twice) = ObjectSeed { names, limits: others }.deserialize(&mut json).map_err(|error| {
        if error.is_data() { JsonError::NotAnObject(describe(text.trim_ascii())) } else { syntax_error(text, &error) }
    })?;
    json.end().map_err(|error| JsonError::Syntax {
        cause: "more text after the object",
        line: error.line(),
        column: error.column(),
    })?;
    twice.map_or(Ok(fields), |name| Err(JsonError::Duplicate(name)))
}

fn syntax_error(text: &str, error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let bytes = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().as_bytes();
    let at = column.saturating_sub(1).min(bytes.len());
    let start = bytes[..at].iter().rposition(|byte| !byte.is_ascii_alphabetic()).map_or(0, |before| before + 1);
    let cause = match &bytes[start..] {
        _ if error.is_eof() => "the text ends too early",
        [b'N', b'a', b'N', ..] | [b'n', b'a', b'n', ..] => "NaN is not a number in JSON",
        [b'I', b'n', b'f', ..] | [b'i', b'n', b'f', ..] => "Infinity is not a number in JSON",
        _ => "unexpected character",
    };
    JsonError::Syntax { cause, line, column }
}

/// What a value is, without the value itself unless that is a short number.
pub(super) fn describe(raw: &str) -> String {
    match raw.as_bytes() {
        [] => "empty".to_owned(),
        [b'n', ..] => "null".to_owned(),
        [b't', ..] => "true".to_owned(),
        [b'f', ..] => "false".to_owned(),
        [b'[', ..] => "a list".to_owned(),
        [b'{', ..] => "an object".to_owned(),
        [b'"', ..] => match text(raw) {
            None => "a text with an invalid escape sequence".to_owned(),
            Some(text) => describe_text(&text),
        },
        number if number.len() <= SHOWN_NUMBER => raw.to_owned(),
        number => format!("a number of {} characters", number.len()),
    }
}

/// What a text is, without the text itself unless that is a short number.
pub(super) fn describe_text(text: &str) -> String {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    match text.len() {
        0 => "an empty text".to_owned(),
        1..=SHOWN_NUMBER if is_number => format!("the text \"{text}\""),
        _ if ["nan", "inf", "infinity"].iter().any(|word| text.eq_ignore_ascii_case(word)) => "not a number".to_owned(),
        _ => format!("a text of {} characters", text.chars().count()),
    }
}

/// The text of a JSON string; `None` if the value is not a string, or has an invalid escape sequence.
pub fn text(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(raw).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

struct ObjectSeed<const N: usize> {
    names: &'static [&'static str; N],
    limits: OtherFields,
}

impl<'de, const N: usize> DeserializeSeed<'de> for ObjectSeed<N> {
    /// The fields, and the name of one that is given twice.
    type Value = (ObjectFields<'de, N>, Option<&'static str>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for ObjectSeed<N> {
    type Value = (ObjectFields<'de, N>, Option<&'static str>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (others, others_dropped, others_count) = (BTreeMap::new(), false, 0);
        let mut fields = ObjectFields { named: [None; N], others, others_dropped, others_count };
        let (mut twice, mut bytes) = (None, 0);
        loop {
            let keeps_others = fields.others_count < self.limits.max_count && !fields.others_dropped;
            match map.next_key_seed(KeySeed { names: self.names, keeps_others })? {
                None => return Ok((fields, twice)),
                Some(Key::Named(index)) => {
                    if fields.named[index].replace(map.next_value()?).is_some() {
                        twice = Some(self.names[index]);
                    }
                }
                Some(Key::Other(name)) => {
                    fields.others_count += 1;
                    let value: &RawValue = map.next_value()?;
                    // A name takes up to six times its bytes in JSON: `\u0001`.
                    bytes += 6 * name.len() + value.get().len();
                    if bytes <= self.limits.max_bytes {
                        fields.others.insert(name, value.to_owned());
                    } else {
                        (fields.others, fields.others_dropped) = (BTreeMap::new(), true);
                    }
                }
                Some(Key::Ignored) => {
                    map.next_value::<IgnoredAny>()?;
                    fields.others_count += 1;
                    (fields.others, fields.others_dropped) = (BTreeMap::new(), true);
                }
            }
        }
    }
}

enum Key {
    Named(usize),
    Other(String),
    Ignored,
}

struct KeySeed {
    names: &'static [&'static str],
    keeps_others: bool,
}

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Key, E> {
        Ok(match self.names.iter().position(|known| *known == name) {
            Some(index) => Key::Named(index),
            None if self.keeps_others => Key::Other(name.to_owned()),
            None => Key::Ignored,
        })
    }
}
