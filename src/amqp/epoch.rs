//! An epoch: the life of one connection with its one channel, from opening to whatever ends it.
//!
//! Owns the only truth about whether a connection is still good. Never opens or closes anything itself.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long the broker may take to answer one request.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an epoch ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionEnd {
    /// The broker closed the channel: something asked of it on this channel was wrong.
    #[error("the broker closed the channel: {code} {text}")]
    ChannelClosed {
        /// AMQP reply code, such as 404.
        code: u16,
        /// The broker's explanation.
        text: String,
    },
    /// The broker closed the connection, for a protocol error or because it stops.
    #[error("the broker closed the connection: {code} {text}")]
    ConnectionClosed {
        /// AMQP reply code, such as 320.
        code: u16,
        /// The broker's explanation.
        text: String,
    },
    /// The broker cancelled the consumer: its queue is gone.
    #[error("the broker cancelled the consumer: its queue was deleted or moved")]
    ConsumerCancelled,
    /// The connection broke: network, missed heartbeats, a killed broker, or input the client cannot read.
    #[error("the connection broke")]
    Broke,
    /// The broker did not answer a request in time.
    #[error("no answer to {request} within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer {
        /// The AMQP method asked for.
        request: &'static str,
    },
    /// The connection took no more frames: the broker has stopped reading.
    #[error("the broker has read nothing for {} s", ANSWER_TIMEOUT.as_secs())]
    Stuck,
    /// A publication stayed unconfirmed for too long: the broker is stuck or has an alarm.
    #[error("a publication stayed unconfirmed for {} s", .0.as_secs_f64())]
    Unconfirmed(Duration),
    /// orderd itself closed it.
    #[error("closed by orderd")]
    Closed,
}

/// The number of the next epoch, by which a log tells one connection from another.
pub(super) fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// One connection's life. Shared by everything that lives on that connection.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Unique in this process, ascending.
    pub number: u64,
    over: CancellationToken,
    end: OnceLock<ConnectionEnd>,
}

impl Epoch {
    /// Begins the next epoch of this process.
    pub fn begin() -> Arc<Self> {
        Arc::new(Epoch { number: next_number(), over: CancellationToken::new(), end: OnceLock::new() })
    }

    /// Ends the epoch. The first reason given stays.
    pub fn end(&self, reason: ConnectionEnd) {
        // An error means that it has ended before, for the reason already set.
        let _ = self.end.set(reason);
        self.over.cancel();
    }

    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Resolves when the epoch has ended. Cancel-safe.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// The same, for those who cannot borrow.
    pub fn over_owned(&self) -> WaitForCancellationFutureOwned {
        self.over.clone().cancelled_owned()
    }

    /// Why it ended; [`ConnectionEnd::Broke`] while it has not.
    pub fn reason(&self) -> ConnectionEnd {
        self.end.get().cloned().unwrap_or(ConnectionEnd::Broke)
    }

    /// Runs one request to the broker to its end, and ends the epoch if it fails or is not answered in time.
    ///
    /// The request runs in a task of its own that is never aborted: a client library request that is dropped
    /// half-way makes the library's own tasks panic later. It ends by itself when its connection does.
    pub async fn ask<T, F>(&self, request: &'static str, future: F) -> Result<T, ConnectionEnd>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
    {
        match timeout(ANSWER_TIMEOUT, tokio::spawn(future)).await {
            Ok(Ok(Ok(answer))) => return Ok(answer),
            // The broker closed the channel instead of answering, or the connection died. Where it gave a
            // reason, the callbacks have noted that before the request failed, and theirs stays.
            Ok(Ok(Err(_)) | Err(_)) => self.end(ConnectionEnd::Broke),
            Err(_) => self.end(ConnectionEnd::NoAnswer { request }),
        }
        Err(self.reason())
    }

    /// Queues one frame that the broker does not answer: `basic_publish`. Unlike requests, it is safe to drop. It waits
    /// while the library's queue is full, which it is when the broker has stopped reading; that ends the epoch, as does
    /// any failure. Returns whether it is queued.
    pub async fn queue(&self, frame: impl Future<Output = Result<(), amqprs::error::Error>>) -> bool {
        let end = tokio::select! {
            biased;
            // All branches are safe to drop: see above; `over` and the timer keep no state. The timer is made
            // only if the queue is full.
            queued = frame => match queued {
                Ok(()) => return true,
                Err(_) => ConnectionEnd::Broke,
            },
            () = self.over() => return false,
            () = async { sleep(ANSWER_TIMEOUT).await } => ConnectionEnd::Stuck,
        };
        self.end(end);
        false
    }
}

/// Ends its epoch when dropped. A subscription's owner task holds one, should it die. So do callback structs: the client
/// library drops them when their channel or connection dies, whatever it died of. Its other signs (`is_open`, failure
/// listeners) miss some deaths.
#[derive(Debug)]
pub(super) struct EndOnDrop(pub Arc<Epoch>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(ConnectionEnd::Broke);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_for_an_end_stays() {
        let epoch = Epoch::begin();
        assert!(!epoch.is_over());
        epoch.end(ConnectionEnd::ConsumerCancelled);
        drop(EndOnDrop(Arc::clone(&epoch)));
        assert!(epoch.is_over());
        assert_eq!(epoch.reason(), ConnectionEnd::ConsumerCancelled);
    }

    #[test]
    fn epochs_are_never_numbered_alike() {
        assert!(Epoch::begin().number < Epoch::begin().number);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_request_ends_the_epoch_and_goes_on_by_itself() {
        let epoch = Epoch::begin();
        let (answer, late) = tokio::sync::oneshot::channel::<()>();
        let asked = epoch.ask("queue.declare", async move {
            tokio::time::sleep(ANSWER_TIMEOUT * 2).await;
            let _ = answer.send(());
            Ok(())
        });
        assert_eq!(asked.await, Err(ConnectionEnd::NoAnswer { request: "queue.declare" }));
        assert!(epoch.is_over());
        assert_eq!(late.await, Ok(()), "the request was dropped");
    }

    #[tokio::test]
    async fn a_panic_inside_the_client_ends_the_epoch_only() {
        let epoch = Epoch::begin();
        let asked: Result<(), _> = epoch.ask("basic.qos", async { panic!("client bug") }).await;
        assert_eq!(asked, Err(ConnectionEnd::Broke));
    }
}
