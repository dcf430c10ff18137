//! A lock (`flock`) on a file that several instances write: they take turns.
//!
//! On a file system without locks it is taken at once, and is not exclusive.

use std::fs::{File, TryLockError};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How long to wait for another program's lock. Instances hold it only while they write.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two attempts to take the lock.
const LOCK_STEP: Duration = Duration::from_millis(1);

/// An exclusive lock on a file, released when dropped.
pub(super) struct Lock<'a> {
    pub file: &'a File,
    /// `false` if the file system has no locks: other instances may write at the same time.
    pub is_exclusive: bool,
}

impl<'a> Lock<'a> {
    pub fn take(file: &'a File) -> io::Result<Self> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { file, is_exclusive: true }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_STEP),
                Err(TryLockError::WouldBlock) => {
                    let problem = format!("another program has locked it for {LOCK_TIMEOUT:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
                }
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    return Ok(Lock { file, is_exclusive: false });
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if self.is_exclusive {
            // It fails only for a descriptor that is not open.
            let _ = self.file.unlock();
        }
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    [Errno::NOSYS, Errno::NOTSUP, Errno::NOLCK, Errno::INVAL]
        .contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}
