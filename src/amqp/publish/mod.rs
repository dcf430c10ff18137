//! Confirmed publishing: callers hand over publications and wait until the broker has confirmed them all.
//!
//! Owns the callers' side: checks, limits, waiting. Never handles a lost connection: [`publisher_task`] keeps what is
//! unconfirmed and sends it again.

mod outstanding_confirms;
mod publisher_task;
mod refusals;
mod rejected_destinations;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::connect::Connector;
use super::protocol::check_size;
use super::redeclaration::Redeclaration;
use crate::config::Address;
use crate::message::{Publication, PublishError, Publisher, Unpublished};
use outstanding_confirms::{Batch, SizedPublication};

/// Publishes over one connection that is reopened whenever it is lost. Clones share the connection.
#[derive(Clone)]
pub struct ConfirmingPublisher {
    shared: Arc<Shared>,
    connector: Connector,
    batches: mpsc::UnboundedSender<Batch>,
    close: mpsc::Sender<oneshot::Sender<usize>>,
}

/// A snapshot of a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublisherState {
    /// Whether it is connected now.
    pub connected: bool,
    /// The number of the latest connection, unique in this process; 0 before the first.
    pub connection: u64,
    /// Connections made so far.
    pub connections: u64,
    /// Publications that are not confirmed.
    pub unconfirmed: usize,
    /// How long the oldest publication sent has been waiting for its confirm, over all connections since the last confirm.
    pub waiting: Duration,
}

/// The publisher was closed with publications unconfirmed: the broker may or may not have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} publications were still unconfirmed")]
pub struct Unconfirmed(pub usize);

/// What callers and the publisher task share.
struct Shared {
    /// One permit for each publication that may be unconfirmed.
    publications: Semaphore,
    /// One permit for each byte of them that may be unconfirmed.
    bytes: Semaphore,
    max_unconfirmed: u32,
    max_bytes: u32,
    connected: AtomicBool,
    connection: AtomicU64,
    connections: AtomicU64,
    /// When the oldest publication whose confirm is awaited was sent; kept over connections that confirm nothing.
    waiting_since: Mutex<Option<Instant>>,
    /// Where the latest connection goes.
    address: Mutex<Option<Address>>,
    /// Why the broker reads nothing from the connection, while it does not.
    blocked: Mutex<Option<String>>,
    /// Counts the events after which the broker may accept what it refused before.
    acceptance: watch::Sender<u64>,
}

impl Shared {
    fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn waiting_since(&self) -> Option<Instant> {
        *self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_waiting_since(&self, since: Option<Instant>) {
        *self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn announce_acceptance(&self) {
        self.acceptance.send_modify(|count| *count += 1);
    }

    fn release(&self, publications: usize, bytes: usize) {
        self.publications.add_permits(publications);
        self.bytes.add_permits(bytes);
    }
}

impl Connector {
    /// Starts a publisher and its task, which connects and keeps trying; until then callers wait. Needs a tokio runtime.
    pub fn publisher(&self) -> ConfirmingPublisher {
        let max_unconfirmed = u32::try_from(self.broker.max_unconfirmed.max(1)).unwrap_or(u32::MAX);
        let max_bytes = u32::try_from(self.broker.max_unconfirmed_bytes).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            publications: Semaphore::new(max_unconfirmed as usize),
            bytes: Semaphore::new(max_bytes as usize),
            max_unconfirmed,
            max_bytes,
            connected: AtomicBool::new(false),
            connection: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            waiting_since: Mutex::default(),
            address: Mutex::default(),
            blocked: Mutex::default(),
            acceptance: watch::Sender::new(0),
        });
        let (batches, inbox) = mpsc::unbounded_channel();
        let (close, closing) = mpsc::channel(1);
        let connector = self.with_own_errors();
        tokio::spawn(publisher_task::run(connector.clone(), Arc::clone(&shared), inbox, closing));
        ConfirmingPublisher { shared, connector, batches, close }
    }
}

impl Publisher for ConfirmingPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        let this = self.clone();
        Box::pin(async move { this.publish_all(publications).await })
    }

    fn acceptance(&self) -> BoxFuture<'static, ()> {
        let mut acceptance = self.shared.acceptance.subscribe();
        Box::pin(async move {
            if acceptance.changed().await.is_err() {
                std::future::pending().await
            }
        })
    }
}

impl ConfirmingPublisher {
    async fn publish_all(&self, all: Arc<[Publication]>) -> Result<(), Unpublished> {
        // All are checked before any is published, so that an error here means that none was.
        let (mut rest, mut failures) = (Vec::with_capacity(all.len()), Vec::new());
        for (index, publication) in all.iter().enumerate() {
            match check_size(publication) {
                Ok(size) => {
                    // One that is larger than the limit uses all of it, and so is in flight alone.
                    let bytes = size.min(self.shared.max_bytes as usize);
                    rest.push(SizedPublication { all: Arc::clone(&all), index, bytes });
                }
                Err(error) => failures.push((index, error)),
            }
        }
        if !failures.is_empty() {
            return Err(Unpublished { failures });
        }
        let mut waiting = None;
        // More than one iteration only if the caller publishes more at a time than the limits allow.
        while !rest.is_empty() {
            let (count, bytes) = self.first_part(&rest);
            let later = rest.split_off(count);
            let answer = self.enqueue(std::mem::replace(&mut rest, later), bytes).await;
            let answer = answer.map_err(|error| Unpublished::one(0, error))?;
            // Two parts are in flight at a time: one being confirmed, the next being sent.
            if let Some(earlier) = waiting.replace(answer) {
                outcome(earlier, &mut failures).await?;
            }
        }
        if let Some(last) = waiting {
            outcome(last, &mut failures).await?;
        }
        if failures.is_empty() { Ok(()) } else { Err(Unpublished { failures }) }
    }

    /// How many of the first publications may be in flight together, at least one, and their size in bytes.
    fn first_part(&self, publications: &[SizedPublication]) -> (usize, usize) {
        let mut bytes = 0;
        let most = publications.len().min(self.shared.max_unconfirmed as usize);
        let count = publications[..most].iter().take_while(|next| {
            let fits = bytes + next.bytes <= self.shared.max_bytes as usize;
            bytes += if fits { next.bytes } else { 0 };
            fits
        });
        (count.count(), bytes)
    }

    /// Waits for permits, then queues a batch. Both semaphores are fair, so batches keep the order of their callers. If the
    /// future is dropped before it completes, nothing is published.
    async fn enqueue(&self, publications: Vec<SizedPublication>, bytes: usize) -> Result<Answer, PublishError> {
        let closed = |_| PublishError::Closed;
        let count_permits = self.shared.publications.acquire_many(publications.len() as u32).await.map_err(closed)?;
        let byte_permits = self.shared.bytes.acquire_many(bytes as u32).await.map_err(closed)?;
        let (reply, answer) = oneshot::channel();
        self.batches.send(Batch { publications, reply }).map_err(|_| PublishError::Closed)?;
        // Released when the broker has confirmed them.
        count_permits.forget();
        byte_permits.forget();
        Ok(answer)
    }

    /// Accepts no more publications, waits until all are confirmed, then closes the connection.
    ///
    /// # Errors
    /// [`Unconfirmed`] if that takes longer than `limit`; their callers get [`PublishError::Closed`].
    pub async fn close(&self, limit: Duration) -> Result<(), Unconfirmed> {
        self.shared.publications.close();
        let (reply, closed) = oneshot::channel();
        // The task has ended, so the publisher is already closed.
        if self.close.send(reply).await.is_err() {
            return Ok(());
        }
        // The task notices that we stopped waiting because the receiver is closed.
        match timeout(limit, closed).await {
            Ok(Ok(0) | Err(_)) => Ok(()),
            Ok(Ok(unconfirmed)) => Err(Unconfirmed(unconfirmed)),
            Err(_) => match self.state().unconfirmed {
                // Only connecting, or closing the connection, is unfinished.
                0 => Ok(()),
                unconfirmed => Err(Unconfirmed(unconfirmed)),
            },
        }
    }

    /// Requests to declare the topology again.
    pub fn redeclaration(&self) -> &Redeclaration {
        self.connector.redeclaration()
    }

    /// Why the last attempt to connect failed; `None` if it succeeded.
    pub fn last_connect_error(&self) -> Option<String> {
        self.connector.last_connect_error()
    }

    /// The address of the node that the latest connection goes to; `None` before the first.
    pub fn address(&self) -> Option<Address> {
        self.shared.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the broker reads nothing from the connection, such as `low on memory`; `None` if it reads.
    pub fn blocked(&self) -> Option<String> {
        self.shared.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its current state. Cheap.
    pub fn state(&self) -> PublisherState {
        PublisherState {
            connected: self.shared.connected.load(Ordering::Relaxed),
            connection: self.shared.connection.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
            unconfirmed: (self.shared.max_unconfirmed as usize)
                .saturating_sub(self.shared.publications.available_permits()),
            waiting: self.shared.waiting_since().map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }
}

type Answer = oneshot::Receiver<Result<(), Unpublished>>;

/// Waits for the broker's answer to a batch, and collects what failed.
///
/// # Errors
/// The failures so far, if one of them is permanent: the rest need not be published.
async fn outcome(answer: Answer, failures: &mut Vec<(usize, PublishError)>) -> Result<(), Unpublished> {
    // The sender is dropped unused when the publisher ends with the batch unconfirmed.
    let Err(more) = answer.await.unwrap_or(Err(Unpublished::one(0, PublishError::Closed))) else { return Ok(()) };
    let permanent = more.permanent().is_some();
    failures.extend(more.failures);
    if permanent { Err(Unpublished { failures: std::mem::take(failures) }) } else { Ok(()) }
}
