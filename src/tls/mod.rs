//! TLS towards the broker: which files, what they hold, and why a handshake failed.
//!
//! Owns the choice of cryptography and the reading of certificates and keys. It opens no connection, and never shows
//! what is in a key.

mod fault;
mod load;
mod source;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

pub use fault::TlsFault;
pub use load::{FileError, FileFault, Identity, Loaded, load};
pub use source::Source;

/// The files that a TLS client needs. They are named here and read when a connection is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificates in PEM of those who sign the broker's. `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// Who orderd is, if the broker wants to know.
    pub own: Option<Pair>,
}

/// A client certificate and its key, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, and after it those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key, without a passphrase.
    pub key: PathBuf,
}

/// A client that trusts nobody: for HTTP clients that never speak TLS, yet want to know how.
pub fn unused() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// TLS 1.3 and 1.2, with cryptography that is handed over and never looked up: a process in which nobody has
/// installed one, or two have, works the same.
fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the cryptography serves TLS 1.3 and 1.2")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
