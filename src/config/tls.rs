//! Reads `[broker.tls]` and `[management.tls]`, and checks that the files they name can be used now. It reads the files, and
//! the clock for the dates in certificates.

use std::time::SystemTime;

use tokio_rustls::rustls::pki_types::ServerName;

use super::layers::Value;
use super::model::Tls;
use super::section::Section;
use super::{secret, value_parser};
use crate::tls::{self, CertificateFiles, TlsFiles};

/// Maximum length of a host name, in bytes.
const MAX_HOST_NAME_BYTES: usize = 255;

/// `[broker.tls]`.
pub(super) fn broker(mut section: Section<'_>) -> Tls {
    let files = files(&mut section);
    let tls = Tls { files, server_name: section.optional("server_name", &server_name) };
    check(&section, &tls.files);
    section.finish();
    tls
}

/// `[management.tls]`, else the broker's files. They are checked only if they are `used`, that is, if the URL begins with
/// `https://`.
pub(super) fn management(section: &mut Section<'_>, broker: Option<&Tls>, used: bool) -> TlsFiles {
    match section.optional_section("tls") {
        Some(mut own) => {
            let files = files(&mut own);
            if used {
                check(&own, &files);
            } else {
                own.section_problem("has no effect: url begins with http://");
            }
            own.finish();
            files
        }
        None => {
            let files = broker.map(|tls| tls.files.clone()).unwrap_or_default();
            if used && broker.is_none() {
                check(section, &files);
            }
            files
        }
    }
}

/// The keys `ca_file`, `certificate_file` and `key_file` of an HTTP client. The files are checked only if they are `used`, that
/// is, if the URL begins with `https://`.
pub fn client_files(section: &mut Section<'_>, used: bool) -> TlsFiles {
    let files = files(section);
    if used {
        check(section, &files);
    } else if files != TlsFiles::default() {
        section.section_problem("ca_file, certificate_file and key_file have no effect: url begins with http://");
    }
    files
}

fn files(section: &mut Section<'_>) -> TlsFiles {
    let ca = section.file("ca_file");
    let client = match (section.file("certificate_file"), section.file("key_file")) {
        (Some(certificate), Some(key)) => {
            secret::warn_if_world_readable(section, &section.key("key_file"), &key);
            Some(CertificateFiles { certificate, key })
        }
        (None, None) => None,
        (present, _) => {
            let (given, missing) =
                if present.is_some() { ("certificate_file", "key_file") } else { ("key_file", "certificate_file") };
            if !section.report().has(&section.key(missing)) {
                section.problem(missing, format!("is missing: {given} has no effect without it"));
            }
            None
        }
    };
    TlsFiles { ca, client }
}

fn check(section: &Section<'_>, files: &TlsFiles) {
    if section.report().has(section.path()) {
        return;
    }
    let now = SystemTime::now();
    match tls::load(files, now) {
        Ok(loaded) => {
            if let Some(identity) = loaded.identity.filter(|identity| identity.expires_soon(now)) {
                let message = format!("the certificate of {identity} expires soon; replace it");
                section.warning("certificate_file", message);
            }
        }
        Err(error) => section.problem(error.key, error.text()),
    }
}

fn server_name(value: &Value) -> Result<String, String> {
    let name = value_parser::text(MAX_HOST_NAME_BYTES)(value)?;
    match ServerName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => Err(format!("must be a host name or an IP address, is {value}")),
    }
}
