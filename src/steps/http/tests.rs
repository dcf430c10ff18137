//! Calls of real servers, which answer well or misbehave in each way that a network allows.

mod certificates;
mod connections;
mod http2;
mod slow;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::config::Secret;
use crate::steps::TraceContext;
use crate::tls::TlsFiles;

const BODY: &str = r#"{"order":{"id":"ord-2"}}"#;
/// Longer than any call of these tests takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server that answers each connection with these bytes, once it has read a request, and then closes it.
struct Server {
    port: u16,
    requests: mpsc::UnboundedReceiver<String>,
}

/// What a server does with a request that it has read.
#[derive(Clone)]
enum Reply {
    Bytes(Vec<u8>),
    /// Sends these and then resets the connection.
    Reset(Vec<u8>),
    /// Answers the first request of a connection and resets it after the second.
    ResetSecond,
    /// A body without an end.
    Endless,
}

impl Server {
    async fn start(reply: Reply) -> Self {
        Self::start_with(reply, None).await
    }

    async fn start_with(reply: Reply, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if matches!(reply, Reply::Reset(_) | Reply::ResetSecond) {
                    // Closing it then resets it.
                    stream.set_zero_linger().unwrap();
                }
                let (reply, sender, tls) = (reply.clone(), sender.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, reply, sender).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, reply, sender).await;
                            }
                        }
                    }
                });
            }
        });
        Server { port, requests }
    }

    async fn answering(status: &str, headers: &str, body: &str) -> Self {
        Self::start(Reply::Bytes(response(status, headers, body))).await
    }

    fn url(&self) -> Url {
        format!("http://127.0.0.1:{}/charge?token=hidden", self.port).parse().unwrap()
    }

    /// The next request, as text.
    fn request(&mut self) -> String {
        self.requests.try_recv().expect("it was called")
    }
}

fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, reply: Reply, requests: mpsc::UnboundedSender<String>) {
    if let Reply::ResetSecond = reply {
        read_request(&mut stream, &requests).await;
        stream.write_all(&response("200 OK", "", "1")).await.unwrap();
    }
    read_request(&mut stream, &requests).await;
    match reply {
        Reply::Bytes(bytes) => drop(stream.write_all(&bytes).await),
        Reply::Reset(bytes) => return drop(stream.write_all(&bytes).await),
        Reply::ResetSecond => return,
        Reply::Endless => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 104857600\r\n\r\n\"";
            let _ = stream.write_all(head).await;
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
        }
    }
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin), requests: &mpsc::UnboundedSender<String>) {
    let mut request = Vec::new();
    while !String::from_utf8_lossy(&request).ends_with(BODY) {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend_from_slice(&buffer[..n]),
        }
    }
    let _ = requests.send(String::from_utf8(request).unwrap());
}

fn settings(mut url: Url) -> HttpSettings {
    let url_rest = url.query().map(|query| Secret::new(["?", query].concat()));
    url.set_query(None);
    HttpSettings {
        section: "http".into(),
        url,
        url_rest,
        headers: BTreeMap::new(),
        bearer: None,
        hmac_key: None,
        tls: TlsFiles::default(),
    }
}

async fn call(settings: HttpSettings) -> Result<StepAnswer, StepFailure> {
    call_of(&service(settings)).await
}

fn service(settings: HttpSettings) -> HttpService {
    HttpService::new(settings, Duration::from_secs(10), 4)
}

async fn call_of(service: &HttpService) -> Result<StepAnswer, StepFailure> {
    let body = Bytes::from_static(BODY.as_bytes());
    let trace = TraceContext {
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        tracestate: Some("shop=1,bank=2"),
    };
    let call = StepCall { idempotency_key: "ord-2/charge", body: &body, trace, timeout: DEADLINE };
    tokio::time::timeout(DEADLINE, service.call(call)).await.expect("it ends")
}

async fn failure(settings: HttpSettings) -> StepFailure {
    let failure = call(settings).await.unwrap_err();
    let reason = &failure.failure.reason;
    assert!(!reason.contains("hidden"), "the query may be a secret: {reason}");
    failure
}

fn facts(failure: &StepFailure) -> (FailureKind, &str, FailureCause) {
    (failure.failure.kind, &failure.failure.code, failure.cause)
}

#[tokio::test]
async fn a_notification_that_is_refused_because_of_the_endpoint_is_retried_and_counts_for_the_breaker() {
    for (status, expected) in [
        ("400 Bad Request", (Permanent, "http_400", Refused)),
        ("401 Unauthorized", (Transient, "http_401", NotReached)),
        ("402 Payment Required", (Transient, "http_402", NotReached)),
        ("403 Forbidden", (Transient, "http_403", NotReached)),
        ("404 Not Found", (Transient, "http_404", NotReached)),
        ("410 Gone", (Transient, "http_410", NotReached)),
        ("422 Unprocessable", (Permanent, "http_422", Refused)),
        ("503 Service Unavailable", (Transient, "http_503", Unanswered)),
    ] {
        let server = Server::answering(status, "", "invalid_token").await;
        let (service, body) = (service(settings(server.url())), Bytes::from_static(BODY.as_bytes()));
        let trace = TraceContext::default();
        let call = StepCall { idempotency_key: "ord-2/notification", body: &body, trace, timeout: DEADLINE };
        let failure = service.notify(call).await.unwrap_err();
        assert_eq!(facts(&failure), expected, "{status}");
        assert_eq!(failure.failure.reason.matches("invalid_token").count(), 1, "{}", failure.failure.reason);
    }
}

use FailureCause::{NotReached, Refused, Unanswered};
use FailureKind::{Permanent, Transient};

#[tokio::test]
async fn a_call_carries_its_key_its_trace_and_its_authentication_and_the_answer_is_the_result() {
    let mut server = Server::answering("201 Created", "", "{\"payment\": 7.10}\n").await;
    let secret = |text: &str| Some(Secret::new(text));
    let headers = [("x-shop".to_owned(), Secret::new("lamps"))].into();
    let settings = HttpSettings {
        headers,
        bearer: secret("0123456789abcdef"),
        hmac_key: secret("fedcba9876543210"),
        ..settings(server.url())
    };
    assert_eq!(call(settings).await.unwrap().result.get(), "{\"payment\": 7.10}");
    let request = server.request();
    assert!(request.starts_with("POST /charge?token=hidden HTTP/1.1\r\n"), "{request}");
    for header in [
        "idempotency-key: ord-2/charge",
        "content-type: application/json",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: shop=1,bank=2",
        "x-shop: lamps",
        "authorization: Bearer 0123456789abcdef",
    ] {
        assert!(request.contains(&format!("\r\n{header}\r\n")), "{header}: {request}");
    }
    let signature = request.lines().find_map(|line| line.strip_prefix("orderd-signature: t=")).unwrap();
    let (seconds, _) = signature.split_once(",v1=").unwrap();
    let expected = signature::sign("fedcba9876543210", seconds.parse().unwrap(), "ord-2/charge", BODY.as_bytes());
    assert_eq!(format!("t={signature}"), expected);
    let empty = Server::answering("204 No Content", "", "").await;
    assert_eq!(call(super::tests::settings(empty.url())).await.unwrap().result.get(), "null");
}

#[tokio::test]
async fn each_status_has_a_defined_meaning() {
    for (status, expected) in [
        ("302 Found", (Transient, "http_302", Unanswered)),
        ("304 Not Modified", (Transient, "http_304", Unanswered)),
        ("308 Permanent Redirect", (Transient, "http_308", Unanswered)),
        ("400 Bad Request", (Permanent, "http_400", Refused)),
        ("402 Payment Required", (Permanent, "http_402", Refused)),
        ("404 Not Found", (Permanent, "http_404", Refused)),
        ("408 Request Timeout", (Transient, "http_408", Refused)),
        ("425 Too Early", (Transient, "http_425", Refused)),
        ("429 Too Many Requests", (Transient, "http_429", Refused)),
        ("500 Internal Server Error", (Transient, "http_500", Unanswered)),
        ("503 Service Unavailable", (Transient, "http_503", Unanswered)),
    ] {
        let mut server =
            Server::answering(status, "location: http://127.0.0.1:1/\r\nretry-after: 7\r\n", "card declined").await;
        let failure = failure(settings(server.url())).await;
        assert_eq!(facts(&failure), expected, "{status}");
        let asks = expected.0 == Transient && !status.starts_with('3');
        assert_eq!(failure.retry_after, asks.then_some(Duration::from_secs(7)), "{status}");
        let says = failure.failure.reason.contains("card declined");
        assert!(says || status.starts_with("304"), "{}", failure.failure.reason);
        server.request();
        assert!(server.requests.try_recv().is_err(), "a redirect was followed");
    }
    let long = Server::answering("422 Unprocessable", "", &format!("no\n{}", "x".repeat(9_000))).await;
    let reason = failure(settings(long.url())).await.failure.reason;
    assert!(reason.starts_with("no\\nxxx") && reason.len() <= 1024, "{reason}");
}

#[tokio::test]
async fn a_service_that_is_away_or_breaks_off_is_a_transient_failure_that_says_whether_the_call_may_have_had_its_effect()
 {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/?token=hidden", closed.local_addr().unwrap().port()).parse().unwrap();
    drop(closed);
    assert_eq!(facts(&failure(settings(url)).await), (Transient, "unreachable", NotReached), "refused");
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"payment\":".to_vec();
    for (what, reply, code) in [
        ("reset after the request was read", Reply::Reset(Vec::new()), "connection_lost"),
        ("reset in the headers", Reply::Reset(b"HTTP/1.1 200 O".to_vec()), "connection_lost"),
        ("reset in the body", Reply::Reset(half), "connection_lost"),
        ("no HTTP", Reply::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "connection_lost"),
        ("no JSON", Reply::Bytes(response("200 OK", "", "<html>")), "invalid_answer"),
        ("no UTF-8", Reply::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff".to_vec()), "invalid_answer"),
        ("100 MB", Reply::Endless, "invalid_answer"),
    ] {
        let mut server = Server::start(reply).await;
        assert_eq!(facts(&failure(settings(server.url())).await), (Transient, code, Unanswered), "{what}");
        server.request();
        assert!(server.requests.try_recv().is_err(), "{what}: the call was repeated");
    }
    let mut server = Server::start(Reply::ResetSecond).await;
    let service = service(settings(server.url()));
    assert_eq!(call_of(&service).await.unwrap().result.get(), "1");
    let failure = call_of(&service).await.unwrap_err();
    assert_eq!(facts(&failure), (Transient, "connection_lost", Unanswered), "a reused connection was reset");
    server.request();
    server.request();
    assert!(server.requests.try_recv().is_err(), "a call was repeated");
}

#[tokio::test]
async fn a_certificate_is_verified_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, tls) = tls(directory.path());
    let server = Server::start_with(Reply::Bytes(response("200 OK", "", "1")), Some(tls)).await;
    let url = |host: &str| format!("https://{host}:{}/?token=hidden", server.port).parse().unwrap();
    let trusting = |host| HttpSettings { tls: trusting(&ca), ..settings(url(host)) };
    assert_eq!(call(trusting("localhost")).await.unwrap().result.get(), "1");
    assert_eq!(facts(&failure(trusting("127.0.0.1")).await), (Transient, "tls_failed", NotReached));
    // Without a server at all, the files alone can be wrong.
    let missing = TlsFiles { ca: Some(directory.path().join("none.pem")), client: None };
    let failure = failure(HttpSettings { tls: missing, ..settings(url("localhost")) }).await;
    assert_eq!(facts(&failure), (Transient, "tls_failed", NotReached));
}

#[tokio::test]
async fn a_tls_error_after_the_request_was_read_does_not_say_that_the_call_had_no_effect() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, tls) = tls(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/?token=hidden", listener.local_addr().unwrap().port()).parse().unwrap();
    let (sender, mut requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tls.accept(stream).await.unwrap();
        read_request(&mut stream, &sender).await;
        // No TLS record.
        stream.get_mut().0.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    });
    let failure = failure(HttpSettings { tls: trusting(&ca), ..settings(url) }).await;
    assert_eq!(facts(&failure), (Transient, "connection_lost", Unanswered));
    requests.try_recv().expect("it was called");
}

fn trusting(ca: &Path) -> TlsFiles {
    TlsFiles { ca: Some(ca.to_owned()), client: None }
}

/// The file with a certificate for `localhost` in this directory, and what accepts connections with it.
fn tls(directory: &Path) -> (PathBuf, TlsAcceptor) {
    tls_offering(directory, &[])
}

/// [`tls`] that offers these protocols by ALPN.
fn tls_offering(directory: &Path, protocols: &[&str]) -> (PathBuf, TlsAcceptor) {
    let ca = directory.join("ca.pem");
    let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, generated.cert.pem()).unwrap();
    let certificate = CertificateDer::from_pem_slice(generated.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(generated.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    (ca, TlsAcceptor::from(Arc::new(config)))
}
