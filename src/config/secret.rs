//! Reads secrets from the configuration and from the files it names. It never shows a secret, whatever is wrong with it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::model::Config;
use super::origin::{Origin, Origins};
use super::redaction::Secret;
use super::section::{Reading, Section};
use super::shape;

/// RabbitMQ's default password, of a user that may only connect from the broker's machine: not a secret.
const NOT_SECRET: &str = "guest";
/// Longest password, in bytes.
const LONGEST: usize = 1024;
/// Shortest token, in bytes: it must not be guessable over a network.
const SHORTEST_TOKEN: usize = 16;

/// `password` or `password_file`, if either is there.
pub(super) fn password(section: &mut Section<'_>) -> Option<Secret> {
    let given = section.optional("password", &shape::secret(LONGEST));
    let file = section.file("password_file");
    let path = section.key("password_file");
    if given.is_some() && file.is_some() {
        section.report().problem(&path, "conflicts with password: give one of the two");
        return None;
    }
    match file {
        Some(file) => from_file(section, &path, &file, read),
        None => given.map(Secret::new),
    }
}

/// The bearer token in the file that `token_file` names, if there is one.
pub(super) fn token(section: &mut Section<'_>) -> Option<Secret> {
    let file = section.file("token_file")?;
    from_file(section, &section.key("token_file"), &file, read_token)
}

/// The bearer token in a file.
///
/// # Errors
/// Why the token cannot be used, without showing it.
pub fn token_in(path: &Path) -> Result<Secret, String> {
    read_token(path)
}

fn read_token(path: &Path) -> Result<Secret, String> {
    let found = read(path)?;
    let token = found.expose();
    if token.len() < SHORTEST_TOKEN {
        Err(format!("its token must have at least {SHORTEST_TOKEN} bytes, has {}", token.len()))
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
            warn_if_open(section, path, file);
            Some(found)
        }
        Err(message) => {
            section.report().problem(path, format!("cannot use {file:?}: {message}"));
            None
        }
    }
}

/// Warns of passwords that others can read. Those on the command line were rejected before.
pub(super) fn warn_of_exposed(config: &Config, origins: &Origins, reading: &Reading) {
    for (key, password) in
        [("broker.password", &config.broker.password), ("management.password", &config.management.password)]
    {
        let place = match origins.get(key) {
            Some(Origin::File { .. }) if reading.is_open => {
                "every user of this machine can read the configuration file"
            }
            Some(Origin::Environment(_)) => {
                "everyone who can inspect the service or the container can read its environment"
            }
            Some(Origin::File { .. } | Origin::Setting(_)) | None => continue,
        };
        if password.expose() != NOT_SECRET {
            reading.report.warning(key, format!("{place}; use password_file instead"));
        }
    }
}

/// Warns of a file with a secret that every user of this machine can read.
pub(super) fn warn_if_open(section: &Section<'_>, key: &str, file: &Path) {
    if is_open(file) {
        section.report().warning(key, format!("every user of this machine can read {file:?}"));
    }
}

/// Whether every user of this machine can read a file.
pub(super) fn is_open(file: &Path) -> bool {
    const OTHERS_READ: u32 = 0o004;
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS_READ != 0)
}

/// Reads a file with a secret. A newline at its end, which editors add, is not part of the secret.
fn read(path: &Path) -> Result<Secret, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if metadata.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let mut bytes = Vec::new();
    let limit = LONGEST as u64 + 3;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    match text.len() {
        0 => Err("it is empty".to_owned()),
        length if length > LONGEST => Err(format!("it is longer than {LONGEST} bytes")),
        _ if text.contains('\0') => Err("it contains a zero byte".to_owned()),
        _ => Ok(Secret::new(text)),
    }
}
