//! Connections of the admin listener: taken up to a limit, each bounded in time and in what it may send.
//!
//! It knows nothing of what is asked. Its end, for whatever reason, ends nothing else.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
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

use super::guard::Guard;
use super::pages::Pages;
use crate::config;
use crate::control::Control;
use crate::status::StatusRegistry;

/// Connections at a time; more wait in the system's queue until one has ended or makes room.
const CONNECTIONS: usize = 32;
/// A connection on which nothing has been asked for so long makes room for another one once all are taken: those that
/// only stay, or send a byte now and then, do not keep others out.
const IDLE: Duration = Duration::from_millis(250);
/// How long a request's head may take to arrive, the wait for the next request included.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Largest request head, in bytes.
const LARGEST_HEAD: usize = 8 * 1024;
/// Most header fields of a request.
const MOST_HEADERS: usize = 64;
/// How long a connection is kept, and how long its last answer may then take. A client that goes on asks again on
/// a new one.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// The wait after a connection could not be taken: out of file descriptors, say.
const PAUSE: Duration = Duration::from_millis(200);

/// The listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is taken, or not one of this machine's.
    #[error(
        "cannot listen on admin.listen = {address}: another program, perhaps another orderd, may have it; choose another \
         address, or \"off\""
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An address taken, on which nobody answers yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    config: config::Admin,
}

impl Bound {
    /// Takes the address; `None` if the listener is off.
    ///
    /// # Errors
    /// [`AdminError::Bind`].
    pub async fn bind(config: &config::Admin) -> Result<Option<Self>, AdminError> {
        let Some(address) = config.listen else { return Ok(None) };
        let failed = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(Bound { listener, address, config: config.clone() }))
    }

    /// Begins to answer. `ledger` is the directory reports are read from, `control` the way to whoever obeys.
    pub fn serve(self, live: Arc<StatusRegistry>, ledger: PathBuf, control: Control) -> Admin {
        let Bound { listener, address, config } = self;
        info!(%address, token = config.token.is_some(), "admin listener answers");
        let guard = Guard { loopback: address.ip().is_loopback(), hosts: config.hosts, token: config.token };
        let router = Pages::new(live, ledger, control).router(Arc::new(guard));
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, router, stop.clone())));
        Admin { stop, task }
    }
}

/// The running listener. Dropping it ends it at once.
#[derive(Debug)]
pub struct Admin {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Admin {
    /// Takes no more connections, and gives answers that are under way a moment.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(died) = self.task.await {
            warn!(error = %died, "the admin listener had died");
        }
    }
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut guests: Vec<Guest> = Vec::new();
    loop {
        let full = connections.len() >= CONNECTIONS;
        // Cancel-safe, all of them: a connection or an end not taken now is taken by the next turn.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => guests.retain(|guest| !guest.task.is_finished()),
            // Its end is awaited: until then there is no room.
            () = make_room(&guests), if full => {
                let _ = connections.join_next().await;
                guests.retain(|guest| !guest.task.is_finished());
            }
            taken = listener.accept(), if !full => match taken {
                Ok((stream, peer)) => {
                    debug!(%peer, "admin connection");
                    let quiet = Quiet::default();
                    let task = connections.spawn(converse(stream, router.clone(), quiet.clone(), stop.clone()));
                    guests.push(Guest { quiet, task });
                }
                Err(error) => {
                    warn!(%error, "cannot take an admin connection");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A connection that was taken.
struct Guest {
    quiet: Quiet,
    task: AbortHandle,
}

/// Since when nothing is asked on a connection; `None` while an answer is being made.
#[derive(Clone)]
struct Quiet(Arc<Mutex<Option<Instant>>>);

impl Default for Quiet {
    fn default() -> Self {
        Quiet(Arc::new(Mutex::new(Some(Instant::now()))))
    }
}

impl Quiet {
    fn is(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the connection that has been quiet for longest, once that is long enough. Those that wait for an answer stay:
/// answers have a deadline.
async fn make_room(guests: &[Guest]) {
    loop {
        let quiet = guests.iter().filter(|guest| !guest.task.is_finished());
        let quiet = quiet.filter_map(|guest| Some((guest.quiet.since()?, guest)));
        match quiet.min_by_key(|(since, _)| *since) {
            Some((since, guest)) if since.elapsed() >= IDLE => return guest.task.abort(),
            Some((since, _)) => sleep_until(since + IDLE).await,
            None => sleep(IDLE).await,
        }
    }
}

/// Serves one connection, for a while.
async fn converse(stream: TcpStream, router: Router, quiet: Quiet, stop: CancellationToken) {
    let pages = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        quiet.is(None);
        let (answer, quiet) = (pages.call(request), quiet.clone());
        async move {
            let answer = answer.await;
            quiet.is(Some(Instant::now()));
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // Cancel-safe: the connection is kept, the others only wait. What clients do wrong is their affair.
    tokio::select! {
        _ = &mut connection => return,
        () = sleep(CONNECTION_LIFE) => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_ANSWER, connection).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    /// A listener with a page that answers at once and one that waits.
    async fn listener(answers: &Arc<Notify>) -> (SocketAddr, AbortOnDropHandle<()>) {
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

    async fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
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
        let (address, _task) = listener(&answers).await;
        let patient = ask(address, "/late").await;
        let mut slow = Vec::new();
        for _ in 0..10 * CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"G").await.unwrap();
            slow.push(stream);
        }
        // By their deadline alone these would be through in 100 s.
        let asked = timeout(HEAD_WITHIN, async { answer(ask(address, "/").await).await });
        assert!(asked.await.expect("an answer in time").ends_with("at once"));
        answers.notify_one();
        assert!(answer(patient).await.ends_with("late"), "whoever waits for an answer is not sent away");
    }
}
