//! Reads secrets from the configuration and from the files it names. A problem with a secret never shows it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::model::Config;
use super::origin::{Origin, Origins};
use super::redaction::Secret;
use super::section::{ReadContext, Section};
use super::value_parser;
use crate::files::read_limited;

/// RabbitMQ's default password. It is not a secret: its user can connect only from the broker's own machine.
const DEFAULT_PASSWORD: &str = "guest";
/// Maximum length of a password or token, in bytes.
const MAX_SECRET_BYTES: usize = 1024;
/// Minimum length of a token, in bytes, so that it cannot be guessed over a network.
const MIN_TOKEN_BYTES: usize = 16;

/// `password` or `password_file`, if either is there.
pub(super) fn password(section: &mut Section<'_>) -> Option<Secret> {
    let inline = section.optional("password", &value_parser::secret(MAX_SECRET_BYTES));
    let file = section.file("password_file");
    let path = section.key("password_file");
    if inline.is_some() && file.is_some() {
        section.report().problem(&path, "conflicts with password: set only one of them");
        return None;
    }
    match file {
        Some(file) => from_file(section, &path, &file, read),
        None => inline.map(Secret::new),
    }
}

/// The bearer token in the file that `token_file` names, if there is one.
pub(super) fn token(section: &mut Section<'_>) -> Option<Secret> {
    token_in_file(section, "token_file")
}

/// The token, or the key for signatures, in the file that this key names, if there is one.
pub fn token_in_file(section: &mut Section<'_>, key: &'static str) -> Option<Secret> {
    let file = section.file(key)?;
    from_file(section, &section.key(key), &file, read_token)
}

/// The password in the file that this key names, if there is one.
pub fn password_in_file(section: &mut Section<'_>, key: &'static str) -> Option<Secret> {
    let file = section.file(key)?;
    from_file(section, &section.key(key), &file, read)
}

/// The bearer token in a file.
///
/// # Errors
/// Why the token cannot be used, without showing it.
pub fn read_token_file(path: &Path) -> Result<Secret, String> {
    read_token(path)
}

fn read_token(path: &Path) -> Result<Secret, String> {
    let found = read(path)?;
    let token = found.expose();
    if token.len() < MIN_TOKEN_BYTES {
        Err(format!("its token must have at least {MIN_TOKEN_BYTES} bytes, has {}", token.len()))
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("its token must be one line of visible ASCII characters without spaces".to_owned())
    } else {
        Ok(found)
    }
}

fn from_file(
    section: &Section<'_>,
    path: &str,
    file: &Path,
    read: impl Fn(&Path) -> Result<Secret, String>,
) -> Option<Secret> {
    match read(file) {
        Ok(found) => {
            warn_if_world_readable(section, path, file);
            Some(found)
        }
        Err(message) => {
            section.report().problem(path, format!("cannot use {file:?}: {message}"));
            None
        }
    }
}

/// Warns about passwords that others can read. Passwords on the command line were rejected before.
pub(super) fn warn_about_exposed_passwords(config: &Config, origins: &Origins, context: &ReadContext) {
    for (key, password) in
        [("broker.password", &config.broker.password), ("management.password", &config.management.password)]
    {
        let exposure = match origins.get(key) {
            Some(Origin::File { .. }) if context.is_world_readable => {
                "every user of this machine can read the configuration file"
            }
            Some(Origin::Environment(_)) => {
                "everyone who can inspect the service or the container can read its environment"
            }
            Some(Origin::File { .. } | Origin::Setting(_)) | None => continue,
        };
        if password.expose() != DEFAULT_PASSWORD {
            context.report.warning(key, format!("{exposure}; use password_file instead"));
        }
    }
}

/// Warns about a secret's file if every user of this machine can read it.
pub(super) fn warn_if_world_readable(section: &Section<'_>, key: &str, file: &Path) {
    if is_world_readable(file) {
        section.report().warning(key, format!("every user of this machine can read {file:?}"));
    }
}

/// Whether every user of this machine can read a file.
pub(super) fn is_world_readable(file: &Path) -> bool {
    const OTHERS_READ: u32 = 0o004;
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS_READ != 0)
}

/// Why a file with a secret cannot be read, and what to do.
fn unreadable(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let user = rustix::process::geteuid().as_raw();
        return format!(
            "{error} for user id {user}: run the command as orderd's user or as root, or give orderd's user the file"
        );
    }
    error.to_string()
}

/// Reads a file with a secret. A newline at its end, which editors add, is not part of the secret.
fn read(path: &Path) -> Result<Secret, String> {
    // A line end is allowed besides.
    let bytes = read_limited(path, MAX_SECRET_BYTES + 2).map_err(|error| unreadable(&error))?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    match text.len() {
        0 => Err("it is empty".to_owned()),
        length if length > MAX_SECRET_BYTES => Err(format!("it is longer than {MAX_SECRET_BYTES} bytes")),
        _ if text.contains('\0') => Err("it contains a zero byte".to_owned()),
        _ => Ok(Secret::new(text)),
    }
}
