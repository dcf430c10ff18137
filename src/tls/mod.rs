//! TLS for connections to the broker: the certificate files, the client configuration made from them, and why a handshake
//! failed.
//!
//! Owns the choice of cryptography and the reading of certificates and keys. Never opens a connection, and never shows the
//! content of a key.

mod files;
mod handshake_error;
mod reloader;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

pub use files::{Identity, TlsClient, TlsFileError, TlsFileProblem, load};
pub use handshake_error::TlsError;
pub use reloader::TlsReloader;

/// The files a TLS client needs. The configuration names them; they are read for each new connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authorities to trust, in PEM. `None`: those the operating system trusts.
    pub ca: Option<PathBuf>,
    /// The client certificate, for brokers that ask for one.
    pub client: Option<CertificateFiles>,
}

/// A client certificate and its key, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by intermediate certificates.
    pub certificate: PathBuf,
    /// Its private key, without a passphrase.
    pub key: PathBuf,
}

/// A TLS client that trusts no certificate, for HTTP clients that do not use TLS but still require a TLS configuration.
pub fn without_trust() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// TLS 1.3 and 1.2. The cryptography is passed explicitly, so it does not depend on a process-wide default provider.
fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.3 and 1.2")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
