//! Client certificates, and certificate files that are replaced while orderd runs.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use super::*;
use crate::tls::CertificateFiles;

/// An authority that issues the server's certificate and those of clients.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        Authority { certificate, issuer: Issuer::new(parameters, key) }
    }

    /// A certificate and its key, as PEM.
    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// What accepts connections of clients with a certificate of this authority.
    fn verifying_acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Writes the authority's certificate, and a client's that it issues.
    fn write(&self, directory: &Path) {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ClientAuth);
        for (file, text) in [("ca.pem", self.certificate.pem()), ("client.pem", certificate), ("client.key", key)] {
            std::fs::write(directory.join(file), text).unwrap();
        }
    }
}

fn client_files(directory: &Path) -> CertificateFiles {
    CertificateFiles { certificate: directory.join("client.pem"), key: directory.join("client.key") }
}

async fn start(authority: &Authority) -> (Server, Url) {
    let reply = Reply::Bytes(response("200 OK", "", "1"));
    let server = Server::start_with(reply, Some(authority.verifying_acceptor())).await;
    let url = format!("https://localhost:{}/?token=hidden", server.port).parse().unwrap();
    (server, url)
}

#[tokio::test]
async fn a_service_that_asks_for_a_client_certificate_gets_it() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.write(directory.path());
    let (mut server, url) = start(&authority).await;
    let ca = Some(directory.path().join("ca.pem"));
    let with = |client| HttpSettings { tls: TlsFiles { ca: ca.clone(), client }, ..settings(url.clone()) };
    assert_eq!(call(with(Some(client_files(directory.path())))).await.unwrap().result.get(), "1");
    server.request();
    assert_eq!(facts(&failure(with(None)).await), (Transient, "tls_failed", NotReached), "without a certificate");
    let (stranger, elsewhere) = (Authority::new(), tempfile::tempdir().unwrap());
    stranger.write(elsewhere.path());
    let unknown = with(Some(client_files(elsewhere.path())));
    assert_eq!(facts(&failure(unknown).await), (Transient, "tls_failed", NotReached), "of another authority");
    assert!(server.requests.try_recv().is_err(), "a call was made without the certificate");
}

#[tokio::test]
async fn certificate_files_that_are_replaced_are_used_after_the_next_handshake_that_fails() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let (_server, url) = start(&authority).await;
    Authority::new().write(directory.path());
    let files = TlsFiles { ca: Some(directory.path().join("ca.pem")), client: Some(client_files(directory.path())) };
    let service = service(HttpSettings { tls: files, ..settings(url) });
    let failed = |result: Result<StepAnswer, StepFailure>| result.unwrap_err().failure.code;
    assert_eq!(failed(call_of(&service).await), "tls_failed", "the server's authority is not trusted");
    authority.write(directory.path());
    assert_eq!(failed(call_of(&service).await), "tls_failed", "the files are read once a handshake has failed");
    assert_eq!(call_of(&service).await.unwrap().result.get(), "1");
}
