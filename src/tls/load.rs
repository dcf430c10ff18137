//! Reads certificates and keys and checks all that can be checked without a broker. Knows the time of day only by
//! argument.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, Error as RustlsError, InconsistentKeys, RootCertStore};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{Files, Pair, builder};

/// Largest file, in bytes: the certificates that a machine trusts take about 250 KiB.
const LARGEST_FILE: u64 = 4 << 20;
/// A certificate that ends so soon deserves a warning, unless it never was to last much longer.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// What the files come to.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Ready to connect.
    pub client: Arc<ClientConfig>,
    /// Who orderd is, where it has a certificate.
    pub identity: Option<Identity>,
}

/// What orderd's own certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Such as `CN=orderd`.
    pub subject: String,
    /// In hexadecimal digits.
    pub serial: String,
    /// From when on it is good.
    pub not_before: Timestamp,
    /// Until when it is good.
    pub not_after: Timestamp,
}

impl Identity {
    /// Whether it ends within two weeks, and within the last third of its time.
    pub fn ends_soon(&self, now: SystemTime) -> bool {
        let life = seconds(self.not_after) - seconds(self.not_before);
        let left = seconds(self.not_after) - seconds(timestamp(now));
        left < (life / 3).min(SOON.as_secs() as i64)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (serial {}, good until {})", self.subject, self.serial, self.not_after)
    }
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot use {file:?}: {fault}")]
pub struct FileError {
    /// The key that names it: `ca_file`, `certificate_file` or `key_file`.
    pub key: &'static str,
    /// Which.
    pub file: PathBuf,
    /// Why not.
    pub fault: FileFault,
}

/// Why a file cannot be used. No message shows what a key file holds.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(std::io::Error),
    /// It is larger than any file of certificates.
    #[error("it has more than {LARGEST_FILE} bytes")]
    TooLarge,
    /// It is not PEM.
    #[error("it is not PEM")]
    NotPem,
    /// It has no certificate in it.
    #[error("it holds no certificate")]
    NoCertificate,
    /// It has no private key in it.
    #[error("it holds no private key that can be read; keys with a passphrase cannot")]
    NoKey,
    /// A certificate in it cannot be understood.
    #[error("a certificate in it is damaged")]
    Damaged,
    /// Its time is over.
    #[error("the certificate of {0} is not good any more")]
    Expired(Box<Identity>),
    /// Its time has not come.
    #[error("the certificate of {} is good only from {} on; is the clock right?", .0.subject, .0.not_before)]
    TooEarly(Box<Identity>),
    /// The key is another certificate's.
    #[error("it is not the key of the certificate in {0:?}")]
    Mismatch(PathBuf),
    /// A key of a kind that TLS does not use.
    #[error("its key is of a kind that cannot be used")]
    UnusableKey,
    /// The machine's store of authorities is empty or not there.
    #[error("this machine trusts no authority (is ca-certificates installed?)")]
    NoAuthority,
}

/// Reads and checks the files at a time of day. Blocks on the disk.
///
/// # Errors
/// The first file that cannot be used.
pub fn load(files: &Files, now: SystemTime) -> Result<Loaded, FileError> {
    let client = builder().with_root_certificates(authorities(files.ca.as_deref())?);
    let Some(Pair { certificate, key }) = &files.own else {
        return Ok(Loaded { client: Arc::new(client.with_no_client_auth()), identity: None });
    };
    let failed = |key, file: &Path| {
        let file = file.to_owned();
        move |fault| FileError { key, file, fault }
    };
    let (wrong_certificate, wrong_key) = (failed("certificate_file", certificate), failed("key_file", key));
    let chain = certificates(certificate).map_err(wrong_certificate.clone())?;
    let identity = identity(&chain[0]).map_err(wrong_certificate.clone())?;
    match timestamp(now) {
        now if now > identity.not_after => return Err(wrong_certificate(FileFault::Expired(identity.into()))),
        now if now < identity.not_before => return Err(wrong_certificate(FileFault::TooEarly(identity.into()))),
        _ => {}
    }
    let read = contents(key).map_err(wrong_key.clone())?;
    let private = PrivateKeyDer::from_pem_slice(&read).map_err(|_| wrong_key.clone()(FileFault::NoKey))?;
    let client = client.with_client_auth_cert(chain, private).map_err(|error| {
        wrong_key(match error {
            RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => FileFault::Mismatch(certificate.clone()),
            _ => FileFault::UnusableKey,
        })
    })?;
    Ok(Loaded { client: Arc::new(client), identity: Some(identity) })
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, FileError> {
    let failed = |fault| FileError { key: "ca_file", file: file.unwrap_or(Path::new("")).to_owned(), fault };
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // Single damaged ones among the many of a machine are passed over, as all clients do.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() { Err(failed(FileFault::NoAuthority)) } else { Ok(roots) };
    };
    for certificate in certificates(file).map_err(failed)? {
        roots.add(certificate).map_err(|_| failed(FileFault::Damaged))?;
    }
    Ok(roots)
}

/// The certificates of a file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileFault> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&contents(file)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(FileFault::NoCertificate),
        Ok(found) => Ok(found),
        Err(pem::Error::NoItemsFound) => Err(FileFault::NoCertificate),
        Err(_) => Err(FileFault::NotPem),
    }
}

fn contents(file: &Path) -> Result<Vec<u8>, FileFault> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let open = std::fs::File::open(file).map_err(FileFault::Unreadable)?;
    open.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(FileFault::Unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE { Err(FileFault::TooLarge) } else { Ok(bytes) }
}

fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, FileFault> {
    let certificate = Certificate::from_der(certificate).map_err(|_| FileFault::Damaged)?.tbs_certificate;
    let time = |time: x509_cert::time::Time| timestamp(time.to_system_time());
    let serial = certificate.serial_number.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Identity {
        subject: certificate.subject.to_string(),
        serial,
        not_before: time(certificate.validity.not_before),
        not_after: time(certificate.validity.not_after),
    })
}

/// Times that no calendar has are as far away as can be.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}

fn seconds(time: Timestamp) -> i64 {
    time.as_second()
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    pub struct Made {
        directory: tempfile::TempDir,
    }

    impl Made {
        /// A certificate for `CN=orderd` of 90 days that is its own authority, and its key.
        pub fn new() -> Self {
            let made = Made { directory: tempfile::tempdir().unwrap() };
            made.renew();
            made
        }

        pub fn renew(&self) {
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name.push(DnType::CommonName, "orderd");
            parameters.distinguished_name.remove(DnType::OrganizationName);
            parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2026, 4, 1);
            let key = KeyPair::generate().unwrap();
            std::fs::write(self.file("cert.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(self.file("key.pem"), key.serialize_pem()).unwrap();
        }

        pub fn file(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        pub fn files(&self) -> Files {
            let own = Pair { certificate: self.file("cert.pem"), key: self.file("key.pem") };
            Files { ca: Some(self.file("cert.pem")), own: Some(own) }
        }

        fn error(&self, at: &str) -> String {
            load(&self.files(), time(at)).unwrap_err().to_string()
        }
    }

    pub fn time(text: &str) -> SystemTime {
        SystemTime::from(text.parse::<Timestamp>().unwrap())
    }

    pub const MARCH: &str = "2026-03-01T00:00:00Z";

    #[test]
    fn a_good_pair_tells_who_it_is_and_when_it_ends() {
        let identity = load(&Made::new().files(), time(MARCH)).unwrap().identity.unwrap();
        assert_eq!(identity.subject, "CN=orderd");
        assert_eq!(identity.not_after.to_string(), "2026-04-01T00:00:00Z");
        assert!(!identity.ends_soon(time(MARCH)));
        assert!(identity.ends_soon(time("2026-03-19T00:00:00Z")));
    }

    #[test]
    fn a_certificate_is_refused_before_and_after_its_time() {
        let made = Made::new();
        let early = made.error("2025-12-31T00:00:00Z");
        assert!(early.starts_with("certificate_file: ") && early.contains("good only from 2026-01-01"), "{early}");
        let late = made.error("2026-04-02T00:00:00Z");
        assert!(late.contains("CN=orderd") && late.contains("not good any more"), "{late}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_files() {
        let made = Made::new();
        std::fs::write(made.file("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let told = made.error(MARCH);
        assert!(told.starts_with("key_file: ") && told.contains("key.pem") && told.contains("cert.pem"), "{told}");
    }

    #[test]
    fn what_a_file_lacks_is_told_and_never_what_it_holds() {
        let made = Made::new();
        let whole = std::fs::read_to_string(made.file("key.pem")).unwrap();
        std::fs::write(made.file("key.pem"), &whole[..whole.len() / 2]).unwrap();
        let told = made.error(MARCH);
        assert!(told.contains("holds no private key"), "{told}");
        assert!(!told.contains(&whole[40..60]), "{told}");
        std::fs::write(made.file("cert.pem"), &whole).unwrap();
        assert!(made.error(MARCH).starts_with("ca_file: cannot use"), "{}", made.error(MARCH));
        assert!(made.error(MARCH).contains("it holds no certificate"), "{}", made.error(MARCH));
        std::fs::remove_file(made.file("cert.pem")).unwrap();
        assert!(made.error(MARCH).contains("No such file"), "{}", made.error(MARCH));
    }
}
