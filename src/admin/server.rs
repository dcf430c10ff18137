//! The listener and its connections: limited in number, in time, and in what they may send.
//!
//! It does not depend on what is requested. When it ends, for whatever reason, the daemon keeps running.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::access::{Authenticator, KnownUser, known_users};
use super::caller::{Caller, CallerHandle};
use super::guard::AccessGuard;
use super::progress::{Phase, Progress};
use super::routes;
use super::sent_bytes::SentBytes;
use crate::config::{self, AdminUser, CommandToken};
use crate::control::Control;
use crate::dead_letters::LetterActionsHandle;
use crate::ledger::LedgerReader;
use crate::status::StatusRegistry;

/// Connections open at a time. At the limit, the oldest one that waits for its client makes room for a new one, so clients that
/// only stay connected, send a byte now and then, or do not read their answers keep no others out. Room is always left: at
/// most [`routes::MAX_ANSWERS`] connections are kept whatever happens, and health checks are answered at once.
const MAX_CONNECTIONS: usize = 128;
const _: () = assert!(routes::MAX_ANSWERS * 2 < MAX_CONNECTIONS);
/// How long a client is waited for at least, however many others connect: it may be on another continent.
const MIN_WAIT: Duration = Duration::from_millis(150);
/// How long a request's head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the client may take to receive the answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing more of an answer in parts may be sent.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// What the operating system may hold of an answer that the client has not received. It takes no more until a part of that is received:
/// of megabytes, a slow client would not receive enough within [`PART_TIMEOUT`].
const SEND_BUFFER: u32 = 64 << 10;
/// Connections that the operating system queues.
const BACKLOG: u32 = 1_024;
/// Largest request head, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Maximum number of header fields of a request.
const MAX_HEADERS: usize = 64;
/// How long a connection stays open at most, unless an answer is being sent in parts: longer than a command may take.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// How long the last answer may take once a connection is being closed.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause at the limit before another connection is looked for that can be evicted.
const EVICTION_RETRY_DELAY: Duration = Duration::from_millis(20);
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
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(BoundListener { listener, address, config: config.clone() }))
    }

    /// Starts to serve. Reports are read from `ledger`; `control` receives the commands. Who has `command_token` may send them, as may
    /// the configured operators. `actions` is what is done with dead letters.
    pub fn serve(
        self,
        registry: Arc<StatusRegistry>,
        ledger: Arc<dyn LedgerReader>,
        control: Control,
        actions: LetterActionsHandle,
        command_token: CommandToken,
    ) -> AdminServer {
        let BoundListener { listener, address, config } = self;
        info!(%address, users = config.users.len(), "admin server started");
        let (users, known) = watch::channel(known_users(&config.users));
        let authenticator = Authenticator { users: known, local: command_token };
        let guard = AccessGuard { loopback: address.ip().is_loopback(), hosts: config.hosts, authenticator };
        let router = routes::router(registry, ledger, (control, actions), guard);
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, router, stop.clone())));
        AdminServer { stop, users, task }
    }
}

/// The running server. Dropping it ends it at once.
#[derive(Debug)]
pub struct AdminServer {
    stop: CancellationToken,
    users: watch::Sender<Vec<KnownUser>>,
    task: AbortOnDropHandle<()>,
}

impl AdminServer {
    /// Replaces the users, for all requests from now on.
    pub fn set_users(&self, users: &[AdminUser]) {
        self.users.send_replace(known_users(users));
    }

    /// Accepts no more connections, and gives answers in progress up to [`LAST_ANSWER_TIMEOUT`].
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(panicked) = self.task.await {
            warn!(error = %panicked, "the admin server panicked");
        }
    }
}

/// Binds an address. Its connections have the send buffer of the listener.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let full = tasks.len() >= MAX_CONNECTIONS;
        if full && let Some(oldest) = oldest_evictable(&connections) {
            oldest.task.abort();
        }
        // All branches are cancel-safe: a connection, or the end of one, not received now is received in the next iteration.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => connections.retain(|connection| !connection.task.is_finished()),
            // No connection could be evicted; by now one may.
            () = sleep(EVICTION_RETRY_DELAY), if full => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, peer)) => {
                    debug!(%peer, "admin connection");
                    // An error means that the client is gone, or that there are no file descriptors left.
                    let Ok((stream, caller)) = Caller::split(stream) else { continue };
                    let (client, state) = (caller.handle(), Progress::default());
                    let serving = serve_connection(stream, caller, router.clone(), state.clone(), stop.clone());
                    connections.push(Connection { state, client, task: tasks.spawn(serving) });
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
    state: Progress,
    client: CallerHandle,
    task: AbortHandle,
}

impl Connection {
    /// Since when it waits for its client; `None` if the client has done its part.
    fn waiting_since(&self) -> Option<Instant> {
        match self.state.get() {
            // A request that has arrived and was not read yet is not the client's fault.
            Phase::Request(_) if self.client.has_unread_data() => None,
            Phase::Request(since) | Phase::Receipt(since) | Phase::Part(since) => Some(since),
            Phase::Answer => None,
        }
    }
}

/// The connection that has waited longest for its client; `None` if none has waited for [`MIN_WAIT`].
fn oldest_evictable(connections: &[Connection]) -> Option<&Connection> {
    let open = connections.iter().filter(|connection| !connection.task.is_finished());
    let waiting = open.filter_map(|connection| Some((connection.waiting_since()?, connection)));
    let (since, oldest) = waiting.min_by_key(|(since, _)| *since)?;
    (since.elapsed() >= MIN_WAIT).then_some(oldest)
}

/// Serves one connection: one request and its answer, then it is closed. A client that asks more often connects again, so that
/// none occupies a connection.
async fn serve_connection(stream: TcpStream, caller: Caller, router: Router, state: Progress, stop: CancellationToken) {
    let routes = TowerToHyperService::new(router);
    let answered = Arc::new(Notify::new());
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        state.set(Phase::Answer);
        request.extensions_mut().insert(caller.handle());
        request.extensions_mut().insert(state.clone());
        let (answer, state, answered) = (routes.call(request), state.clone(), Arc::clone(&answered));
        async move {
            let answer = answer.await;
            state.set(Phase::Receipt(Instant::now()));
            answered.notify_one();
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(SentBytes::new(stream, state.clone())), service);
    tokio::pin!(connection);
    let sending_too_long = async {
        answered.notified().await;
        stalled(&state).await;
    };
    // Cancel-safe: the connection is only borrowed, and the other branches only wait. Errors are caused by the client and
    // are not logged.
    tokio::select! {
        _ = &mut connection => return,
        () = sending_too_long => return,
        () = lifetime(&state) => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_ANSWER_TIMEOUT, connection).await;
}

/// Waits until the client has not received the answer in time, or no further part of it.
async fn stalled(state: &Progress) {
    loop {
        let until = match state.get() {
            Phase::Receipt(since) => since + SEND_TIMEOUT,
            Phase::Part(since) => since + PART_TIMEOUT,
            Phase::Request(_) | Phase::Answer => return,
        };
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

/// How long a connection stays open at most. An answer in parts takes as long as it takes: [`stalled`] limits each of them.
async fn lifetime(state: &Progress) {
    sleep(CONNECTION_LIFETIME).await;
    if matches!(state.get(), Phase::Part(_)) {
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
