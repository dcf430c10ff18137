//! One subscription, shared by the workers of a pool.
//!
//! It gives each delivery to one worker and reports delivery counts to safe mode. It never processes a delivery.

use std::pin::Pin;
use std::sync::{Arc, Mutex as StdMutex};
use std::task::{Context, Poll, Waker};

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, Fuse, Peekable};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::delivery_guard::DeliveryGuard;
use super::intake::Intake;
use super::safe_mode::{Change, SafeMode};
use super::unidentified::UnidentifiedDeliveries;
use crate::message::{Delivery, Settler};
use crate::metrics::{Counters, ReceivedAt};

/// The most deliveries that one worker takes at once, so that a burst is spread over the workers.
const MAX_BATCH: usize = 32;

/// The stream of a subscription. A delivery is looked at before it is taken: it may have to wait for the rate limit.
type Deliveries = Peekable<Fuse<BoxStream<'static, Delivery>>>;

pub(super) struct SharedSubscription {
    deliveries: Mutex<Deliveries>,
    pub(super) settler: Arc<dyn Settler>,
    safe_mode: Arc<StdMutex<SafeMode>>,
    counters: Arc<Counters>,
    unidentified: Arc<UnidentifiedDeliveries>,
    intake: Intake,
    /// Cancelled when no more deliveries are to be started: at a shutdown, or when safe mode changes.
    pub(super) stopped: CancellationToken,
    /// Cancelled when the pool drains: the broker delivers nothing more, and all that it has delivered is to be processed.
    pub(super) draining: CancellationToken,
    /// Cancelled when the subscription is lost: the broker will deliver again whatever is in flight.
    pub(super) lost: CancellationToken,
    /// Cancelled when an outage of the ledger, event file or publishing has lasted too long: whatever is in flight is to be
    /// released.
    pub(super) interrupted: CancellationToken,
}

impl SharedSubscription {
    pub(super) fn new(
        deliveries: BoxStream<'static, Delivery>,
        settler: Arc<dyn Settler>,
        safe_mode: Arc<StdMutex<SafeMode>>,
        counters: Arc<Counters>,
        unidentified: Arc<UnidentifiedDeliveries>,
        intake: Intake,
    ) -> Self {
        SharedSubscription {
            // Fused, because every worker polls it until it has seen the end.
            deliveries: Mutex::new(deliveries.fuse().peekable()),
            settler,
            safe_mode,
            counters,
            unidentified,
            intake,
            stopped: CancellationToken::new(),
            draining: CancellationToken::new(),
            lost: CancellationToken::new(),
            interrupted: CancellationToken::new(),
        }
    }

    /// Waits for a delivery and adds it to `batch`, with others that are ready, up to a length of `room`. Returns whether
    /// more may follow.
    ///
    /// Cancel-safe: it does not wait once it has received the first delivery.
    pub(super) async fn receive(&self, room: usize, batch: &mut Vec<DeliveryGuard>) -> bool {
        // Cancel-safe: locking and receiving the next item can both be started again.
        let first = tokio::select! {
            biased;
            () = self.stopped.cancelled() => return false,
            first = self.next_while_open() => first,
        };
        let Some((first, mut deliveries)) = first else {
            if !self.stopped.is_cancelled() && !self.draining.is_cancelled() {
                self.lost.cancel();
            }
            return false;
        };
        let received_at = ReceivedAt::now();
        batch.push(self.guard(first, received_at));
        let mut without_waiting = Context::from_waker(Waker::noop());
        // While a service may be unavailable, one delivery is enough to find out.
        let room = if self.intake.is_trial() { 1 } else { room.min(MAX_BATCH) };
        while batch.len() < room {
            // The next call waits for more, or sees the end, with a waker of its own.
            let Poll::Ready(Some(_)) = Pin::new(&mut *deliveries).poll_peek(&mut without_waiting) else { break };
            if !self.intake.rate_limiter().take() {
                break;
            }
            let Poll::Ready(Some(delivery)) = deliveries.poll_next_unpin(&mut without_waiting) else { break };
            batch.push(self.guard(delivery, received_at));
        }
        drop(deliveries);
        self.check_safe_mode(batch)
    }

    /// The next delivery once the intake is open, and the lock on those that follow. Cancel-safe: no delivery is taken before it
    /// returns.
    async fn next_while_open(&self) -> Option<(Delivery, MutexGuard<'_, Deliveries>)> {
        loop {
            self.intake.opened().await;
            let next = async {
                let mut deliveries = self.deliveries.lock().await;
                Pin::new(&mut *deliveries).peek().await?;
                let rate_limiter = self.intake.rate_limiter();
                while !rate_limiter.take() {
                    rate_limiter.ready().await;
                }
                let first = deliveries.next().await?;
                Some((first, deliveries))
            };
            // Cancel-safe: locking and receiving the next item can both be started again.
            tokio::select! {
                biased;
                () = self.intake.closed() => {}
                first = next => return first,
            }
        }
    }

    /// Releases all deliveries that no worker has started, and returns their number. To be called after the subscription is
    /// cancelled.
    pub(super) async fn release_unstarted(&self) -> u64 {
        let mut deliveries = self.deliveries.lock().await;
        let mut count = 0;
        while let Some(unstarted) = deliveries.next().await {
            drop(self.guard(unstarted, ReceivedAt::now()));
            count += 1;
        }
        count
    }

    fn guard(&self, delivery: Delivery, received_at: ReceivedAt) -> DeliveryGuard {
        let (settler, counters) = (Arc::clone(&self.settler), Arc::clone(&self.counters));
        DeliveryGuard::new(delivery, settler, counters, Arc::clone(&self.unidentified), received_at)
    }

    /// Reports the batch's delivery counts to safe mode; empties the batch if that turns safe mode on. Returns whether
    /// more deliveries may follow.
    ///
    /// Does nothing while draining: no more deliveries arrive whose number could be limited, and releasing these would
    /// count toward the delivery limit just as a killed process does.
    fn check_safe_mode(&self, batch: &mut Vec<DeliveryGuard>) -> bool {
        if self.draining.is_cancelled() {
            return true;
        }
        let now = Instant::now();
        let mut safe_mode = self.safe_mode.lock().expect("safe mode's lock is never poisoned: nothing panics under it");
        for guard in batch.iter() {
            match safe_mode.delivered(guard.delivery().delivery_count(), now) {
                Change::None => {}
                Change::Enter => {
                    drop(safe_mode);
                    self.counters.set_safe_mode(true);
                    self.stopped.cancel();
                    batch.clear();
                    return false;
                }
                // The pool logs it and changes the counters when it subscribes again.
                Change::Leave => {
                    self.stopped.cancel();
                }
            }
        }
        true
    }
}
