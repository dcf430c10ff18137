//! JSON objects: the named fields as raw JSON, in one pass, and errors in plain words.
//!
//! Pure. Its errors never contain a value as it was sent: a rejected value may be a secret in the wrong field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
    Duplicate(String),
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
    /// How many bytes those that were counted have, as JSON.
    pub others_bytes: usize,
}

/// The items of a JSON list.
#[derive(Debug)]
pub struct ListItems<'a> {
    /// The first ones.
    pub items: Vec<&'a RawValue>,
    /// How many the list has.
    pub count: usize,
}

/// Reads a JSON list, of which at most `max` items are kept. `None` if the text, which must be JSON, is no list.
pub fn list_items(json: &str, max: usize) -> Option<ListItems<'_>> {
    serde_json::Deserializer::from_str(json).deserialize_seq(ListVisitor { max }).ok()
}

struct ListVisitor {
    max: usize,
}

impl<'de> Visitor<'de> for ListVisitor {
    type Value = ListItems<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = ListItems { items: Vec::new(), count: 0 };
        while found.count < self.max {
            let Some(item) = list.next_element()? else { return Ok(found) };
            found.items.push(item);
            found.count += 1;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            found.count += 1;
        }
        Ok(found)
    }
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
    let (fields, twice) =
        ObjectSeed { names, limits: others }.deserialize(&mut json).map_err(|error| object_error(text, &error))?;
    end(&mut json)?;
    twice.map_or(Ok(fields), |name| Err(JsonError::Duplicate(name.to_owned())))
}

/// Reads the values with these names from an object, in the order of the names, which are few. Reads nothing of the others.
pub fn object_values<'a>(text: &'a str, names: &[&str]) -> Result<Vec<Option<&'a RawValue>>, JsonError> {
    if text.trim_ascii().is_empty() {
        return Err(JsonError::Empty);
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let (values, twice) = ValuesSeed(names).deserialize(&mut json).map_err(|error| object_error(text, &error))?;
    end(&mut json)?;
    twice.map_or(Ok(values), |index| Err(JsonError::Duplicate(names[index].to_owned())))
}

fn object_error(text: &str, error: &serde_json::Error) -> JsonError {
    if error.is_data() { JsonError::NotAnObject(describe(text.trim_ascii())) } else { syntax_error(text, error) }
}

fn end(json: &mut serde_json::Deserializer<serde_json::de::StrRead<'_>>) -> Result<(), JsonError> {
    json.end().map_err(|error| JsonError::Syntax {
        cause: "more text after the object",
        line: error.line(),
        column: error.column(),
    })
}

struct ValuesSeed<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for ValuesSeed<'_> {
    /// The values, and the index of a name that is given twice.
    type Value = (Vec<Option<&'de RawValue>>, Option<usize>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ValuesSeed<'_> {
    type Value = (Vec<Option<&'de RawValue>>, Option<usize>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut values, mut twice) = (vec![None; self.0.len()], None);
        while let Some(key) = map.next_key_seed(KeySeed { names: self.0, keeps_others: false })? {
            match key {
                Key::Named(index) => {
                    if values[index].replace(map.next_value()?).is_some() {
                        twice = Some(index);
                    }
                }
                Key::Other(_) | Key::Ignored => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok((values, twice))
    }
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
        let mut fields = ObjectFields {
            named: [None; N],
            others: BTreeMap::new(),
            others_dropped: false,
            others_count: 0,
            others_bytes: 0,
        };
        let mut twice = None;
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
                    fields.others_bytes += 6 * name.len() + value.get().len();
                    if fields.others_bytes <= self.limits.max_bytes {
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

struct KeySeed<'n> {
    names: &'n [&'n str],
    keeps_others: bool,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
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
