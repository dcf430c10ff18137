//! Reads certificates and keys, and checks what can be checked without a broker. Never reads the clock: the time is an
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

use super::{CertificateFiles, TlsFiles, builder};
use crate::files::read_limited;

/// Largest file, in bytes. The authorities that an operating system trusts take about 250 KiB.
const MAX_FILE_BYTES: usize = 4 << 20;
/// A certificate that expires within this time deserves a warning, unless its whole lifetime is short.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// A TLS client made from the files.
#[derive(Debug, Clone)]
pub struct TlsClient {
    /// Ready to connect.
    pub config: Arc<ClientConfig>,
    /// The client certificate's identity; `None` without a client certificate.
    pub identity: Option<Identity>,
}

/// Identity and lifetime of the client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its subject, such as `CN=orderd`.
    pub subject: String,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// Start of its validity.
    pub not_before: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
}

impl Identity {
    /// `true` if it expires within two weeks and is in the last third of its lifetime.
    pub fn expires_soon(&self, now: SystemTime) -> bool {
        let lifetime = seconds(self.not_after) - seconds(self.not_before);
        let left = seconds(self.not_after) - seconds(timestamp(now));
        left < (lifetime / 3).min(EXPIRES_SOON.as_secs() as i64)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (serial {}, valid until {})", self.subject, self.serial, self.not_after)
    }
}

/// A file that cannot be used, or that is missing.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {}", describe(.file.as_deref(), .problem))]
pub struct TlsFileError {
    /// The key that names it: `ca_file`, `certificate_file` or `key_file`.
    pub key: &'static str,
    /// The file; `None` if the key is not set.
    pub file: Option<PathBuf>,
    /// Why it cannot be used.
    pub problem: TlsFileProblem,
}

impl TlsFileError {
    /// The problem with its file, without the key.
    pub fn text(&self) -> String {
        describe(self.file.as_deref(), &self.problem)
    }
}

fn describe(file: Option<&Path>, problem: &TlsFileProblem) -> String {
    match file {
        Some(file) => format!("cannot use {file:?}: {problem}"),
        None => problem.to_string(),
    }
}

/// Why a file cannot be used. No message shows the content of a key file.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileProblem {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(std::io::Error),
    /// It is too large to hold certificates or a key.
    #[error("larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// It is not PEM.
    #[error("not PEM")]
    NotPem,
    /// It contains no certificate.
    #[error("contains no certificate")]
    NoCertificate,
    /// It contains no readable private key.
    #[error("contains no readable private key (keys with a passphrase are not supported)")]
    NoPrivateKey,
    /// A certificate in it cannot be parsed.
    #[error("contains a damaged certificate")]
    Damaged,
    /// The client certificate has expired.
    #[error("the certificate of {0} has expired; renew it")]
    Expired(Box<Identity>),
    /// The client certificate is not valid yet.
    #[error("the certificate of {} is not valid before {}; check the clock", .0.subject, .0.not_before)]
    NotYetValid(Box<Identity>),
    /// The key belongs to another certificate.
    #[error("not the key of the certificate in {0:?}")]
    KeyMismatch(PathBuf),
    /// TLS does not support this type of key.
    #[error("unsupported key type")]
    UnsupportedKeyType,
    /// No file is named, and the operating system's store of authorities is empty or missing.
    #[error("is not set, and the operating system trusts no authority: install ca-certificates, or set it")]
    NoAuthority,
}

/// Reads and checks the files as of `now`. Blocks on the disk.
///
/// # Errors
/// The first file that cannot be used.
pub fn load(files: &TlsFiles, now: SystemTime) -> Result<TlsClient, TlsFileError> {
    let client = builder().with_root_certificates(authorities(files.ca.as_deref())?);
    let Some(CertificateFiles { certificate, key }) = &files.client else {
        return Ok(TlsClient { config: Arc::new(client.with_no_client_auth()), identity: None });
    };
    let failed = |key, file: &Path| {
        let file = Some(file.to_owned());
        move |problem| TlsFileError { key, file, problem }
    };
    let (wrong_certificate, wrong_key) = (failed("certificate_file", certificate), failed("key_file", key));
    let chain = certificates(certificate).map_err(wrong_certificate.clone())?;
    let identity = identity(&chain[0]).map_err(wrong_certificate.clone())?;
    match timestamp(now) {
        now if now > identity.not_after => return Err(wrong_certificate(TlsFileProblem::Expired(identity.into()))),
        now if now < identity.not_before => {
            return Err(wrong_certificate(TlsFileProblem::NotYetValid(identity.into())));
        }
        _ => {}
    }
    let read = contents(key).map_err(wrong_key.clone())?;
    let private = PrivateKeyDer::from_pem_slice(&read).map_err(|_| wrong_key.clone()(TlsFileProblem::NoPrivateKey))?;
    let client = client.with_client_auth_cert(chain, private).map_err(|error| {
        wrong_key(match error {
            RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsFileProblem::KeyMismatch(certificate.clone())
            }
            _ => TlsFileProblem::UnsupportedKeyType,
        })
    })?;
    Ok(TlsClient { config: Arc::new(client), identity: Some(identity) })
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, TlsFileError> {
    let failed = |problem| TlsFileError { key: "ca_file", file: file.map(Path::to_owned), problem };
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // As in other clients, certificates of the operating system's store that cannot be parsed are skipped.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() { Err(failed(TlsFileProblem::NoAuthority)) } else { Ok(roots) };
    };
    for certificate in certificates(file).map_err(failed)? {
        roots.add(certificate).map_err(|_| failed(TlsFileProblem::Damaged))?;
    }
    Ok(roots)
}

/// All certificates in a file; at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileProblem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&contents(file)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsFileProblem::NoCertificate),
        Ok(found) => Ok(found),
        Err(pem::Error::NoItemsFound) => Err(TlsFileProblem::NoCertificate),
        Err(_) => Err(TlsFileProblem::NotPem),
    }
}

fn contents(file: &Path) -> Result<Vec<u8>, TlsFileProblem> {
    let bytes = read_limited(file, MAX_FILE_BYTES).map_err(TlsFileProblem::Unreadable)?;
    if bytes.len() > MAX_FILE_BYTES { Err(TlsFileProblem::TooLarge) } else { Ok(bytes) }
}

fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, TlsFileProblem> {
    let certificate = Certificate::from_der(certificate).map_err(|_| TlsFileProblem::Damaged)?;
    let certificate = certificate.tbs_certificate();
    let time = |time: x509_cert::time::Time| timestamp(time.to_system_time());
    let serial = certificate.serial_number().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Identity {
        subject: certificate.subject().to_string(),
        serial,
        not_before: time(certificate.validity().not_before),
        not_after: time(certificate.validity().not_after),
    })
}

/// A time outside the supported range becomes the latest supported one.
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

    pub struct CertificateDirectory {
        directory: tempfile::TempDir,
    }

    impl CertificateDirectory {
        /// A self-signed certificate for `CN=orderd`, valid for 90 days, and its key.
        pub fn new() -> Self {
            let directory = CertificateDirectory { directory: tempfile::tempdir().unwrap() };
            directory.renew();
            directory
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

        pub fn files(&self) -> TlsFiles {
            let client = CertificateFiles { certificate: self.file("cert.pem"), key: self.file("key.pem") };
            TlsFiles { ca: Some(self.file("cert.pem")), client: Some(client) }
        }

        fn error(&self, at: &str) -> String {
            load(&self.files(), time(at)).unwrap_err().to_string()
        }
    }

    pub fn time(text: &str) -> SystemTime {
        SystemTime::try_from(text.parse::<Timestamp>().unwrap()).unwrap()
    }

    pub const MARCH: &str = "2026-03-01T00:00:00Z";

    #[test]
    fn a_valid_certificate_has_an_identity_and_an_expiry() {
        let identity = load(&CertificateDirectory::new().files(), time(MARCH)).unwrap().identity.unwrap();
        assert_eq!(identity.subject, "CN=orderd");
        assert_eq!(identity.not_after.to_string(), "2026-04-01T00:00:00Z");
        assert!(!identity.expires_soon(time(MARCH)));
        assert!(identity.expires_soon(time("2026-03-19T00:00:00Z")));
    }

    #[test]
    fn a_certificate_is_refused_before_and_after_its_validity() {
        let directory = CertificateDirectory::new();
        let early = directory.error("2025-12-31T00:00:00Z");
        assert!(early.starts_with("certificate_file: ") && early.contains("not valid before 2026-01-01"), "{early}");
        let late = directory.error("2026-04-02T00:00:00Z");
        assert!(late.contains("CN=orderd") && late.contains("has expired"), "{late}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_an_error_that_names_both_files() {
        let directory = CertificateDirectory::new();
        std::fs::write(directory.file("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = directory.error(MARCH);
        assert!(error.starts_with("key_file: ") && error.contains("key.pem") && error.contains("cert.pem"), "{error}");
    }

    #[test]
    fn errors_name_what_a_file_lacks_and_never_show_its_content() {
        let directory = CertificateDirectory::new();
        let whole = std::fs::read_to_string(directory.file("key.pem")).unwrap();
        std::fs::write(directory.file("key.pem"), &whole[..whole.len() / 2]).unwrap();
        let error = directory.error(MARCH);
        assert!(error.contains("contains no readable private key"), "{error}");
        assert!(!error.contains(&whole[40..60]), "{error}");
        std::fs::write(directory.file("cert.pem"), &whole).unwrap();
        assert!(directory.error(MARCH).starts_with("ca_file: cannot use"), "{}", directory.error(MARCH));
        assert!(directory.error(MARCH).contains("contains no certificate"), "{}", directory.error(MARCH));
        std::fs::remove_file(directory.file("cert.pem")).unwrap();
        assert!(directory.error(MARCH).contains("No such file"), "{}", directory.error(MARCH));
        std::fs::create_dir(directory.file("cert.pem")).unwrap();
        assert!(directory.error(MARCH).contains("it is a directory"), "{}", directory.error(MARCH));
    }

    #[test]
    fn a_missing_store_of_authorities_is_not_reported_as_a_file() {
        let error = TlsFileError { key: "ca_file", file: None, problem: TlsFileProblem::NoAuthority };
        assert!(error.to_string().starts_with("ca_file: is not set"), "{error}");
        assert!(!error.to_string().contains("cannot use"), "{error}");
    }
}
