//! The workers' side of settling: workers record settlements, and the receiver task sends them.
//!
//! Owns the settlements that are not sent yet. Never sends anything itself, and ignores settlements of an earlier connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime};
use crate::message::{DeliveryId, LossCause, SettleError, Settlement, Settler};

/// Settlements that the receiver task has not taken yet, each with its delivery tag.
pub struct PendingSettlements {
    list: Mutex<Vec<(u64, Settlement)>>,
    /// Notified at the first settlement, and when there are `batch_size` of them.
    pub added: Notify,
    /// This many are sent without waiting for more.
    batch_size: usize,
    /// How long the broker has not answered since settlements were sent, in milliseconds.
    pub unanswered_millis: AtomicU64,
}

impl PendingSettlements {
    pub fn new(batch_size: usize) -> Self {
        PendingSettlements {
            list: Mutex::default(),
            added: Notify::new(),
            batch_size,
            unanswered_millis: AtomicU64::new(0),
        }
    }

    fn add(&self, tag: u64, settlement: Settlement) {
        let count = {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.push((tag, settlement));
            list.len()
        };
        if count == 1 || count == self.batch_size {
            self.added.notify_one();
        }
    }

    /// Takes all of them, in exchange for the emptied `spare`, whose capacity is reused.
    pub fn take(&self, spare: &mut Vec<(u64, Settlement)>) {
        std::mem::swap(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner), spare);
    }

    /// Whether there are enough for a batch.
    pub fn is_batch(&self) -> bool {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).len() >= self.batch_size
    }
}

/// What the receiver task is asked to do.
pub enum Command {
    Cancel(oneshot::Sender<()>),
    CancelWhenIdle(oneshot::Sender<()>),
    Close(CloseReply),
}

pub type CloseReply = oneshot::Sender<Result<(), SettleError>>;

/// Handle to a subscription's receiver task. Dropping it closes the subscription.
pub struct ChannelSettler {
    pub lifetime: Arc<ConnectionLifetime>,
    pub pending: Arc<PendingSettlements>,
    pub commands: mpsc::UnboundedSender<Command>,
}

impl ChannelSettler {
    /// Sends a command and waits until it is done. If the receiver task has ended, so has the connection, and there is
    /// nothing left to do.
    fn command(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) -> BoxFuture<'static, ()> {
        let (reply, done) = oneshot::channel();
        let _ = self.commands.send(command(reply));
        Box::pin(async move {
            let _ = done.await;
        })
    }
}

impl Settler for ChannelSettler {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        if delivery.connection == self.lifetime.number && !self.lifetime.has_ended() {
            self.pending.add(delivery.tag, settlement);
        }
    }

    fn ended(&self) -> BoxFuture<'static, LossCause> {
        let lifetime = Arc::clone(&self.lifetime);
        Box::pin(async move {
            lifetime.ended().await;
            match lifetime.reason() {
                ConnectionEnd::AckTimeout(Some(timeout)) => LossCause::AckTimeout(timeout),
                other => LossCause::Other(other.to_string()),
            }
        })
    }

    fn unanswered(&self) -> Duration {
        Duration::from_millis(self.pending.unanswered_millis.load(Ordering::Relaxed))
    }

    fn was_ended_by_broker(&self) -> bool {
        self.lifetime.has_ended() && self.lifetime.reason().is_by_broker()
    }

    fn cancel(&self) -> BoxFuture<'static, ()> {
        self.command(Command::Cancel)
    }

    fn cancel_when_idle(&self) -> BoxFuture<'static, ()> {
        self.command(Command::CancelWhenIdle)
    }

    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>> {
        let (reply, done) = oneshot::channel();
        let _ = self.commands.send(Command::Close(reply));
        Box::pin(async move { done.await.unwrap_or(Err(SettleError)) })
    }
}
