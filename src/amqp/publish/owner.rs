//! The task that owns the publishing connection: numbers, sends, reconnects, sends again.
//!
//! The only one that publishes on the channel, because confirms count publications in the order the channel
//! saw them. Never gives up on a publication that the broker has not given its word on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amqprs::channel::ConfirmSelectArguments;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, interval, sleep};
use tracing::{error, info, warn};

use super::Shared;
use super::outstanding::{Batch, Freed, Outstanding, Word};
use crate::amqp::callbacks::{Confirms, Returned};
use crate::amqp::connect::{ConnectError, Link, Wire};
use crate::amqp::convert::to_amqp;
use crate::amqp::epoch::{Epoch, EpochEnd};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::message::PublishError;

/// The longest first wait between connection attempts; it doubles up to `broker.reconnect_max`.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A connection that lived this long was a good one: the waits start over.
const GOOD_LIFE: Duration = Duration::from_secs(10);
/// Epochs in a row without a single confirm double the patience of the next one, this many times at most: while
/// a broker has an alarm, sending again and again would only add to its load.
const MOST_DOUBLINGS: u32 = 3;
/// Batches taken over at a time.
const INTAKE: usize = 128;

type Closing = mpsc::Receiver<oneshot::Sender<usize>>;

/// The outstanding, and what wakes the owner when a confirm makes room for the next send.
struct Desk {
    outstanding: Mutex<Outstanding>,
    progress: Notify,
    shared: Arc<Shared>,
}

impl Desk {
    fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, freed: &Freed) {
        if freed.publications > 0 {
            self.shared.release(freed.publications, freed.bytes);
        }
        if freed.wake {
            self.progress.notify_one();
        }
    }
}

/// Applies the broker's words on one channel.
struct Clerk {
    desk: Arc<Desk>,
    epoch: u64,
}

impl Confirms for Clerk {
    fn confirmed(&mut self, tag: u64, multiple: bool, taken: bool) {
        let word = if taken { Word::Taken } else { Word::Refused };
        let mut outstanding = self.desk.outstanding();
        if outstanding.is_of(self.epoch) {
            let freed = outstanding.confirmed(tag, multiple, word);
            drop(outstanding);
            self.desk.release(&freed);
        }
    }

    fn returned(&mut self, returned: Returned<'_>) {
        let mut outstanding = self.desk.outstanding();
        if outstanding.is_of(self.epoch) {
            outstanding.returned(returned);
        }
    }
}

/// What the owner keeps between epochs.
struct Owner {
    link: Link,
    desk: Arc<Desk>,
    inbox: mpsc::UnboundedReceiver<Batch>,
    closing: Closing,
    batches: Vec<Batch>,
    /// Who asked to close, once someone has.
    closer: Option<oneshot::Sender<usize>>,
    /// Whether no more batches can come.
    drained: bool,
}

/// Runs a publisher until it is closed or all its handles are dropped and everything is confirmed.
pub(super) async fn run(link: Link, shared: Arc<Shared>, inbox: mpsc::UnboundedReceiver<Batch>, closing: Closing) {
    let desk = Arc::new(Desk { outstanding: Mutex::new(Outstanding::new()), progress: Notify::new(), shared });
    let batches = Vec::with_capacity(INTAKE);
    let mut owner = Owner { link, desk, inbox, closing, batches, closer: None, drained: false };
    let backoff = Backoff { first: FIRST_WAIT, max: owner.link.broker.reconnect_max };
    let (mut attempt, mut fruitless) = (0, 0_u32);
    while !owner.is_finished() {
        let epoch = Epoch::begin();
        match owner.connect(&epoch).await {
            Ok(wire) => {
                let begun = Instant::now();
                let patience = owner.link.broker.confirm_timeout * 2_u32.pow(fruitless.min(MOST_DOUBLINGS));
                owner.live(wire, &epoch, patience).await;
                if begun.elapsed() >= GOOD_LIFE {
                    attempt = 0;
                }
                let stuck = matches!(epoch.reason(), EpochEnd::Unconfirmed(_));
                fruitless = if stuck && !owner.desk.outstanding().is_proven() { fruitless + 1 } else { 0 };
            }
            Err(error) if error.is_permanent() => {
                error!(error = %chain(&error), attempt, "cannot connect for publishing");
            }
            Err(error) => warn!(error = %chain(&error), attempt, "cannot connect for publishing"),
        }
        owner.rest(backoff.wait(attempt, fastrand::f64())).await;
        attempt += 1;
    }
    owner.finish();
}

impl Owner {
    async fn connect(&self, epoch: &Arc<Epoch>) -> Result<Wire, ConnectError> {
        let clerk = Clerk { desk: Arc::clone(&self.desk), epoch: epoch.number };
        let wire = Wire::open(&self.link, "publish", epoch, clerk).await?;
        let channel = wire.channel.clone();
        let select = async move { channel.confirm_select(ConfirmSelectArguments::new(false)).await };
        epoch.ask("confirm.select", select).await.map_err(ConnectError::Lost)?;
        let again = {
            let mut outstanding = self.desk.outstanding();
            outstanding.begin_epoch(epoch.number);
            outstanding.len()
        };
        info!(epoch = epoch.number, address = %wire.address, again, "connected for publishing");
        Ok(wire)
    }

    /// One epoch, from its first publication to the end of its connection.
    async fn live(&mut self, wire: Wire, epoch: &Epoch, patience: Duration) {
        let shared = Arc::clone(&self.desk.shared);
        shared.epoch.store(epoch.number, Ordering::Relaxed);
        shared.connections.fetch_add(1, Ordering::Relaxed);
        shared.connected.store(true, Ordering::Relaxed);
        self.serve(&wire, epoch, patience).await;
        shared.connected.store(false, Ordering::Relaxed);
        self.conclude(wire, epoch).await;
    }

    /// Publishes until the epoch or the work is over.
    async fn serve(&mut self, wire: &Wire, epoch: &Epoch, patience: Duration) {
        let desk = Arc::clone(&self.desk);
        let mut look = interval((patience / 8).clamp(Duration::from_millis(20), Duration::from_secs(1)));
        loop {
            self.send_all(wire, epoch).await;
            if self.is_finished() {
                return;
            }
            tokio::select! {
                // Cancel-safe, all of them: `recv_many` takes nothing unless it completes, the rest keeps no state.
                () = epoch.over() => return,
                count = self.inbox.recv_many(&mut self.batches, INTAKE), if !self.drained => self.take_in(count),
                () = desk.progress.notified() => {}
                Some(closer) = self.closing.recv(), if self.closer.is_none() => self.begin_closing(closer),
                () = abandoned(&mut self.closer) => return,
                _ = look.tick() => {
                    let oldest = desk.outstanding().oldest_sent();
                    if oldest.is_some_and(|sent| sent.elapsed() > patience) {
                        epoch.end(EpochEnd::Unconfirmed(patience));
                    }
                }
            }
        }
    }

    fn take_in(&mut self, count: usize) {
        self.drained = count == 0;
        let mut outstanding = self.desk.outstanding();
        for batch in self.batches.drain(..) {
            outstanding.push(batch);
        }
    }

    /// Closes the door: what has been handed over is still served.
    fn begin_closing(&mut self, closer: oneshot::Sender<usize>) {
        self.inbox.close();
        self.closer = Some(closer);
    }

    /// Whether nothing is left to do and nothing more can come.
    fn is_finished(&mut self) -> bool {
        let given_up = self.closer.as_ref().is_some_and(oneshot::Sender::is_closed);
        if given_up || !self.drained {
            return given_up;
        }
        let mut outstanding = self.desk.outstanding();
        outstanding.await_empty();
        outstanding.is_empty()
    }

    async fn send_all(&self, wire: &Wire, epoch: &Epoch) {
        let mut now = None;
        while !epoch.is_over() {
            let message = {
                let mut outstanding = self.desk.outstanding();
                let next = outstanding.next_to_send(*now.get_or_insert_with(Instant::now));
                let Some(publication) = next else { return };
                to_amqp(publication)
            };
            let (properties, body, arguments) = message;
            epoch.queue(wire.channel.basic_publish(properties, body, arguments)).await;
        }
    }

    /// Closes an epoch's connection and learns from its end.
    async fn conclude(&mut self, wire: Wire, epoch: &Epoch) {
        if !epoch.is_over() {
            return wire.close(epoch).await;
        }
        let reason = epoch.reason();
        warn!(epoch = epoch.number, %reason, unconfirmed = self.desk.outstanding().len(), "publishing connection lost");
        drop(wire);
        if let Some((code, text)) = fault_of_a_publication(&reason) {
            let freed = self.desk.outstanding().blame(|exchange, key| {
                warn!(%exchange, routing_key = key, code, text, "the broker closes the connection over a message");
                blame(code, text, exchange, key)
            });
            self.desk.release(&freed);
        }
    }

    /// Waits before the next connection attempt. Batches wait in the inbox.
    async fn rest(&mut self, wait: Duration) {
        if self.is_finished() {
            return;
        }
        let pause = sleep(wait);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                // Cancel-safe: the pause is kept over turns, `recv` and `abandoned` keep no state.
                () = &mut pause => break,
                Some(closer) = self.closing.recv(), if self.closer.is_none() => self.begin_closing(closer),
                () = abandoned(&mut self.closer) => break,
            }
        }
        // So that a publisher which is closed while it has nothing to publish does not connect for it.
        while let Ok(batch) = self.inbox.try_recv() {
            self.desk.outstanding().push(batch);
        }
        self.drained = self.inbox.is_closed() && self.inbox.is_empty();
    }

    /// Drops what is unconfirmed, which tells its callers, and answers the closer.
    fn finish(mut self) {
        self.desk.shared.room.close();
        self.desk.shared.bytes.close();
        let unconfirmed = self.desk.outstanding().len();
        *self.desk.outstanding() = Outstanding::new();
        info!(unconfirmed, "publisher closed");
        if let Some(closer) = self.closer.take() {
            let _ = closer.send(unconfirmed);
        }
    }
}

/// Resolves when whoever asked to close waits no longer; never if nobody has asked.
async fn abandoned(closer: &mut Option<oneshot::Sender<usize>>) {
    match closer {
        Some(closer) => closer.closed().await,
        None => std::future::pending().await,
    }
}

/// Whether the broker ended the epoch over something that was published, and its words.
fn fault_of_a_publication(reason: &EpochEnd) -> Option<(u16, &str)> {
    match reason {
        EpochEnd::ChannelClosed { code, text } => Some((*code, text)),
        // Frame, syntax and unexpected-frame errors, not implemented. Others are the broker's own affairs.
        EpochEnd::ConnectionClosed { code: code @ (501 | 502 | 505 | 540), text } => Some((*code, text)),
        EpochEnd::ConnectionClosed { .. }
        | EpochEnd::ConsumerCancelled
        | EpochEnd::Broke
        | EpochEnd::Stuck
        | EpochEnd::NoAnswer { .. }
        | EpochEnd::Unconfirmed(_)
        | EpochEnd::Closed => None,
    }
}

/// The error for the publication that the broker closed the channel over.
fn blame(code: u16, text: &str, exchange: &Arc<str>, routing_key: &str) -> PublishError {
    let (exchange, routing_key) = (Arc::clone(exchange), routing_key.to_owned());
    match code {
        // There is no such exchange.
        404 => PublishError::Unroutable { exchange, routing_key, reply: format!("{code} {text}") },
        // Too large, a user id that is not ours, an expiration that is no number; and what broke the protocol.
        311 | 406 | 500.. => PublishError::Invalid { exchange, problem: format!("{code} {text}") },
        // The user may not write there, for now.
        _ => PublishError::Refused { exchange, routing_key },
    }
}
