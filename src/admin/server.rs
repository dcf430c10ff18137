//! The listener and its connections: limited in number, in time, and in what they may send.
//!
//! It does not depend on what is requested. When it ends, for whatever reason, the daemon keeps running.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::guard::{AccessGuard, RequiredToken};
use super::routes;
use crate::config::{self, CommandToken};
use crate::control::Control;
use crate::ledger::LedgerReader;
use crate::status::StatusRegistry;

/// Connections open at a time; further ones wait in the kernel's queue until one has ended or is evicted.
const MAX_CONNECTIONS: usize = 32;
/// At the limit, a connection that has been idle for this long is evicted for a new one. So clients that only stay
/// connected, or send a byte now and then, do not keep others out.
const EVICTABLE_AFTER: Duration = Duration::from_millis(250);
/// How long a request's head may take to arrive, including the wait for the next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request head, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Maximum number of header fields of a request.
const MAX_HEADERS: usize = 64;
/// How long a connection stays open. A client that needs more time opens a new one.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// How long the last answer may take once a connection is being closed.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a connection could not be accepted, for example because file descriptors ran out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);

/// The listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is in use, or is not an address of this machine.
    #[error(
        "cannot listen on admin.listen = {address}: another program, perhaps another orderd, may use it; choose another \
         address, or \"off\""
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// A bound address that is not served yet.
#[derive(Debug)]
pub struct BoundListener {
    listener: TcpListener,
    address: SocketAddr,
    config: config::Admin,
}

impl BoundListener {
    /// Binds `admin.listen`; `None` if it is `"off"`.
    ///
    /// # Errors
    /// [`AdminError::Bind`].
    pub async fn bind(config: &config::Admin) -> Result<Option<Self>, AdminError> {
        let Some(address) = config.listen else { return Ok(None) };
        let failed = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(BoundListener { listener, address, config: config.clone() }))
    }

    /// Starts to serve. Reports are read from `ledger`; `control` receives the commands. They need `command_token` if no token
    /// is configured.
    pub fn serve(
        self,
        registry: Arc<StatusRegistry>,
        ledger: Arc<dyn LedgerReader>,
        control: Control,
        command_token: CommandToken,
    ) -> AdminServer {
        let BoundListener { listener, address, config } = self;
        info!(%address, token = config.token.is_some(), "admin server started");
        let token = config.token.map_or(RequiredToken::Commands(command_token), RequiredToken::Everywhere);
        let guard = AccessGuard { loopback: address.ip().is_loopback(), hosts: config.hosts, token };
        let router = routes::router(registry, ledger, control, guard);
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, router, stop.clone())));
        AdminServer { stop, task }
    }
}

/// The running server. Dropping it ends it at once.
#[derive(Debug)]
pub struct AdminServer {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl AdminServer {
    /// Accepts no more connections, and gives answers in progress up to [`LAST_ANSWER_TIMEOUT`].
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(panicked) = self.task.await {
            warn!(error = %panicked, "the admin server panicked");
        }
    }
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let full = tasks.len() >= MAX_CONNECTIONS;
        // All branches are cancel-safe: a connection, or the end of one, not received now is received in the next iteration.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => connections.retain(|connection| !connection.task.is_finished()),
            // Waits for the evicted connection to end; until then there is no room for another.
            () = evict_idle(&connections), if full => {
                let _ = tasks.join_next().await;
                connections.retain(|connection| !connection.task.is_finished());
            }
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, peer)) => {
                    debug!(%peer, "admin connection");
                    let idle = IdleSince::default();
                    let task = tasks.spawn(serve_connection(stream, router.clone(), idle.clone(), stop.clone()));
                    connections.push(Connection { idle, task });
                }
                Err(error) => {
                    warn!(%error, "cannot accept an admin connection");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// An open connection.
struct Connection {
    idle: IdleSince,
    task: AbortHandle,
}

/// When a connection was opened or its last answer was complete; `None` while an answer is in progress.
#[derive(Clone)]
struct IdleSince(Arc<Mutex<Option<Instant>>>);

impl Default for IdleSince {
    fn default() -> Self {
        IdleSince(Arc::new(Mutex::new(Some(Instant::now()))))
    }
}

impl IdleSince {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the connection that has been idle longest, once that is [`EVICTABLE_AFTER`]. Connections with an answer in progress
/// are kept: answers have a time limit.
async fn evict_idle(connections: &[Connection]) {
    loop {
        let open = connections.iter().filter(|connection| !connection.task.is_finished());
        let idle = open.filter_map(|connection| Some((connection.idle.get()?, connection)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((since, connection)) if since.elapsed() >= EVICTABLE_AFTER => return connection.task.abort(),
            Some((since, _)) => sleep_until(since + EVICTABLE_AFTER).await,
            None => sleep(EVICTABLE_AFTER).await,
        }
    }
}

/// Serves one connection for up to [`CONNECTION_LIFETIME`].
async fn serve_connection(stream: TcpStream, router: Router, idle: IdleSince, stop: CancellationToken) {
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        idle.set(None);
        let (answer, idle) = (routes.call(request), idle.clone());
        async move {
            let answer = answer.await;
            idle.set(Some(Instant::now()));
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // Cancel-safe: the connection is only borrowed, and the other branches only wait. Errors are caused by the client and
    // are not logged.
    tokio::select! {
        _ = &mut connection => return,
        () = sleep(CONNECTION_LIFETIME) => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_ANSWER_TIMEOUT, connection).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    /// A server with one path that answers at once, and one that waits for `answers`.
    async fn serve(answers: &Arc<Notify>) -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, answers) = (listener.local_addr().unwrap(), Arc::clone(answers));
        let waiting = || async move {
            answers.notified().await;
            "late"
        };
        let router = Router::new().route("/", get(|| async { "at once" })).route("/late", get(waiting));
        let task = tokio::spawn(accept(listener, router, CancellationToken::new()));
        (address, AbortOnDropHandle::new(task))
    }

    async fn request(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn answer(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn connections_that_send_a_byte_now_and_then_do_not_keep_others_out() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let patient = request(address, "/late").await;
        let mut slow = Vec::new();
        for _ in 0..10 * MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"G").await.unwrap();
            slow.push(stream);
        }
        // If only their deadline ended these connections, the last would be accepted after 100 s.
        let answered = timeout(HEAD_TIMEOUT, async { answer(request(address, "/").await).await });
        assert!(answered.await.expect("an answer in time").ends_with("at once"));
        answers.notify_one();
        assert!(answer(patient).await.ends_with("late"), "a connection that waits for its answer is not evicted");
    }
}
