//! Which consumers are paused, kept on disk so that a pause outlives a restart.
//!
//! Each pause is one file, `paused/<consumer>` in the ledger's directory, which contains the time the pause began. It is
//! synced to disk before a pause is answered, and removed before a resume is answered. Daemons that share the directory
//! share the pauses: each reads them when it starts. It never starts or stops a pool.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tracing::warn;

use crate::chain::chain;
use crate::config::Consumer;
use crate::files::{self, FILE_MODE, read_limited};

/// The folder in the ledger's directory.
const FOLDER: &str = "paused";
/// The most that is read of a file, which contains a time, in bytes.
const MAX_PAUSE_BYTES: usize = 64;

/// The consumers that are paused.
#[derive(Debug)]
pub(super) struct Pauses {
    folder: PathBuf,
    since: BTreeMap<String, Timestamp>,
}

/// The pauses cannot be read. The daemon must not start a consumer that may be paused.
#[derive(Debug, thiserror::Error)]
#[error("cannot read which consumers are paused, in {path:?}: let orderd's user read it")]
pub struct PausesError {
    /// The folder or file.
    pub path: PathBuf,
    /// The operating system's error.
    #[source]
    pub source: io::Error,
}

impl Pauses {
    /// Reads the pauses. `directory` is the ledger's directory.
    ///
    /// # Errors
    /// [`PausesError`].
    pub async fn read(directory: PathBuf) -> Result<Self, PausesError> {
        let reading = tokio::task::spawn_blocking(move || Self::read_blocking(&directory));
        reading.await.expect("reading pauses neither panics nor is cancelled")
    }

    fn read_blocking(directory: &Path) -> Result<Self, PausesError> {
        let folder = directory.join(FOLDER);
        let failed = |path: &Path, source| PausesError { path: path.to_owned(), source };
        let mut since = BTreeMap::new();
        files::remove_others_access(&folder);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pauses { folder, since }),
            Err(error) => return Err(failed(&folder, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed(&folder, error))?;
            // A name with a leading dot: orderd was killed while it wrote the file, before it answered the pause.
            let Some(name) = entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned) else {
                continue;
            };
            let text = read_limited(&entry.path(), MAX_PAUSE_BYTES).map_err(|error| failed(&entry.path(), error))?;
            let text = String::from_utf8_lossy(&text);
            let began = text.trim().parse().unwrap_or_else(|error: jiff::Error| {
                warn!(consumer = name, error = %chain(&error), "cannot read when the pause began");
                Timestamp::now()
            });
            since.insert(name, began);
        }
        Ok(Pauses { folder, since })
    }

    /// Since when a consumer is paused; `None` if it is not.
    pub fn since(&self, consumer: &str) -> Option<Timestamp> {
        self.since.get(consumer).copied()
    }

    /// Logs a warning for each pause, which explains why orders wait.
    pub fn warn_of_all(&self, consumers: &BTreeMap<String, Consumer>) {
        for (consumer, since) in &self.since {
            if consumers.contains_key(consumer) {
                warn!(consumer, %since, "paused: consumes nothing until it is resumed");
            } else {
                warn!(consumer, %since, "a paused consumer is not configured; resume it to remove the pause");
            }
        }
    }

    /// Pauses a consumer. Returns whether it was not paused before.
    ///
    /// # Errors
    /// The operating system's error; the consumer is not paused then.
    pub async fn pause(&mut self, consumer: &str, now: Timestamp) -> io::Result<bool> {
        if self.since.contains_key(consumer) {
            return Ok(false);
        }
        let (folder, name) = (self.folder.clone(), consumer.to_owned());
        run_blocking(move || write_pause(&folder, &name, now)).await?;
        self.since.insert(consumer.to_owned(), now);
        Ok(true)
    }

    /// Resumes a consumer. Returns whether it was paused.
    ///
    /// # Errors
    /// The operating system's error; the consumer is still paused then.
    pub async fn resume(&mut self, consumer: &str) -> io::Result<bool> {
        if !self.since.contains_key(consumer) {
            return Ok(false);
        }
        let (folder, name) = (self.folder.clone(), consumer.to_owned());
        run_blocking(move || remove_pause(&folder, &name)).await?;
        self.since.remove(consumer);
        Ok(true)
    }
}

/// Runs blocking file operations on a thread of their own.
async fn run_blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.expect("writing a pause neither panics nor is cancelled")
}

fn write_pause(folder: &Path, consumer: &str, now: Timestamp) -> io::Result<()> {
    files::create_directory(folder, FILE_MODE)?;
    let unfinished = folder.join(format!(".{consumer}"));
    // orderd was killed while it wrote the file.
    let _ = fs::remove_file(&unfinished);
    let mut file = files::create_new_file(&unfinished, FILE_MODE)?;
    writeln!(file, "{now}")?;
    file.sync_all()?;
    fs::rename(&unfinished, folder.join(consumer))?;
    sync_folder(folder)
}

fn remove_pause(folder: &Path, consumer: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(consumer)) {
        // Another daemon that shares the directory has resumed it.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => sync_folder(folder),
    }
}

/// A file's name is on disk only once its directory is synced, and the folder's own name once its parent is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[tokio::test]
    async fn a_pause_is_still_there_when_it_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut pauses = Pauses::read(directory.path().to_owned()).await.unwrap();
        assert!(pauses.since.is_empty());
        assert!(pauses.pause("order", at(7)).await.unwrap());
        assert!(!pauses.pause("order", at(9)).await.unwrap(), "it was paused already");
        assert!(pauses.pause("gone", at(8)).await.unwrap());
        let mut again = Pauses::read(directory.path().to_owned()).await.unwrap();
        assert_eq!(again.since("order"), Some(at(7)));
        assert!(again.resume("order").await.unwrap());
        assert!(!again.resume("order").await.unwrap());
        let last = Pauses::read(directory.path().to_owned()).await.unwrap();
        assert_eq!(last.since, [("gone".to_owned(), at(8))].into());
    }

    #[tokio::test]
    async fn a_consumer_is_neither_paused_nor_resumed_when_the_disk_refuses() {
        let directory = tempfile::tempdir().unwrap();
        let mut pauses = Pauses::read(directory.path().to_owned()).await.unwrap();
        fs::write(directory.path().join(FOLDER), "in the way").unwrap();
        assert!(pauses.pause("order", at(7)).await.is_err());
        assert_eq!(pauses.since("order"), None);
        fs::remove_file(directory.path().join(FOLDER)).unwrap();
        pauses.pause("order", at(7)).await.unwrap();
        fs::remove_file(directory.path().join(FOLDER).join("order")).unwrap();
        // Not even root removes a directory as a file.
        fs::create_dir(directory.path().join(FOLDER).join("order")).unwrap();
        assert!(pauses.resume("order").await.is_err());
        assert_eq!(pauses.since("order"), Some(at(7)));
    }

    #[tokio::test]
    async fn a_half_written_file_is_no_pause_but_an_unreadable_time_still_is() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(".order"), "2026-").unwrap();
        fs::write(folder.join("priority"), "").unwrap();
        let pauses = Pauses::read(directory.path().to_owned()).await.unwrap();
        assert_eq!(pauses.since.keys().collect::<Vec<_>>(), ["priority"]);
        fs::create_dir(folder.join("order")).unwrap();
        assert!(
            Pauses::read(directory.path().to_owned()).await.is_err(),
            "the daemon must not start a consumer that may be paused"
        );
    }
}
