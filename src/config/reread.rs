//! Reads the file of a running daemon again, once it is whole: what an editor or a copy has half written is never taken
//! for a configuration.
//!
//! A file that was cut off can be valid TOML: without its last sections it says their defaults, without its last digit
//! another number. So four things must hold before a file is believed:
//! - It has been quiet for half a second: the same file, length, times and content. Files that are swapped (a rename,
//!   the symbolic link of a Kubernetes ConfigMap) count as changed, and so does one that is away for a moment. One that
//!   is not quiet for ten seconds is refused.
//! - It is not empty. At the start an empty file stands for all defaults; later it is one whose content is still to
//!   come.
//! - Its last line is ended by a newline: `workers = 6` may be the beginning of `workers = 64`.
//! - It does not replace the queues and consumers in force by the built-in ones. A file with neither section says just
//!   that, but so does one that lost its second half.
//!
//! What is cut off at the end of a line and then left so, with queues and consumers that fit together, looks like any
//! other edit. Writing a new file and renaming it over the old one excludes even that.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::load::{LARGEST_FILE, LoadError, Loaded, Sources, has_workload};
use super::model::Config;

/// How long the file must not have changed.
const QUIET: Duration = Duration::from_millis(500);
/// How often it is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(50);
/// How long it may go on changing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no new configuration. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    /// Somebody writes it.
    #[error("configuration file {path:?} is still being written: it did not rest for {QUIET:?} within {PATIENCE:?}")]
    StillChanging {
        /// Which file.
        path: PathBuf,
    },
    /// It has no content.
    #[error("configuration file {path:?} is empty: taken for one that is still to be written")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// It ends in the middle of a line.
    #[error(
        "configuration file {path:?} has no newline at the end of its last line: taken for one that was cut off; if it is \
         whole, end the line"
    )]
    CutOff {
        /// Which file.
        path: PathBuf,
    },
    /// It would bring the built-in queues and consumers back.
    #[error(
        "configuration file {path:?} has neither [queues] nor [consumers], but those in force are not the built-in ones: \
         taken for a file that was cut off; if the built-in ones are wanted, copy them from the annotated default file, or \
         restart"
    )]
    NoWorkload {
        /// Which file.
        path: PathBuf,
    },
    /// It was read whole and is no configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl RereadError {
    /// What is wrong, one text for each fault.
    pub fn problems(&self) -> Vec<String> {
        match self {
            RereadError::Load(LoadError::Invalid { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => vec![crate::chain::chain(other)],
        }
    }
}

/// Reads and checks the configuration again, with the same flags and environment. `handlers` are the names of the
/// handlers there are, `in_force` is what the daemon runs by.
///
/// The file and the secrets it names are read aside from the tasks. Takes half a second, and at the most ten; dropping
/// the future gives up.
///
/// # Errors
/// [`RereadError`].
pub async fn reread(sources: &Sources, handlers: &[&str], in_force: &Config) -> Result<Loaded, RereadError> {
    let path = sources.path();
    let bytes = match settled(&path).await? {
        Ok(bytes) => bytes,
        Err(source) => return Err(LoadError::Unreadable { path, source }.into()),
    };
    if bytes.is_empty() {
        return Err(RereadError::Empty { path });
    }
    if !bytes.ends_with(b"\n") {
        return Err(RereadError::CutOff { path });
    }
    let (sources, handlers) = (sources.clone(), handlers.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
    let checking = spawn_blocking(move || {
        let handlers: Vec<_> = handlers.iter().map(String::as_str).collect();
        let given = has_workload(&bytes);
        Config::of_bytes(&bytes, path, &sources, &handlers).map(|loaded| (loaded, given))
    });
    let (loaded, given) = checking.await.expect("checking a configuration neither panics nor is it cancelled")?;
    let same = loaded.config.queues == in_force.queues && loaded.config.consumers == in_force.consumers;
    if given || same { Ok(loaded) } else { Err(RereadError::NoWorkload { path: loaded.path }) }
}

/// Waits until the file rests, and returns its content, or why it cannot be read.
async fn settled(path: &Path) -> Result<io::Result<Vec<u8>>, RereadError> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = look(path).await;
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        if Instant::now() >= deadline {
            return Err(RereadError::StillChanging { path: path.to_owned() });
        }
        sleep(GLANCE).await;
        let now = look(path).await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    match last {
        Look::File { bytes, .. } => Ok(Ok(bytes)),
        Look::None(kind, message) => Ok(Err(io::Error::new(kind, message))),
    }
}

/// What a path leads to at one moment.
#[derive(Debug, PartialEq)]
enum Look {
    File { stamp: [Stamp; 2], bytes: Vec<u8> },
    None(io::ErrorKind, String),
}

/// Which file, its length, and when its content and it itself were changed.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

async fn look(path: &Path) -> Look {
    let path = path.to_owned();
    let looking =
        spawn_blocking(move || open(&path).unwrap_or_else(|error| Look::None(error.kind(), error.to_string())));
    looking.await.expect("looking at a file neither panics nor is it cancelled")
}

fn open(path: &Path) -> io::Result<Look> {
    // Asked before it is opened, since a pipe would keep whoever opens it waiting.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file, so it cannot be read again"));
    }
    let mut file = File::open(path)?;
    let before = stamp(&file)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(LARGEST_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Look::File { stamp: [before, stamp(&file)?], bytes })
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let is = file.metadata()?;
    Ok((is.dev(), is.ino(), is.size(), (is.mtime(), is.mtime_nsec()), (is.ctime(), is.ctime_nsec())))
}

#[cfg(test)]
mod tests;
