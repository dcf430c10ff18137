//! SHA-256 hashes: of journal entries, and of texts that the journal must not contain.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// The hash of an entry. As text it has 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JournalHash(pub(super) [u8; 32]);

/// The text is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a hash of 64 hexadecimal digits, as orderd journal prints it")]
pub struct InvalidHash;

impl JournalHash {
    /// What the first entry has in place of the hash of the entry before.
    pub const NONE: JournalHash = JournalHash([0; 32]);

    /// The bytes, as they are recorded.
    pub(in crate::ledger) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// From recorded bytes; [`JournalHash::NONE`] if somebody has changed them to something else than a hash.
    pub(in crate::ledger) fn from_bytes(bytes: &[u8]) -> Self {
        JournalHash(bytes.try_into().unwrap_or([0; 32]))
    }
}

/// The SHA-256 hash of a content that the journal must not contain, such as a note or a body: it shows whether two of them are the same.
pub fn content_hash(content: impl AsRef<[u8]>) -> String {
    JournalHash(Sha256::digest(content).into()).to_string()
}

impl fmt::Display for JournalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JournalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for JournalHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JournalHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for JournalHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let digits: Option<Vec<u8>> =
            text.trim().chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let bytes: Vec<u8> = digits
            .ok_or(InvalidHash)?
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect();
        let is_whole = text.trim().len() == 64;
        bytes.try_into().ok().filter(|_| is_whole).map(JournalHash).ok_or(InvalidHash)
    }
}

impl PartialSchema for JournalHash {
    fn schema() -> RefOr<Schema> {
        String::schema()
    }
}

impl ToSchema for JournalHash {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_shown_and_nothing_else_is() {
        let hash = content_hash("x");
        assert_eq!(hash.parse::<JournalHash>().unwrap().to_string(), hash);
        assert_eq!(hash.to_uppercase().parse::<JournalHash>().unwrap().to_string(), hash);
        for wrong in ["", "00", &hash[1..], &format!("{hash}0"), &hash.replace(&hash[..1], "g")] {
            assert_eq!(wrong.parse::<JournalHash>(), Err(InvalidHash), "{wrong}");
        }
    }
}
