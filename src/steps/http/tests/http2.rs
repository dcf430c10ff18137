//! A real HTTP/2 server, offered by ALPN.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;

use super::*;

/// What a server does with a connection after a call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Serve,
    /// Ends it in an orderly way: `GOAWAY`.
    GoAway,
    /// Does nothing more, and keeps it open.
    Freeze,
}

struct Http2Server {
    url: Url,
    connections: Arc<AtomicUsize>,
    then: watch::Sender<Then>,
    ca: PathBuf,
    _directory: tempfile::TempDir,
}

impl Http2Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ca, tls) = tls_offering(directory.path(), &["h2", "http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port()).parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (then, receiver) = watch::channel(Then::Serve);
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = tls.accept(stream).await else { continue };
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve_http2(TokioIo::new(stream), receiver.clone()));
            }
        });
        Http2Server { url, connections, then, ca, _directory: directory }
    }

    fn settings(&self) -> HttpSettings {
        HttpSettings { tls: trusting(&self.ca), ..settings(self.url.clone()) }
    }
}

/// Serves a connection; what is said before it begins is not for it.
async fn serve_http2(
    stream: TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    mut then: watch::Receiver<Then>,
) {
    then.mark_unchanged();
    let service = service_fn(|request: Request<Incoming>| async move {
        let known = request.headers().get("idempotency-key").is_some_and(|key| key == "ord-2/charge");
        let correct = known && request.version() == Version::HTTP_2;
        Ok::<_, Infallible>(Response::new(if correct { "2".to_owned() } else { "0".to_owned() }))
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    loop {
        // Cancel-safe: the connection is only borrowed.
        tokio::select! {
            _ = &mut connection => return,
            changed = then.changed() => match changed.map(|()| *then.borrow_and_update()) {
                Ok(Then::GoAway) => connection.as_mut().graceful_shutdown(),
                Ok(Then::Freeze) => std::future::pending().await,
                Ok(Then::Serve) => {}
                Err(_) => return,
            },
        }
    }
}

#[tokio::test]
async fn http_2_is_spoken_where_it_is_offered_and_a_connection_that_the_server_ends_costs_no_attempt() {
    let server = Http2Server::start().await;
    let service = service(server.settings());
    let calls = (0..20).map(|_| call_of(&service));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().result.get(), "2");
    }
    for _ in 0..20 {
        server.then.send(Then::GoAway).unwrap();
        assert_eq!(call_of(&service).await.unwrap().result.get(), "2");
    }
    assert!(server.connections.load(Ordering::SeqCst) > 1, "the connection was ended");
}

#[tokio::test]
async fn an_http_2_connection_on_which_nothing_comes_back_any_more_is_replaced() {
    let server = Http2Server::start().await;
    let mut service = service(server.settings());
    service.setup.ping = Duration::from_millis(200);
    service.set(None);
    assert_eq!(call_of(&service).await.unwrap().result.get(), "2");
    server.then.send(Then::Freeze).unwrap();
    let replaced = async {
        // The engine drops a call that takes too long; the one that finds the connection dead fails.
        while !matches!(tokio::time::timeout(Duration::from_millis(500), call_of(&service)).await, Ok(Ok(_))) {}
    };
    tokio::time::timeout(DEADLINE, replaced).await.expect("it is replaced");
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}
