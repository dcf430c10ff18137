//! The listener and its connections: limited in number, in time, and in what they may send.
//!
//! It does not depend on what is requested. When it ends, for whatever reason, the daemon keeps running.

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
use tokio::net::{TcpListener, TcpStream};
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
use crate::config::{self, AdminUser, CommandToken};
use crate::control::Control;
use crate::dead_letters::DeskHandle;
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
/// How long nothing more of an answer in parts may be sent. Some megabytes of it may be in the buffers of the operating system, which
/// a slow client has to receive first.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest request head, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Maximum number of header fields of a request.
const MAX_HEADERS: usize = 64;
/// How long a connection stays open at most: longer than a command may take.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// How much longer it stays open while an answer is sent in parts.
const LONG_ANSWER_LIFETIME: Duration = Duration::from_secs(3_600);
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
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(BoundListener { listener, address, config: config.clone() }))
    }

    /// Starts to serve. Reports are read from `ledger`; `control` receives the commands. Who has `command_token` may send them, as may
    /// the configured operators. `desk` is what is done with dead letters.
    pub fn serve(
        self,
        registry: Arc<StatusRegistry>,
        ledger: Arc<dyn LedgerReader>,
        control: Control,
        desk: DeskHandle,
        command_token: CommandToken,
    ) -> AdminServer {
        let BoundListener { listener, address, config } = self;
        info!(%address, users = config.users.len(), "admin server started");
        let (users, known) = watch::channel(known_users(&config.users));
        let authenticator = Authenticator { users: known, local: command_token };
        let guard = AccessGuard { loopback: address.ip().is_loopback(), hosts: config.hosts, authenticator };
        let router = routes::router(registry, ledger, (control, desk), guard);
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
        .serve_connection(TokioIo::new(stream), service);
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

/// How long a connection stays open at most.
async fn lifetime(state: &Progress) {
    sleep(CONNECTION_LIFETIME).await;
    if matches!(state.get(), Phase::Part(_)) {
        sleep(LONG_ANSWER_LIFETIME).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Bytes;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::spawn_blocking;

    use super::*;
    use crate::admin::access::tests::authenticator;
    use crate::admin::guard::check_access;

    /// A server with one path that answers at once, and one that waits for `answers`.
    async fn serve(answers: &Arc<Notify>) -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, answers) = (listener.local_addr().unwrap(), Arc::clone(answers));
        let waiting = || async move {
            answers.notified().await;
            "late"
        };
        let guard = AccessGuard {
            loopback: true,
            hosts: Vec::new(),
            authenticator: authenticator(std::path::Path::new("/no/such/directory")),
        };
        let long = Bytes::from(vec![b'x'; 32 << 20]);
        let guarded = Router::new().route("/token", get(|| async { "secret" }));
        let router = Router::new()
            .route("/", get(|| async { "at once" }))
            .route("/late", get(waiting))
            .route("/long", get(move || std::future::ready(long.clone())))
            .route("/parts", get(parts))
            .merge(guarded.layer(from_fn_with_state(Arc::new(guard), check_access)));
        let task = tokio::spawn(accept(listener, router, CancellationToken::new()));
        (address, AbortOnDropHandle::new(task))
    }

    /// The parts of [`parts`], and their size.
    const PARTS: usize = 512;
    const PART: usize = 64 << 10;

    /// Answers in parts, each made only when it is sent.
    async fn parts(request: axum::extract::Request) -> axum::body::Body {
        let progress = request.extensions().get::<Progress>().cloned().unwrap();
        let parts = futures_util::stream::iter(0..PARTS).map(move |_| {
            progress.advanced();
            Ok::<_, io::Error>(Bytes::from(vec![b'x'; PART]))
        });
        axum::body::Body::from_stream(parts)
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

    /// Longer than an answer takes on a busy machine.
    const IN_TIME: Duration = Duration::from_secs(20);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clients_without_a_token_that_ask_all_the_time_do_not_starve_health_checks() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let refused = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..40 {
            let refused = Arc::clone(&refused);
            clients.spawn(async move {
                loop {
                    let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                    let head = b"GET /token HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
                    let _ = stream.write_all(head).await;
                    // Ends only when the server closes the connection.
                    let mut answer = String::new();
                    let _ = stream.read_to_string(&mut answer).await;
                    if answer.starts_with("HTTP/1.1 401") {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for _ in 0..8 {
            let answered = timeout(IN_TIME, async { answer(request(address, "/").await).await }).await;
            assert!(answered.expect("an answer in time").ends_with("at once"));
        }
        timeout(IN_TIME, async {
            // More than if each connection lasted until a time limit closed it.
            while refused.load(Ordering::Relaxed) < 400 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the connections of refused clients are closed");
    }

    #[tokio::test]
    async fn clients_that_do_not_read_their_answers_do_not_keep_others_out() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let mut unread = Vec::new();
        // If only the time limits ended these connections, the last would be accepted after 30 s.
        let answered = timeout(IN_TIME, async {
            for _ in 0..4 * MAX_CONNECTIONS {
                unread.push(request(address, "/long").await);
            }
            answer(request(address, "/").await).await
        });
        assert!(answered.await.expect("an answer in time").ends_with("at once"));
    }

    #[tokio::test]
    async fn connections_that_send_a_byte_now_and_then_do_not_keep_others_out() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let patient = request(address, "/late").await;
        let mut slow = Vec::new();
        // If only their deadline ended these connections, the last would be accepted after 50 s. More connections than the
        // operating system queues are made only once others are accepted.
        let answered = timeout(IN_TIME, async {
            for _ in 0..10 * MAX_CONNECTIONS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"G").await.unwrap();
                slow.push(stream);
            }
            answer(request(address, "/").await).await
        });
        assert!(answered.await.expect("an answer in time").ends_with("at once"));
        answers.notify_one();
        assert!(answer(patient).await.ends_with("late"), "a connection that waits for its answer is not evicted");
    }

    /// A client that has vanished sends nothing more, not even the end of the stream, and reads nothing.
    #[tokio::test(start_paused = true)]
    async fn the_connection_of_a_client_that_vanishes_is_closed_in_each_phase() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let mut incomplete = TcpStream::connect(address).await.unwrap();
        incomplete.write_all(b"GET /").await.unwrap();
        let long = request(address, "/long").await;
        let late = request(address, "/late").await;
        sleep(HEAD_TIMEOUT.max(SEND_TIMEOUT) + Duration::from_secs(1)).await;
        assert!(received_until_closed(incomplete).await < 1024, "at most an error");
        assert!(received_until_closed(long).await < 32 << 20, "the rest was not sent");
        sleep(CONNECTION_LIFETIME).await;
        assert_eq!(received_until_closed(late).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_receives_all_of_an_answer_in_parts_and_one_that_vanishes_is_closed() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let mut vanished = request(address, "/parts").await;
        let mut slow = request(address, "/parts").await;
        let (begun, mut received, mut end) = (Instant::now(), 0, Vec::new());
        let mut buffer = Vec::with_capacity(16 * PART);
        loop {
            sleep(SEND_TIMEOUT / 2).await;
            // Paused time does not advance while a blocking task runs: the operating system may need a moment to hand on what was sent.
            let (read_ended, is_read) = std::sync::mpsc::channel::<()>();
            let pause = spawn_blocking(move || is_read.recv());
            let read = (&mut slow).take(buffer.capacity() as u64).read_to_end(&mut buffer).await.unwrap();
            drop(read_ended);
            assert!(pause.await.unwrap().is_err());
            if read == 0 {
                break;
            }
            received += read;
            end.append(&mut buffer);
            end.drain(..end.len().saturating_sub(5));
        }
        assert!(received > PARTS * PART, "{received} after {:?}", begun.elapsed());
        assert_eq!(end, b"0\r\n\r\n", "it is complete");
        assert!(begun.elapsed() > CONNECTION_LIFETIME, "{:?}", begun.elapsed());
        let mut rest = Vec::new();
        let _ = vanished.read_to_end(&mut rest).await;
        assert!(rest.len() < PARTS * PART, "the rest was not sent");
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_of_clients_that_vanish_leave_room_for_others_in_time() {
        let answers = Arc::new(Notify::new());
        let (address, _task) = serve(&answers).await;
        let mut vanished = Vec::new();
        // None of them can be evicted: their answers are not ready.
        for _ in 0..MAX_CONNECTIONS {
            vanished.push(request(address, "/late").await);
        }
        let answered = timeout(2 * CONNECTION_LIFETIME, async { answer(request(address, "/").await).await });
        assert!(answered.await.expect("there is room again").ends_with("at once"));
        for stream in vanished {
            assert_eq!(received_until_closed(stream).await, 0);
        }
    }

    /// The bytes received until the connection is closed or reset.
    async fn received_until_closed(mut stream: TcpStream) -> usize {
        let mut received = Vec::new();
        let closed = timeout(Duration::from_secs(1), stream.read_to_end(&mut received)).await;
        assert!(closed.is_ok(), "it is still open");
        received.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_request_has_arrived_is_not_evicted_even_if_it_was_not_read_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut clients = Vec::new();
        let mut connections = Vec::new();
        let mut callers = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let (stream, caller) = Caller::split(listener.accept().await.unwrap().0).unwrap();
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            connections.push(Connection { state: Progress::default(), client: caller.handle(), task });
            callers.push((stream, caller));
        }
        clients[0].write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        callers[0].0.readable().await.unwrap();
        assert!(oldest_evictable(&connections).is_none(), "each client is given some time");
        tokio::time::advance(MIN_WAIT).await;
        let evictable = oldest_evictable(&connections).unwrap();
        assert!(std::ptr::eq(evictable, &connections[1]), "the older one has sent its request");
        connections[1].state.set(Phase::Answer);
        assert!(oldest_evictable(&connections).is_none());
        connections[0].state.set(Phase::Receipt(Instant::now()));
        tokio::time::advance(MIN_WAIT).await;
        assert!(oldest_evictable(&connections).is_some(), "its answer was sent");
    }
}
