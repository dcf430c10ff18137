//! The token of those who can use the ledger's directory: a file in it that only orderd's user and root can read. Its sender is an operator.
//!
//! The daemon creates it, and the command line finds it there. It never shows a token.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::redaction::Secret;
use super::secret::read_token_file;
use crate::files::{SECRET_MODE, create_new_file};
use crate::random::random_hex;

/// The name of the file in the ledger's directory.
const FILE_NAME: &str = "admin-token";
/// Random bytes of a token; as text it has twice as many digits.
const TOKEN_BYTES: usize = 32;

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandToken {
    path: PathBuf,
}

impl CommandToken {
    /// The token of the daemons that use this ledger directory.
    pub fn in_directory(ledger_directory: &Path) -> Self {
        CommandToken { path: ledger_directory.join(FILE_NAME) }
    }

    /// Reads the token. Blocks.
    ///
    /// # Errors
    /// Why the token cannot be used, without showing it.
    pub fn read(&self) -> Result<Secret, String> {
        read_token_file(&self.path).map_err(|problem| format!("cannot use {:?}: {problem}", self.path))
    }

    /// Reads the token; creates it first if it is missing. The directory must exist. Blocks.
    ///
    /// # Errors
    /// Why there is no token.
    pub fn read_or_create(&self) -> Result<Secret, String> {
        match fs::metadata(&self.path) {
            Ok(metadata) => self.close(metadata.permissions().mode()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create().map_err(|error| format!("cannot create {:?}: {error}", self.path))?;
            }
            Err(_) => {}
        }
        self.read()
    }

    /// Removes the access of other users.
    fn close(&self, mode: u32) {
        if mode & 0o077 == 0 {
            return;
        }
        let file = self.path.display();
        match fs::set_permissions(&self.path, Permissions::from_mode(SECRET_MODE)) {
            Ok(()) => warn!(%file, "other users could read the token of commands; delete the file to get a new one"),
            Err(error) => warn!(%file, %error, "other users can read the token of commands"),
        }
    }

    /// Creates the file. Other instances that share the directory may do so at the same time; the first one wins.
    fn create(&self) -> io::Result<()> {
        let token = random_hex(TOKEN_BYTES)?;
        let unfinished = self.path.with_file_name(format!(".{FILE_NAME}.{}", std::process::id()));
        // A process with the same id was killed while it created the file.
        let _ = fs::remove_file(&unfinished);
        let written = create_new_file(&unfinished, SECRET_MODE).and_then(|mut file| {
            writeln!(file, "{token}")?;
            file.sync_all()?;
            match fs::hard_link(&unfinished, &self.path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        let _ = fs::remove_file(&unfinished);
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_created_once_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let token = CommandToken::in_directory(directory.path());
        assert!(token.read().is_err());
        let created = token.read_or_create().unwrap();
        assert_eq!(created.expose().len(), 2 * TOKEN_BYTES);
        assert_eq!(token.read_or_create().unwrap(), created);
        let mode = || fs::metadata(&token.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&token.path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!((token.read_or_create().unwrap(), mode()), (created, 0o600));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn instances_that_start_at_once_use_one_token() {
        let directory = tempfile::tempdir().unwrap();
        let token = CommandToken::in_directory(directory.path());
        let winner = token.read_or_create().unwrap();
        token.create().unwrap();
        assert_eq!(token.read().unwrap(), winner);
    }
}
