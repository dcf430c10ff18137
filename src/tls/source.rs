//! The files again, for each new connection: what was replaced is in use from then on, and what was replaced badly
//! is not.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{error, info, warn};

use super::Files;
use super::load::{FileError, Identity, Loaded, load};

/// Reads the files whenever it is asked, and remembers the last ones that were good.
#[derive(Debug)]
pub struct Source {
    /// Where the files are named, for the log.
    section: &'static str,
    files: Files,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    good: Option<Loaded>,
    /// What was wrong last, so that it is logged once and not with every attempt to connect.
    complaint: Option<String>,
}

impl Source {
    /// Reads nothing yet. `section` is where the files are named: `broker.tls`.
    pub fn new(section: &'static str, files: Files) -> Self {
        Source { section, files, last: Mutex::default() }
    }

    /// The files as they are now; where they cannot be used, as they were when they could. Blocks on the disk.
    ///
    /// # Errors
    /// [`FileError`] if they never could.
    pub fn read(&self) -> Result<Loaded, FileError> {
        let now = SystemTime::now();
        let read = load(&self.files, now);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = match read {
            Ok(loaded) => {
                let before = last.good.as_ref().and_then(|good| good.identity.as_ref());
                if let (Some(before), Some(identity)) = (before, &loaded.identity)
                    && before != identity
                {
                    self.announce(identity, now);
                }
                *last = Last { good: Some(loaded.clone()), complaint: None };
                return Ok(loaded);
            }
            Err(failure) => failure,
        };
        let Some(good) = last.good.clone() else { return Err(failure) };
        let complaint = failure.to_string();
        if last.complaint.as_ref() != Some(&complaint) {
            error!(
                section = self.section,
                error = complaint,
                "cannot use the new certificates; going on with those read before"
            );
            last.complaint = Some(complaint);
        }
        Ok(good)
    }

    /// Tells of a certificate that takes the place of another. What was there at the start has been looked at then.
    fn announce(&self, identity: &Identity, now: SystemTime) {
        let (section, subject, serial, until) =
            (self.section, &identity.subject, &identity.serial, &identity.not_after);
        if identity.ends_soon(now) {
            warn!(section, subject, serial, %until, "the new client certificate ends soon; replace its files again");
        } else {
            info!(section, subject, serial, %until, "a new client certificate is in use");
        }
    }
}
