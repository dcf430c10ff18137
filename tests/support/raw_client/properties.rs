//! Message properties and headers. Each header keeps its AMQP field type when encoded and decoded.

use std::collections::BTreeMap;

use super::{long, short};

/// Property names in the order of their flags, from the highest bit down.
const NAMES: [&str; 14] = [
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
];

/// Headers by name.
pub type Fields = BTreeMap<String, Field>;

/// A header's value with its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// `S`
    Text(String),
    /// `l`
    Long(i64),
    /// `T`
    Time(u64),
    /// `A`
    List(Vec<Field>),
    /// `F`
    Table(Fields),
    /// Any other type, still encoded.
    Other(u8, Vec<u8>),
}

impl Field {
    /// The text of a field of type `S`.
    pub fn text(&self) -> &str {
        match self {
            Field::Text(text) => text,
            other => panic!("{other:?} is not text"),
        }
    }
}

/// A message's properties.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties {
    /// The text properties by name, such as `message_id`.
    pub texts: BTreeMap<String, String>,
    pub headers: Fields,
    pub delivery_mode: Option<u8>,
    pub priority: Option<u8>,
    pub timestamp: Option<u64>,
}

impl Properties {
    /// Delivery mode 2 and nothing else.
    pub fn persistent() -> Self {
        Properties { delivery_mode: Some(2), ..Properties::default() }
    }

    /// Adds a text property such as `message_id`.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        assert!(NAMES.contains(&name));
        self.texts.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: Field) -> Self {
        self.headers.insert(name.to_owned(), value);
        self
    }

    /// Encodes the flags and values for a content header frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0_u16;
        let mut values = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            let value = match *name {
                "headers" if self.headers.is_empty() => None,
                "headers" => Some(long(&table(&self.headers))),
                "delivery_mode" => self.delivery_mode.map(|mode| vec![mode]),
                "priority" => self.priority.map(|priority| vec![priority]),
                "timestamp" => self.timestamp.map(|time| time.to_be_bytes().to_vec()),
                name => self.texts.get(name).map(|text| short(text)),
            };
            if let Some(value) = value {
                flags |= 1 << (15 - index);
                values.extend(value);
            }
        }
        [flags.to_be_bytes().to_vec(), values].concat()
    }

    /// Decodes the part of a content header frame that follows the body size.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        let flags = u16::from_be_bytes(take(&mut rest));
        let mut properties = Properties::default();
        for (index, name) in NAMES.iter().enumerate() {
            if flags & (1 << (15 - index)) == 0 {
                continue;
            }
            match *name {
                "headers" => properties.headers = read_table(&mut rest),
                "delivery_mode" => properties.delivery_mode = Some(take::<1>(&mut rest)[0]),
                "priority" => properties.priority = Some(take::<1>(&mut rest)[0]),
                "timestamp" => properties.timestamp = Some(u64::from_be_bytes(take(&mut rest))),
                name => {
                    properties.texts.insert(name.to_owned(), read_short(&mut rest));
                }
            }
        }
        assert!(rest.is_empty(), "{} bytes after the properties", rest.len());
        properties
    }
}

fn table(fields: &Fields) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [short(name), encode_field(value)].concat()).collect()
}

fn encode_field(value: &Field) -> Vec<u8> {
    let (kind, bytes) = match value {
        Field::Text(text) => (b'S', long(text.as_bytes())),
        Field::Long(number) => (b'l', number.to_be_bytes().to_vec()),
        Field::Time(seconds) => (b'T', seconds.to_be_bytes().to_vec()),
        Field::List(values) => (b'A', long(&values.iter().flat_map(encode_field).collect::<Vec<_>>())),
        Field::Table(fields) => (b'F', long(&table(fields))),
        Field::Other(kind, bytes) => (*kind, bytes.clone()),
    };
    [vec![kind], bytes].concat()
}

fn read_table(rest: &mut &[u8]) -> Fields {
    let mut inner = read_long(rest);
    let mut fields = Fields::new();
    while !inner.is_empty() {
        let name = read_short(&mut inner);
        let value = read_field(&mut inner);
        assert!(fields.insert(name.clone(), value).is_none(), "header {name:?} comes twice");
    }
    fields
}

fn read_field(rest: &mut &[u8]) -> Field {
    let [kind] = take(rest);
    match kind {
        b'S' => Field::Text(String::from_utf8_lossy(read_long(rest)).into_owned()),
        b'l' => Field::Long(i64::from_be_bytes(take(rest))),
        b'T' => Field::Time(u64::from_be_bytes(take(rest))),
        b'F' => Field::Table(read_table(rest)),
        b'A' => {
            let mut inner = read_long(rest);
            let mut values = Vec::new();
            while !inner.is_empty() {
                values.push(read_field(&mut inner));
            }
            Field::List(values)
        }
        b'x' => Field::Other(kind, read_long(rest).to_vec()),
        b't' | b'b' | b'B' => Field::Other(kind, take::<1>(rest).to_vec()),
        b's' | b'u' => Field::Other(kind, take::<2>(rest).to_vec()),
        b'I' | b'i' | b'f' => Field::Other(kind, take::<4>(rest).to_vec()),
        b'd' => Field::Other(kind, take::<8>(rest).to_vec()),
        b'D' => Field::Other(kind, take::<5>(rest).to_vec()),
        b'V' => Field::Other(kind, Vec::new()),
        other => panic!("unknown field type {other}"),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (taken, left) = rest.split_first_chunk().expect("the properties are complete");
    *rest = left;
    *taken
}

fn read_long<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = u32::from_be_bytes(take(rest)) as usize;
    let (taken, left) = rest.split_at(length);
    *rest = left;
    taken
}

fn read_short(rest: &mut &[u8]) -> String {
    let [length] = take(rest);
    let (taken, left) = rest.split_at(usize::from(length));
    *rest = left;
    String::from_utf8_lossy(taken).into_owned()
}
