//! Connections between two e-mails. They are ended with `QUIT` once they have been idle for too long.
//!
//! It never uses one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::QUIT_TIMEOUT;

/// How long an idle connection is kept; servers close them after minutes.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection after a complete exchange.
pub(super) struct IdleConnection {
    pub connection: AsyncSmtpConnection,
    pub since: Instant,
    /// Begun so far.
    pub transactions: u32,
    /// The last transaction was refused and has to be ended before the next one.
    pub is_refused: bool,
}

/// The idle connections of one server.
#[derive(Default)]
pub(super) struct IdleConnections(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    /// Those that were used last at the end.
    connections: Vec<IdleConnection>,
    /// Ends those that have been idle for too long; `None` while there are none.
    closing: Option<AbortOnDropHandle<()>>,
}

impl IdleConnections {
    /// The one that was used last.
    pub fn take(&self) -> Option<IdleConnection> {
        let now = Instant::now();
        let mut idle = lock(&self.0);
        let is_fresh = |last: &mut IdleConnection| now.duration_since(last.since) < IDLE_TIMEOUT;
        idle.connections.pop_if(is_fresh)
    }

    /// Keeps a connection after a complete exchange.
    pub fn put_back(&self, mut connection: IdleConnection) {
        connection.since = Instant::now();
        let mut idle = lock(&self.0);
        idle.connections.push(connection);
        if idle.closing.is_none() {
            idle.closing = Some(AbortOnDropHandle::new(tokio::spawn(close_idle(Arc::downgrade(&self.0)))));
        }
    }
}

/// Ends connections that have been idle for too long, until there are none.
async fn close_idle(idle: Weak<Mutex<Idle>>) {
    loop {
        let (old, next) = {
            let Some(idle) = idle.upgrade() else { return };
            let mut idle = lock(&idle);
            let now = Instant::now();
            let is_old = |kept: &mut IdleConnection| now.duration_since(kept.since) >= IDLE_TIMEOUT;
            let old: Vec<_> = idle.connections.extract_if(.., is_old).collect();
            let next = idle.connections.iter().map(|kept| kept.since + IDLE_TIMEOUT).min();
            if old.is_empty() && next.is_none() {
                // The next connection starts another task. Nothing is awaited after this, so the end of the handle ends nothing.
                idle.closing = None;
                return;
            }
            (old, next)
        };
        // Nothing depends on it.
        join_all(old.into_iter().map(|mut idle| async move {
            let _ = timeout(QUIT_TIMEOUT, idle.connection.quit()).await;
        }))
        .await;
        if let Some(next) = next {
            sleep_until(next).await;
        }
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
