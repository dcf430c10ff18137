//! Confirmed publishing: callers hand over publications and hear once the broker has taken them all.
//!
//! Owns the callers' side: checks, limits, waiting. A lost connection is never seen here: [`owner`] keeps what
//! is unconfirmed and sends it again.

mod outstanding;
mod owner;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::connect::Connector;
use super::convert::measure;
use crate::message::{Publication, PublishError, Publisher};
use outstanding::{Batch, Sized};

/// Publishes over one connection that it rebuilds whenever it is lost. A clone shares it.
#[derive(Clone)]
pub struct ConfirmingPublisher {
    shared: Arc<Shared>,
    link: Connector,
    batches: mpsc::UnboundedSender<Batch>,
    close: mpsc::Sender<oneshot::Sender<usize>>,
}

/// How a publisher is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublisherState {
    /// Whether there is a connection now.
    pub connected: bool,
    /// The number of the last epoch begun; 0 before the first connection.
    pub connection: u64,
    /// Connections made so far; each is an epoch of its own.
    pub connections: u64,
    /// Publications that callers wait for.
    pub unconfirmed: usize,
}

/// The publisher was closed with publications unconfirmed: the broker may or may not have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} publications were still unconfirmed")]
pub struct Unconfirmed(pub usize);

/// What callers and owner task share.
struct Shared {
    /// One permit for each publication that may be unconfirmed.
    room: Semaphore,
    /// One permit for each of their bytes.
    bytes: Semaphore,
    max_unconfirmed: u32,
    max_bytes: u32,
    connected: AtomicBool,
    epoch: AtomicU64,
    connections: AtomicU64,
}

impl Shared {
    fn release(&self, publications: usize, bytes: usize) {
        self.room.add_permits(publications);
        self.bytes.add_permits(bytes);
    }
}

impl Connector {
    /// Starts a publisher and its owner task. It connects by itself and goes on trying; until then callers
    /// wait. Needs a tokio runtime.
    pub fn publisher(&self) -> ConfirmingPublisher {
        let max_unconfirmed = u32::try_from(self.broker.max_unconfirmed.max(1)).unwrap_or(u32::MAX);
        let max_bytes = u32::try_from(self.broker.max_unconfirmed_bytes).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            room: Semaphore::new(max_unconfirmed as usize),
            bytes: Semaphore::new(max_bytes as usize),
            max_unconfirmed,
            max_bytes,
            connected: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let (batches, inbox) = mpsc::unbounded_channel();
        let (close, closing) = mpsc::channel(1);
        tokio::spawn(owner::run(self.clone(), Arc::clone(&shared), inbox, closing));
        ConfirmingPublisher { shared, link: self.clone(), batches, close }
    }
}

impl Publisher for ConfirmingPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), PublishError>> {
        let this = self.clone();
        Box::pin(async move { this.publish_all(publications).await })
    }
}

impl ConfirmingPublisher {
    async fn publish_all(&self, all: Arc<[Publication]>) -> Result<(), PublishError> {
        let mut rest = all
            .iter()
            .enumerate()
            .map(|(index, publication)| {
                let bytes = measure(publication, self.shared.max_bytes as usize)?;
                Ok(Sized { all: Arc::clone(&all), index, bytes })
            })
            .collect::<Result<Vec<_>, PublishError>>()?;
        let mut waiting = None;
        // One turn, but for those few callers that bring more than the limits allow at a time.
        while !rest.is_empty() {
            let (count, bytes) = self.fitting(&rest);
            let later = rest.split_off(count);
            let answer = self.hand_over(std::mem::replace(&mut rest, later), bytes).await?;
            // Two are under way at a time, one being answered and the next being sent.
            if let Some(earlier) = waiting.replace(answer) {
                answered(earlier).await?;
            }
        }
        match waiting {
            Some(last) => answered(last).await,
            None => Ok(()),
        }
    }

    /// How many of the first publications may be under way together, at least one, and their bytes.
    fn fitting(&self, publications: &[Sized]) -> (usize, usize) {
        let mut bytes = 0;
        let most = publications.len().min(self.shared.max_unconfirmed as usize);
        let count = publications[..most].iter().take_while(|next| {
            let fits = bytes + next.bytes <= self.shared.max_bytes as usize;
            bytes += if fits { next.bytes } else { 0 };
            fits
        });
        (count.count(), bytes)
    }

    /// Waits for room, then queues a batch. Both semaphores are fair, so batches keep the order of their
    /// callers. Nothing is published yet if this is dropped before it is through.
    async fn hand_over(&self, publications: Vec<Sized>, bytes: usize) -> Result<Answer, PublishError> {
        let closed = |_| PublishError::Closed;
        let room = self.shared.room.acquire_many(publications.len() as u32).await.map_err(closed)?;
        let size = self.shared.bytes.acquire_many(bytes as u32).await.map_err(closed)?;
        let (reply, answer) = oneshot::channel();
        self.batches.send(Batch { publications, reply }).map_err(|_| PublishError::Closed)?;
        // Given back when the broker has confirmed them.
        room.forget();
        size.forget();
        Ok(answer)
    }

    /// Takes no more publications, waits until those it has are confirmed, then closes the connection.
    ///
    /// # Errors
    /// [`Unconfirmed`] if that takes longer than `patience`; their callers get [`PublishError::Closed`].
    pub async fn close(&self, patience: Duration) -> Result<(), Unconfirmed> {
        self.shared.room.close();
        let (reply, closed) = oneshot::channel();
        // Without an owner task it has been closed before.
        if self.close.send(reply).await.is_err() {
            return Ok(());
        }
        // The owner notices the end of patience by the closed receiver.
        match timeout(patience, closed).await {
            Ok(Ok(0) | Err(_)) => Ok(()),
            Ok(Ok(unconfirmed)) => Err(Unconfirmed(unconfirmed)),
            Err(_) => match self.state().unconfirmed {
                // What is left is to connect, or to say goodbye.
                0 => Ok(()),
                unconfirmed => Err(Unconfirmed(unconfirmed)),
            },
        }
    }

    /// Why its link's last attempt to connect failed, whoever made it; `None` if it did not.
    pub fn last_connect_error(&self) -> Option<String> {
        self.link.last_connect_error()
    }

    /// How it is doing. Cheap.
    pub fn state(&self) -> PublisherState {
        PublisherState {
            connected: self.shared.connected.load(Ordering::Relaxed),
            connection: self.shared.epoch.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
            unconfirmed: (self.shared.max_unconfirmed as usize).saturating_sub(self.shared.room.available_permits()),
        }
    }
}

type Answer = oneshot::Receiver<Result<(), PublishError>>;

async fn answered(answer: Answer) -> Result<(), PublishError> {
    // The sender is dropped unused when the publisher ends with the batch unconfirmed.
    answer.await.unwrap_or(Err(PublishError::Closed))
}
