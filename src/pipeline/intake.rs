//! One subscription, shared by the workers of a pool.
//!
//! It hands each delivery to one worker, and watches delivery counts for safe mode. It never processes.

use std::sync::{Arc, Mutex as StdMutex};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::delivery_guard::DeliveryGuard;
use super::safe_mode::{Change, SafeMode};
use crate::message::{Delivery, Settler};
use crate::metrics::{Counters, ReceivedAt};

/// Deliveries one worker takes at once, so that a burst is spread over the workers.
const MAX_BATCH: usize = 32;

pub(super) struct Intake {
    deliveries: Mutex<BoxStream<'static, Delivery>>,
    pub(super) settler: Arc<dyn Settler>,
    safe_mode: Arc<StdMutex<SafeMode>>,
    counters: Arc<Counters>,
    /// No more deliveries are to be started: shutdown, or safe mode was entered or left.
    pub(super) stopped: CancellationToken,
    /// The broker hands out nothing more; what it has handed out is still to be worked on.
    pub(super) retired: CancellationToken,
    /// The subscription is gone; what is in flight will be handed out again.
    pub(super) lost: CancellationToken,
}

impl Intake {
    pub(super) fn new(
        deliveries: BoxStream<'static, Delivery>,
        settler: Arc<dyn Settler>,
        safe_mode: Arc<StdMutex<SafeMode>>,
        counters: Arc<Counters>,
    ) -> Self {
        Intake {
            // Fused, since workers ask again after the end.
            deliveries: Mutex::new(deliveries.fuse().boxed()),
            settler,
            safe_mode,
            counters,
            stopped: CancellationToken::new(),
            retired: CancellationToken::new(),
            lost: CancellationToken::new(),
        }
    }

    /// Waits for deliveries and adds up to `room` to `batch`; returns whether more may come.
    ///
    /// Cancel-safe: from the first delivery on it does not wait.
    pub(super) async fn take(&self, room: usize, batch: &mut Vec<DeliveryGuard>) -> bool {
        // Cancel-safe: a lock and a stream's next item can be waited for again.
        let first = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return false,
            first = async {
                let mut deliveries = self.deliveries.lock().await;
                let first = deliveries.next().await?;
                Some((first, deliveries))
            } => first,
        };
        let Some((first, mut deliveries)) = first else {
            if !self.stopped.is_cancelled() && !self.retired.is_cancelled() {
                self.lost.cancel();
            }
            return false;
        };
        let taken = ReceivedAt::now();
        batch.push(self.hold(first, taken));
        let mut ready = std::task::Context::from_waker(std::task::Waker::noop());
        while batch.len() < room.min(MAX_BATCH) {
            match deliveries.poll_next_unpin(&mut ready) {
                std::task::Poll::Ready(Some(delivery)) => batch.push(self.hold(delivery, taken)),
                // The end, or the next arrival, is seen by the next call, which waits for it properly.
                std::task::Poll::Ready(None) | std::task::Poll::Pending => break,
            }
        }
        drop(deliveries);
        self.watch(batch)
    }

    /// Gives back all that was handed out but not started. To be called once intake is cancelled.
    pub(super) async fn give_back(&self) {
        let mut deliveries = self.deliveries.lock().await;
        while let Some(unstarted) = deliveries.next().await {
            drop(self.hold(unstarted, ReceivedAt::now()));
        }
    }

    fn hold(&self, delivery: Delivery, taken: ReceivedAt) -> DeliveryGuard {
        DeliveryGuard::new(delivery, Arc::clone(&self.settler), Arc::clone(&self.counters), taken)
    }

    /// Watches for safe mode. Not once it is retired: nothing is handed out that could be kept small, and giving back
    /// what was would count toward the delivery limit just as a killed process does.
    fn watch(&self, batch: &mut Vec<DeliveryGuard>) -> bool {
        if self.retired.is_cancelled() {
            return true;
        }
        let mut safe_mode = self.safe_mode.lock().expect("safe mode's lock is never poisoned: nothing panics under it");
        for held in batch.iter() {
            match safe_mode.delivered(held.delivery().delivery_count()) {
                Change::None => {}
                Change::Enter => {
                    drop(safe_mode);
                    self.counters.safe_mode(true);
                    self.stopped.cancel();
                    batch.clear();
                    return false;
                }
                Change::Leave => {
                    self.counters.safe_mode(false);
                    self.stopped.cancel();
                }
            }
        }
        true
    }
}
