//! Which consumers are paused, remembered over restarts.
//!
//! Each pause is a file of its own, `paused/<consumer>` in the ledger's directory, which holds the time it began. It is
//! written and on disk before a pause is answered, and gone before a resumption is. Daemons that share the directory
//! share what is remembered; each reads it when it starts, and none writes another's file half-way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tracing::warn;

use crate::chain::chain;
use crate::config::Config;

/// The folder in the ledger's directory.
const FOLDER: &str = "paused";

/// The consumers that are paused.
#[derive(Debug)]
pub(super) struct Pauses {
    folder: PathBuf,
    since: BTreeMap<String, Timestamp>,
}

/// What is remembered cannot be read: nobody may start what somebody has paused.
#[derive(Debug, thiserror::Error)]
#[error("cannot read which consumers are paused, in {path:?}: let orderd's user read it")]
pub struct PausesError {
    /// The folder or file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl Pauses {
    /// Reads what is remembered. `directory` is the ledger's.
    ///
    /// # Errors
    /// [`PausesError`].
    pub async fn read(directory: PathBuf) -> Result<Self, PausesError> {
        let reading = tokio::task::spawn_blocking(move || Self::read_now(&directory));
        reading.await.expect("reading pauses neither panics nor is it cancelled")
    }

    fn read_now(directory: &Path) -> Result<Self, PausesError> {
        let folder = directory.join(FOLDER);
        let failed = |path: &Path, source| PausesError { path: path.to_owned(), source };
        let mut since = BTreeMap::new();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pauses { folder, since }),
            Err(error) => return Err(failed(&folder, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed(&folder, error))?;
            // What begins with a dot was being written when orderd was killed: it was never answered.
            let Some(name) = entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned) else {
                continue;
            };
            let text = fs::read_to_string(entry.path()).map_err(|error| failed(&entry.path(), error))?;
            let began = text.trim().parse().unwrap_or_else(|error: jiff::Error| {
                warn!(consumer = name, error = %chain(&error), "cannot read since when it is paused");
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

    /// Warns of each, so that nobody wonders why orders wait.
    pub fn warn_of_all(&self, config: &Config) {
        for (consumer, since) in &self.since {
            if config.consumers.contains_key(consumer) {
                warn!(consumer, %since, "paused: takes nothing in until it is resumed");
            } else {
                warn!(consumer, %since, "a pause is remembered of a consumer that is not configured; resuming it forgets it");
            }
        }
    }

    /// Pauses a consumer. Returns whether it was not paused before.
    ///
    /// # Errors
    /// What the system said; it is not paused then.
    pub async fn pause(&mut self, consumer: &str, now: Timestamp) -> io::Result<bool> {
        if self.since.contains_key(consumer) {
            return Ok(false);
        }
        let (folder, name) = (self.folder.clone(), consumer.to_owned());
        aside(move || remember(&folder, &name, now)).await?;
        self.since.insert(consumer.to_owned(), now);
        Ok(true)
    }

    /// Resumes a consumer. Returns whether it was paused.
    ///
    /// # Errors
    /// What the system said; it is still paused then.
    pub async fn resume(&mut self, consumer: &str) -> io::Result<bool> {
        if !self.since.contains_key(consumer) {
            return Ok(false);
        }
        let (folder, name) = (self.folder.clone(), consumer.to_owned());
        aside(move || forget(&folder, &name)).await?;
        self.since.remove(consumer);
        Ok(true)
    }
}

/// Waits for the disk where no worker does.
async fn aside(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.expect("writing a pause down neither panics nor is it cancelled")
}

fn remember(folder: &Path, consumer: &str, now: Timestamp) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let unfinished = folder.join(format!(".{consumer}"));
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{now}")?;
    file.sync_all()?;
    fs::rename(&unfinished, folder.join(consumer))?;
    settle(folder)
}

fn forget(folder: &Path, consumer: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(consumer)) {
        // Another daemon on this directory has resumed it.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => settle(folder),
    }
}

/// Names in a directory are on disk once the directory is, and the folder's own once its parent is.
fn settle(folder: &Path) -> io::Result<()> {
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
    async fn what_is_paused_is_still_so_when_it_is_read_again() {
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
    async fn what_cannot_be_written_down_is_not_paused_and_not_resumed() {
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
    async fn a_file_half_written_is_no_pause_and_one_that_cannot_be_read_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(".order"), "2026-").unwrap();
        fs::write(folder.join("priority"), "").unwrap();
        let pauses = Pauses::read(directory.path().to_owned()).await.unwrap();
        assert_eq!(pauses.since.keys().collect::<Vec<_>>(), ["priority"]);
        fs::create_dir(folder.join("order")).unwrap();
        assert!(Pauses::read(directory.path().to_owned()).await.is_err(), "better not start than start what is paused");
    }
}
