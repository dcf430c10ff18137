//! Reads the certificate files again for each new connection, so that replaced files are used without a restart. As long as
//! the current files cannot be used, the content of the last good ones is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{error, info, warn};

use super::TlsFiles;
use super::files::{Identity, TlsClient, TlsFileError, load};

/// Reads the files on demand, and keeps the content of the last good ones.
#[derive(Debug)]
pub struct TlsReloader {
    /// The section of the configuration that names the files, for the log.
    section: Arc<str>,
    files: TlsFiles,
    state: Mutex<ReloaderState>,
}

#[derive(Debug, Default)]
struct ReloaderState {
    last_good: Option<TlsClient>,
    /// The last error logged, so that it is logged once and not for each connection.
    logged_error: Option<String>,
}

impl TlsReloader {
    /// Reads nothing yet. `section` is the section that names the files, such as `broker.tls`.
    pub fn new(section: impl Into<Arc<str>>, files: TlsFiles) -> Self {
        TlsReloader { section: section.into(), files, state: Mutex::default() }
    }

    /// Reads the files. If they cannot be used, returns the content of the last good ones. Blocks on the disk.
    ///
    /// # Errors
    /// [`TlsFileError`] if there have been no good files so far.
    pub fn read(&self) -> Result<TlsClient, TlsFileError> {
        self.read_at(SystemTime::now())
    }

    fn read_at(&self, now: SystemTime) -> Result<TlsClient, TlsFileError> {
        let result = load(&self.files, now);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match result {
            Ok(client) => {
                let before = state.last_good.as_ref().and_then(|good| good.identity.as_ref());
                if let (Some(before), Some(identity)) = (before, &client.identity)
                    && before != identity
                {
                    self.log_replacement(identity, now);
                } else if state.logged_error.is_some() {
                    info!(section = %self.section, "certificate files can be used again");
                }
                *state = ReloaderState { last_good: Some(client.clone()), logged_error: None };
                return Ok(client);
            }
            Err(error) => error,
        };
        let Some(last_good) = state.last_good.clone() else { return Err(error) };
        let message = error.to_string();
        if state.logged_error.as_ref() != Some(&message) {
            error!(
                section = %self.section,
                error = message,
                "cannot use the current certificate files; still using the last good ones"
            );
            state.logged_error = Some(message);
        }
        Ok(last_good)
    }

    /// Logs that a certificate has replaced another. The first certificate is checked when the configuration is loaded.
    fn log_replacement(&self, identity: &Identity, now: SystemTime) {
        let (section, subject, serial, until) =
            (&*self.section, &identity.subject, &identity.serial, &identity.not_after);
        if identity.expires_soon(now) {
            warn!(section, subject, serial, %until, "the new client certificate expires soon; replace it again");
        } else {
            info!(section, subject, serial, %until, "using a new client certificate");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::{CertificateDirectory, MARCH, time};
    use super::*;

    #[test]
    fn unusable_files_leave_the_last_good_ones_in_use_until_they_are_replaced() {
        let directory = CertificateDirectory::new();
        let reloader = TlsReloader::new("broker.tls", directory.files());
        let late = time("2026-04-02T00:00:00Z");
        assert!(reloader.read_at(late).is_err(), "there were no good files yet");
        let good = reloader.read_at(time(MARCH)).unwrap();
        let serial = |client: TlsClient| client.identity.map(|identity| identity.serial);
        let first = serial(good);

        // The certificate has expired.
        assert_eq!(serial(reloader.read_at(late).unwrap()), first);
        // Part of the next certificate; then the whole certificate with the former key.
        let key = std::fs::read(directory.file("key.pem")).unwrap();
        directory.renew();
        let (new, new_key) = (directory.file("cert.pem"), std::fs::read(directory.file("key.pem")).unwrap());
        let whole = std::fs::read(&new).unwrap();
        std::fs::write(directory.file("key.pem"), key).unwrap();
        for written in [0, 1, whole.len() / 2, whole.len() - 2, whole.len()] {
            std::fs::write(&new, &whole[..written]).unwrap();
            assert_eq!(serial(reloader.read_at(time(MARCH)).unwrap()), first, "after {written} bytes");
        }
        std::fs::write(directory.file("key.pem"), &new_key[..new_key.len() - 30]).unwrap();
        assert_eq!(serial(reloader.read_at(time(MARCH)).unwrap()), first);

        std::fs::write(directory.file("key.pem"), new_key).unwrap();
        assert_ne!(serial(reloader.read_at(time(MARCH)).unwrap()), first);
    }

    #[test]
    fn debug_output_never_shows_the_key() {
        let directory = CertificateDirectory::new();
        let reloader = TlsReloader::new("broker.tls", directory.files());
        reloader.read_at(time(MARCH)).unwrap();
        let shown = format!("{reloader:?}").replace([' ', '\n'], "");
        let key = std::fs::read_to_string(directory.file("key.pem")).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).unwrap().serialize_der();
        // Any part of the secret half, as numbers or as hexadecimal digits.
        let secret = &key[36..68];
        for part in secret.windows(4) {
            let numbers = format!("{part:?}").replace([' ', '[', ']'], "");
            let digits: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!shown.contains(&format!(",{numbers},")) && !shown.contains(&digits), "{shown}");
        }
    }
}
