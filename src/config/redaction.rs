//! The type of secrets, and the redaction of values that contain secrets. A secret is never printed.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::LazyLock;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// What is shown instead of a secret.
pub(super) const REDACTED: &str = "[redacted]";
/// The only key of a serialized secret. It cannot be a key of the configuration: none begins with a dollar sign.
const SECRET_KEY: &str = "$secret";

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// Serialized as `{"$secret": fingerprint}`. Different secrets have different fingerprints, which mean nothing outside this
/// process.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        serializer.serialize_newtype_variant("Secret", 0, SECRET_KEY, &SEED.hash_one(self.expose()))
    }
}

/// Whether a serialized value is a secret.
pub(super) fn is_secret(object: &Map<String, Value>) -> bool {
    object.contains_key(SECRET_KEY)
}

/// A serialized value with all secrets in it redacted.
pub(super) fn redact(value: &Value) -> Value {
    match value {
        Value::Object(object) if is_secret(object) => Value::from(REDACTED),
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), redact(value))).collect(),
        Value::Array(items) => items.iter().map(redact).collect(),
        other => other.clone(),
    }
}
