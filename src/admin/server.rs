//! Connections of the admin listener: taken up to a limit, each bounded in time and in what it may send.
//!
//! It knows nothing of what is asked. Its end, for whatever reason, ends nothing else.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::guard::Guard;
use super::live::Live;
use super::pages::Pages;
use crate::config;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS: usize = 32;
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

    /// Begins to answer. `ledger` is the directory reports are read from.
    pub fn serve(self, live: Arc<Live>, ledger: PathBuf) -> Admin {
        let Bound { listener, address, config } = self;
        info!(%address, token = config.token.is_some(), "admin listener answers");
        let guard = Guard { loopback: address.ip().is_loopback(), hosts: config.hosts, token: config.token };
        let router = Pages::new(live, ledger).router(Arc::new(guard));
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
    loop {
        // Cancel-safe, all of them: a connection or an end not taken now is taken by the next turn.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            taken = listener.accept(), if connections.len() < CONNECTIONS => match taken {
                Ok((stream, peer)) => {
                    debug!(%peer, "admin connection");
                    connections.spawn(converse(stream, router.clone(), stop.clone()));
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

/// Serves one connection, for a while.
async fn converse(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
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
