//! Currencies. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::json::describe_text;
use super::rule::RuleError;

/// The currencies that do not have two decimal places, with their number (ISO 4217).
const DECIMAL_PLACES: [(&str, u32); 26] = [
    ("BHD", 3),
    ("BIF", 0),
    ("CLF", 4),
    ("CLP", 0),
    ("DJF", 0),
    ("GNF", 0),
    ("IQD", 3),
    ("ISK", 0),
    ("JOD", 3),
    ("JPY", 0),
    ("KMF", 0),
    ("KRW", 0),
    ("KWD", 3),
    ("LYD", 3),
    ("OMR", 3),
    ("PYG", 0),
    ("RWF", 0),
    ("TND", 3),
    ("UGX", 0),
    ("UYI", 0),
    ("UYW", 4),
    ("VND", 0),
    ("VUV", 0),
    ("XAF", 0),
    ("XOF", 0),
    ("XPF", 0),
];

/// A currency code: three letters, as in ISO 4217. Lower-case letters are read as capital ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

impl Currency {
    /// ISO 4217's code for "no currency", used for orders that name none. Sums keep it apart from other currencies.
    pub const NONE: Currency = Currency(*b"XXX");

    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a currency consists of ASCII letters")
    }

    /// How many decimal places its amounts have.
    pub fn decimal_places(self) -> u32 {
        let places = DECIMAL_PLACES.iter().find(|(code, _)| *code == self.as_str());
        places.map_or(2, |(_, places)| *places)
    }
}

impl FromStr for Currency {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text.trim_ascii().as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_alphabetic) => {
                Ok(Currency([a, b, c].map(|letter| letter.to_ascii_uppercase())))
            }
            _ => Err(RuleError::Currency(describe_text(text))),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
