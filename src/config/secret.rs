//! Reads secrets, from the configuration or from a file it names. It never shows one, whatever is wrong.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::model::Secret;
use super::section::Section;
use super::shape;

/// Longest password, in bytes.
const LONGEST: usize = 1024;
/// Shortest token, in bytes: what may be tried over a network must not be guessed.
const SHORTEST_TOKEN: usize = 16;

/// `password` or `password_file`, if either is there.
pub(super) fn password(section: &mut Section<'_>) -> Option<Secret> {
    let given = section.optional("password", &shape::secret(LONGEST));
    let file = section.optional("password_file", &shape::text(4096));
    let path = section.key("password_file");
    if given.is_some() && file.is_some() {
        section.report().problem(&path, "stands beside a password: give one of the two");
        return None;
    }
    match file {
        Some(file) => from_file(section, &path, &file, read),
        None => given.map(Secret::new),
    }
}

/// The bearer token in `token_file`, if that is there.
pub(super) fn token(section: &mut Section<'_>) -> Option<Secret> {
    let file = section.optional("token_file", &shape::text(4096))?;
    from_file(section, &section.key("token_file"), &file, read_token)
}

/// The bearer token in a file.
///
/// # Errors
/// Why it cannot be used, without showing it.
pub fn token_in(path: &Path) -> Result<Secret, String> {
    read_token(path).map(|found| found.secret)
}

fn read_token(path: &Path) -> Result<Found, String> {
    let found = read(path)?;
    let token = found.secret.expose();
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
    file: &str,
    read: impl Fn(&Path) -> Result<Found, String>,
) -> Option<Secret> {
    match read(Path::new(file)) {
        Ok(found) => {
            if found.world_readable {
                section.report().warning(path, format!("every user of this machine can read {file:?}"));
            }
            Some(found.secret)
        }
        Err(message) => {
            section.report().problem(path, format!("cannot use {file:?}: {message}"));
            None
        }
    }
}

struct Found {
    secret: Secret,
    world_readable: bool,
}

/// Reads a file with a secret; the newline that editors leave at its end is no part of it.
fn read(path: &Path) -> Result<Found, String> {
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
        _ => Ok(Found { secret: Secret::new(text), world_readable: metadata.permissions().mode() & 0o004 != 0 }),
    }
}
