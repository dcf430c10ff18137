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
        self.read_at(SystemTime::now())
    }

    fn read_at(&self, now: SystemTime) -> Result<Loaded, FileError> {
        let read = load(&self.files, now);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = match read {
            Ok(loaded) => {
                let before = last.good.as_ref().and_then(|good| good.identity.as_ref());
                if let (Some(before), Some(identity)) = (before, &loaded.identity)
                    && before != identity
                {
                    self.announce(identity, now);
                } else if last.complaint.is_some() {
                    info!(section = self.section, "the certificates can be used again");
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
                "cannot use the certificates there are now; going on with those read before"
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

#[cfg(test)]
mod tests {
    use super::super::load::tests::{MARCH, Made, time};
    use super::*;

    #[test]
    fn what_cannot_be_used_any_more_leaves_the_last_good_one_in_force_until_it_can() {
        let made = Made::new();
        let source = Source::new("broker.tls", made.files());
        let late = time("2026-04-02T00:00:00Z");
        assert!(source.read_at(late).is_err(), "there was none that was good");
        let good = source.read_at(time(MARCH)).unwrap();
        let serial = |loaded: Loaded| loaded.identity.map(|identity| identity.serial);
        let first = serial(good);

        // It has ended.
        assert_eq!(serial(source.read_at(late).unwrap()), first);
        // Half of what comes after it; then the whole certificate, and still the key of before.
        let key = std::fs::read(made.file("key.pem")).unwrap();
        made.renew();
        let (new, new_key) = (made.file("cert.pem"), std::fs::read(made.file("key.pem")).unwrap());
        let whole = std::fs::read(&new).unwrap();
        std::fs::write(made.file("key.pem"), key).unwrap();
        for written in [0, 1, whole.len() / 2, whole.len() - 2, whole.len()] {
            std::fs::write(&new, &whole[..written]).unwrap();
            assert_eq!(serial(source.read_at(time(MARCH)).unwrap()), first, "after {written} bytes");
        }
        std::fs::write(made.file("key.pem"), &new_key[..new_key.len() - 30]).unwrap();
        assert_eq!(serial(source.read_at(time(MARCH)).unwrap()), first);

        std::fs::write(made.file("key.pem"), new_key).unwrap();
        assert_ne!(serial(source.read_at(time(MARCH)).unwrap()), first);
    }

    #[test]
    fn nothing_that_is_read_shows_the_key_when_it_is_debugged() {
        let made = Made::new();
        let source = Source::new("broker.tls", made.files());
        source.read_at(time(MARCH)).unwrap();
        let shown = format!("{source:?}").replace([' ', '\n'], "");
        let key = std::fs::read_to_string(made.file("key.pem")).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).unwrap().serialize_der();
        // As numbers or as digits, any part of the secret half of it.
        let secret = &key[36..68];
        for part in secret.windows(4) {
            let numbers = format!("{part:?}").replace([' ', '[', ']'], "");
            let digits: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!shown.contains(&format!(",{numbers},")) && !shown.contains(&digits), "{shown}");
        }
    }
}
