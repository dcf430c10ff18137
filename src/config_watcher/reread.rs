//! Reads the configuration file of a running daemon again, once it is complete: a file that is half written is never used as
//! a configuration.
//!
//! A truncated file can be valid TOML: without its last sections it means their defaults, without its last digit a different
//! number. So a file is used only if four conditions hold:
//! - It has not changed for half a second: same file, length, times and content. A replaced file (by a rename, or by
//!   the symbolic link of a Kubernetes ConfigMap) counts as changed, and so does one that is missing for a moment. A file
//!   that keeps changing for ten seconds is refused.
//! - It is not empty. At startup an empty file means all defaults; later it is probably about to be written.
//! - Its last line ends with a newline: `workers = 6` may be the beginning of `workers = 64`.
//! - It does not replace the active queues and consumers with the built-in ones. A file with neither section means that, but
//!   so does one that lost its second half.
//!
//! A file that stays truncated at the end of a line, with queues and consumers that fit together, cannot be distinguished
//! from an edit. Writing a new file and renaming it over the old one prevents even that.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::file_version::FileVersion;
use crate::config::{Config, LoadError, Loaded, MAX_FILE_BYTES, Sources, has_workload};

/// How long the file must not have changed.
const QUIET_PERIOD: Duration = Duration::from_millis(500);
/// Interval between two reads of a file that may still be changing.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long to wait for a file that keeps changing.
const QUIET_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no new configuration.
#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    /// It kept changing until the deadline.
    #[error(
        "configuration file {path:?} is still being written: it kept changing for {QUIET_DEADLINE:?}; try again when it is \
         complete"
    )]
    StillChanging {
        /// The file.
        path: PathBuf,
    },
    /// It has no content.
    #[error("configuration file {path:?} is empty: refused because it may not have been written yet")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It ends in the middle of a line.
    #[error(
        "configuration file {path:?} has no newline at the end of its last line: refused because it may be truncated; if it \
         is complete, add the newline"
    )]
    NoFinalNewline {
        /// The file.
        path: PathBuf,
    },
    /// It would replace the active queues and consumers with the built-in ones.
    #[error(
        "configuration file {path:?} has neither [queues] nor [consumers], but the active ones are not the built-in ones: \
         refused because it may be truncated; to use the built-in ones, copy them from the annotated default file, or \
         restart"
    )]
    NoWorkload {
        /// The file.
        path: PathBuf,
    },
    /// It is complete, but not a valid configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl RereadError {
    /// Every problem, one text each.
    pub fn problems(&self) -> Vec<String> {
        match self {
            RereadError::Load(LoadError::Invalid { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => vec![crate::chain::chain(other)],
        }
    }
}

/// Reads and checks the configuration again, with the same arguments and environment. `active` is the configuration that the
/// daemon runs with.
///
/// The file and the secrets it names are read on the blocking thread pool. Takes half a second to ten seconds. Cancel-safe.
///
/// # Errors
/// [`RereadError`].
pub async fn reread(sources: &Sources, active: &Config) -> Result<Loaded, RereadError> {
    let path = sources.path();
    let bytes = match stable_content(&path).await? {
        Ok(bytes) => bytes,
        Err(source) => return Err(LoadError::Unreadable { path, source }.into()),
    };
    if bytes.is_empty() {
        return Err(RereadError::Empty { path });
    }
    if !bytes.ends_with(b"\n") {
        return Err(RereadError::NoFinalNewline { path });
    }
    let sources = sources.clone();
    let checking = spawn_blocking(move || {
        let has_workload = has_workload(&bytes);
        Config::from_bytes(&bytes, path, &sources).map(|loaded| (loaded, has_workload))
    });
    let (loaded, has_workload) = checking.await.expect("checking a configuration neither panics nor is cancelled")?;
    let is_same = loaded.config.queues == active.queues && loaded.config.consumers == active.consumers;
    if has_workload || is_same { Ok(loaded) } else { Err(RereadError::NoWorkload { path: loaded.path }) }
}

/// Waits until the file stops changing. Returns its content, or why it cannot be read.
async fn stable_content(path: &Path) -> Result<io::Result<Vec<u8>>, RereadError> {
    let deadline = Instant::now() + QUIET_DEADLINE;
    let mut last = read_snapshot(path).await;
    let mut unchanged_since = Instant::now();
    while unchanged_since.elapsed() < QUIET_PERIOD {
        if Instant::now() >= deadline {
            return Err(RereadError::StillChanging { path: path.to_owned() });
        }
        sleep(POLL_INTERVAL).await;
        let snapshot = read_snapshot(path).await;
        if snapshot != last {
            (last, unchanged_since) = (snapshot, Instant::now());
        }
    }
    match last {
        FileSnapshot::Content { bytes, .. } => Ok(Ok(bytes)),
        FileSnapshot::Unreadable(kind, message) => Ok(Err(io::Error::new(kind, message))),
    }
}

/// What was found at a path at one moment.
#[derive(Debug, PartialEq)]
enum FileSnapshot {
    /// The content, and the file's version before and after reading it.
    Content {
        versions: [FileVersion; 2],
        bytes: Vec<u8>,
    },
    Unreadable(io::ErrorKind, String),
}

async fn read_snapshot(path: &Path) -> FileSnapshot {
    let path = path.to_owned();
    let reading = spawn_blocking(move || {
        snapshot(&path).unwrap_or_else(|error| FileSnapshot::Unreadable(error.kind(), error.to_string()))
    });
    reading.await.expect("reading a file neither panics nor is cancelled")
}

fn snapshot(path: &Path) -> io::Result<FileSnapshot> {
    // Checked before opening: opening a pipe would block.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file, so it cannot be read again"));
    }
    let mut file = File::open(path)?;
    let before = FileVersion::from(&file.metadata()?);
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(FileSnapshot::Content { versions: [before, FileVersion::from(&file.metadata()?)], bytes })
}

/// Files as editors, copies and orchestrators leave them. Time is paused, so it is certain what happens between two reads.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{DEFAULT_FILE, LogLevel};

    struct ConfigDirectory {
        directory: tempfile::TempDir,
        sources: Sources,
        active: Config,
    }

    impl ConfigDirectory {
        /// The default configuration is active and in the file.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("orderd.toml");
            fs::write(&file, DEFAULT_FILE).unwrap();
            let sources = Sources { file: Some(file), ..crate::handlers::sources() };
            let active = Config::load(&sources).unwrap().config;
            ConfigDirectory { directory, sources, active }
        }

        fn file(&self) -> PathBuf {
            self.sources.path()
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        async fn reread(&self) -> Result<Loaded, RereadError> {
            reread(&self.sources, &self.active).await
        }

        /// The workers of consumer `order`, as read while `change` changes the file.
        async fn workers_during(&self, change: impl Future<Output = ()>) -> usize {
            let (read, ()) = tokio::join!(self.reread(), change);
            read.expect("the file is complete in the end").config.consumers["order"].workers
        }
    }

    /// The default file with another number of workers for the first consumer.
    fn with_workers(workers: usize) -> String {
        DEFAULT_FILE.replacen("\nworkers = 4\n", &format!("\nworkers = {workers}\n"), 1)
    }

    async fn millis(count: u64) {
        sleep(Duration::from_millis(count)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_does_not_change_is_read() {
        let directory = ConfigDirectory::new();
        fs::write(directory.file(), with_workers(64)).unwrap();
        assert_eq!(directory.workers_during(async {}).await, 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_written_in_pieces_is_read_once_it_is_complete() {
        let directory = ConfigDirectory::new();
        let text = with_workers(64);
        let pieces = text.as_bytes().chunks(text.len().div_ceil(20));
        let writing = async {
            let mut file = File::create(directory.file()).unwrap();
            for piece in pieces {
                file.write_all(piece).unwrap();
                millis(400).await;
            }
        };
        assert_eq!(directory.workers_during(writing).await, 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_file_is_read_again() {
        let directory = ConfigDirectory::new();
        let replacing = async {
            for workers in [10, 20, 30, 40] {
                fs::write(directory.path("new"), with_workers(workers)).unwrap();
                fs::rename(directory.path("new"), directory.file()).unwrap();
                millis(450).await;
            }
        };
        assert_eq!(directory.workers_during(replacing).await, 40);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_symbolic_link_is_followed() {
        let directory = ConfigDirectory::new();
        fs::remove_file(directory.file()).unwrap();
        for version in [10, 20] {
            let version_directory = directory.path(&format!("..{version}"));
            fs::create_dir(&version_directory).unwrap();
            fs::write(version_directory.join("orderd.toml"), with_workers(version)).unwrap();
        }
        symlink("..10", directory.path("..data")).unwrap();
        symlink("..data/orderd.toml", directory.file()).unwrap();
        let replacing = async {
            millis(450).await;
            symlink("..20", directory.path("..data_tmp")).unwrap();
            fs::rename(directory.path("..data_tmp"), directory.path("..data")).unwrap();
        };
        assert_eq!(directory.workers_during(replacing).await, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_missing_for_a_moment_is_awaited_and_a_file_that_stays_missing_is_an_error() {
        let directory = ConfigDirectory::new();
        let moving = async {
            fs::rename(directory.file(), directory.path("orderd.toml~")).unwrap();
            millis(300).await;
            fs::write(directory.file(), with_workers(64)).unwrap();
        };
        assert_eq!(directory.workers_during(moving).await, 64);
        fs::remove_file(directory.file()).unwrap();
        let error = directory.reread().await.unwrap_err();
        assert!(matches!(&error, RereadError::Load(LoadError::Unreadable { .. })), "{error:?}");
        assert!(error.problems()[0].contains("No such file"), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_keeps_changing_is_refused_at_the_deadline() {
        let directory = ConfigDirectory::new();
        let mut file = fs::OpenOptions::new().append(true).open(directory.file()).unwrap();
        let start = Instant::now();
        let writing = async {
            loop {
                file.write_all(b"# more\n").unwrap();
                millis(300).await;
            }
        };
        // Cancel-safe: the test ends with the first branch.
        let read = tokio::select! { read = directory.reread() => read, () = writing => unreachable!("it never ends") };
        assert!(matches!(read, Err(RereadError::StillChanging { .. })), "{read:?}");
        assert!(start.elapsed() < Duration::from_secs(11), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_may_be_truncated_is_refused() {
        let mut directory = ConfigDirectory::new();
        directory.active.consumers.get_mut("order").unwrap().workers = 64;
        let queues = DEFAULT_FILE.find("[queues.order_queue]").unwrap();
        let number = DEFAULT_FILE.find("\nworkers = 4").unwrap() + "\nworkers = 4".len();
        for (content, expected) in [
            ("", "is empty"),
            (&DEFAULT_FILE[..number], "has no newline"),
            (DEFAULT_FILE.trim_end(), "has no newline"),
            ("\n", "neither [queues] nor [consumers]"),
            (&DEFAULT_FILE[..queues], "neither [queues] nor [consumers]"),
        ] {
            fs::write(directory.file(), content).unwrap();
            let problems = directory.reread().await.unwrap_err().problems();
            assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        }
    }

    /// A file without queues and consumers is valid while the built-in ones are active.
    #[tokio::test(start_paused = true)]
    async fn a_file_without_queues_and_consumers_keeps_the_built_in_ones() {
        let directory = ConfigDirectory::new();
        fs::write(directory.file(), "[log]\nlevel = \"debug\"\n").unwrap();
        let loaded = directory.reread().await.unwrap();
        assert_eq!(loaded.config.log.level, LogLevel::Debug);
        assert_eq!(loaded.config.consumers, directory.active.consumers);
    }

    #[tokio::test(start_paused = true)]
    async fn every_problem_of_a_complete_file_is_reported() {
        let directory = ConfigDirectory::new();
        fs::write(directory.file(), with_workers(0).replacen("level = \"info\"", "level = \"loud\"", 1)).unwrap();
        let problems = directory.reread().await.unwrap_err().problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(problems[0], "consumers.order.workers: must be at least 1, is 0");
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_that_is_not_a_file_is_refused() {
        let directory = ConfigDirectory::new();
        fs::remove_file(directory.file()).unwrap();
        fs::create_dir(directory.file()).unwrap();
        let problems = directory.reread().await.unwrap_err().problems();
        assert!(problems[0].contains("not a regular file"), "{problems:?}");
    }
}
