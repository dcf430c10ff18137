//! Serializes checked values as they are written in the file. A reload compares two configurations in this form.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::duration;
use crate::formats::Format;
use crate::recovery::RetryPolicy;
use crate::tls::{CertificateFiles, TlsFiles};

/// A duration with its unit.
///
/// # Errors
/// Those of the serializer.
pub fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&duration::format(*value))
}

pub(super) fn duration_or_off<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, serializer),
        None => serializer.serialize_str("off"),
    }
}

pub(super) fn duration_or_forever<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, serializer),
        None => serializer.serialize_str("forever"),
    }
}

pub(super) fn or_off<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_str("off"),
    }
}

/// Permissions as `chmod` takes them: `0640`.
pub(super) fn file_mode<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:04o}"))
}

/// Unlike serde's own serialization, it does not fail for a path that is not UTF-8.
pub(super) fn path<S: Serializer>(value: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.display())
}

pub(super) fn optional_path<S: Serializer>(value: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => path(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// The names of the files. Their content is not part of a configuration: it is read again for each connection.
pub(super) fn tls_files<S: Serializer>(files: &TlsFiles, serializer: S) -> Result<S::Ok, S::Error> {
    let TlsFiles { ca, client } = files;
    let (certificate, key) = client.as_ref().map(|CertificateFiles { certificate, key }| (certificate, key)).unzip();
    let files = [("ca_file", ca.as_ref()), ("certificate_file", certificate), ("key_file", key)];
    let mut map = serializer.serialize_map(None)?;
    for (name, file) in files {
        if let Some(file) = file {
            map.serialize_entry(name, &file.display().to_string())?;
        }
    }
    map.end()
}

pub(super) fn retry<S: Serializer>(policy: &RetryPolicy, serializer: S) -> Result<S::Ok, S::Error> {
    let RetryPolicy { immediate, delays, max_age } = policy;
    let mut map = serializer.serialize_map(Some(3))?;
    map.serialize_entry("immediate", immediate)?;
    map.serialize_entry("delays", &delays.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    map.serialize_entry("max_age", &duration::format(*max_age))?;
    map.end()
}

/// The formats' sections, by name.
pub(super) fn formats<S: Serializer>(formats: &BTreeMap<String, Format>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(formats.iter().filter_map(|(name, format)| Some((name, format.spec()?))))
}

/// The name of a consumer's format.
pub(super) fn format_name<S: Serializer>(format: &Option<Format>, serializer: S) -> Result<S::Ok, S::Error> {
    format.as_ref().map(Format::name).serialize(serializer)
}
