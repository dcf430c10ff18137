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

/// `password` or `password_file`, if either is there.
pub(super) fn password(section: &mut Section<'_>) -> Option<Secret> {
    let given = section.optional("password", &shape::secret(LONGEST));
    let file = section.optional("password_file", &shape::text(4096));
    let path = section.key("password_file");
    if given.is_some() && file.is_some() {
        section.report().problem(&path, "stands beside a password: give one of the two");
        return None;
    }
    let Some(file) = file else { return given.map(Secret::new) };
    match read(Path::new(&file)) {
        Ok(found) => {
            if found.world_readable {
                section.report().warning(&path, format!("every user of this machine can read {file:?}"));
            }
            Some(found.secret)
        }
        Err(message) => {
            section.report().problem(&path, format!("cannot use {file:?}: {message}"));
            None
        }
    }
}

struct Found {
    secret: Secret,
    world_readable: bool,
}

/// Reads a password file; the newline that editors leave at its end is no part of the password.
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
