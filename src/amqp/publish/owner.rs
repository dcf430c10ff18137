//! The task that owns the publishing connection: numbers, sends, reconnects, sends again.
//!
//! The only one that publishes on the channel, because confirms count publications in the order the channel
//! saw them. Never gives up on a publication that the broker has not given its word on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BufMut;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep};
use tracing::{error, info, warn};

use super::Shared;
use super::outstanding::{Batch, Freed, Outstanding};
use crate::amqp::channel::{Channel, nothing};
use crate::amqp::connect::{ConnectError, Connector};
use crate::amqp::decode::{CONFIRM_SELECT, Heard};
use crate::amqp::epoch::{self, ConnectionEnd};
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

/// What the owner keeps between epochs.
struct Owner {
    link: Connector,
    shared: Arc<Shared>,
    outstanding: Outstanding,
    inbox: mpsc::UnboundedReceiver<Batch>,
    closing: Closing,
    batches: Vec<Batch>,
    /// Who asked to close, once someone has.
    closer: Option<oneshot::Sender<usize>>,
    /// Whether no more batches can come.
    drained: bool,
}

/// Runs a publisher until it is closed or all its handles are dropped and everything is confirmed.
pub(super) async fn run(link: Connector, shared: Arc<Shared>, inbox: mpsc::UnboundedReceiver<Batch>, closing: Closing) {
    let (outstanding, batches) = (Outstanding::new(), Vec::with_capacity(INTAKE));
    let mut owner = Owner { link, shared, outstanding, inbox, closing, batches, closer: None, drained: false };
    let backoff = Backoff { first: FIRST_WAIT, max: owner.link.broker.reconnect_max };
    let (mut attempt, mut fruitless) = (0, 0_u32);
    while !owner.is_finished() {
        match open(&owner.link).await {
            Ok(channel) => {
                let begun = Instant::now();
                let patience = owner.link.broker.confirm_timeout * 2_u32.pow(fruitless.min(MOST_DOUBLINGS));
                let end = owner.live(channel, patience).await;
                if begun.elapsed() >= GOOD_LIFE {
                    attempt = 0;
                }
                let stuck = matches!(end, Err(ConnectionEnd::Unconfirmed(_)));
                fruitless = if stuck && !owner.outstanding.is_proven() { fruitless + 1 } else { 0 };
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

/// Connects and opens the channel, in confirm mode.
async fn open(link: &Connector) -> Result<Channel, ConnectError> {
    let mut channel = Channel::open(link, "publish").await?;
    match channel.ask("confirm.select", CONFIRM_SELECT, |out| out.put_u8(0), nothing).await {
        Ok(_) => Ok(channel),
        Err(end) => Err(channel.give_up(end).await),
    }
}

impl Owner {
    /// One epoch, from the first publication on a new channel to the end of its connection.
    async fn live(&mut self, mut channel: Channel, patience: Duration) -> Result<(), ConnectionEnd> {
        let epoch = epoch::next_number();
        self.outstanding.begin_epoch();
        info!(epoch, address = %channel.address, again = self.outstanding.len(), "connected for publishing");
        self.shared.epoch.store(epoch, Ordering::Relaxed);
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        self.shared.connected.store(true, Ordering::Relaxed);
        let served = self.serve(&mut channel, patience).await;
        self.shared.connected.store(false, Ordering::Relaxed);
        if let Err(reason) = &served {
            warn!(epoch, %reason, unconfirmed = self.outstanding.len(), "publishing connection lost");
            self.learn(reason);
        }
        channel.close(served.as_ref().err()).await;
        served
    }

    /// Publishes until the epoch or the work is over.
    async fn serve(&mut self, channel: &mut Channel, patience: Duration) -> Result<(), ConnectionEnd> {
        // What came along with the last answer of the handshake.
        self.hear(channel)?;
        let mut look = interval((patience / 8).clamp(Duration::from_millis(20), Duration::from_secs(1)));
        loop {
            self.send(channel);
            if self.is_finished() {
                return Ok(());
            }
            tokio::select! {
                // In this order: under load the last two are always ready, and what callers hand over before an exchange
                // goes out in one. Cancel-safe, all of them: `recv_many` takes nothing unless it completes, `exchange` keeps
                // what it has done, the rest keeps no state.
                biased;
                _ = look.tick() => {
                    // If it is this task that was kept waiting, what has come meanwhile counts.
                    if let Some(exchanged) = channel.exchange().now_or_never() {
                        exchanged?;
                        self.hear(channel)?;
                    }
                    if self.outstanding.oldest_sent().is_some_and(|sent| sent.elapsed() > patience) {
                        return Err(ConnectionEnd::Unconfirmed(patience));
                    }
                }
                Some(closer) = self.closing.recv(), if self.closer.is_none() => self.begin_closing(closer),
                () = abandoned(&mut self.closer) => return Ok(()),
                count = self.inbox.recv_many(&mut self.batches, INTAKE), if !self.drained && !channel.is_full() => self.take_in(count),
                exchanged = channel.exchange() => {
                    exchanged?;
                    self.hear(channel)?;
                }
            }
        }
    }

    /// Hands the channel as much as it takes and may be sent.
    fn send(&mut self, channel: &mut Channel) {
        let mut now = None;
        while !channel.is_full() {
            let next = self.outstanding.next_to_send(*now.get_or_insert_with(Instant::now));
            let Some(publication) = next else { return };
            channel.publish(publication);
        }
    }

    /// Takes in what the broker has said.
    fn hear(&mut self, channel: &mut Channel) -> Result<(), ConnectionEnd> {
        while let Some(heard) = channel.next()? {
            match heard {
                // We do not count alike, so none of its words can be trusted.
                Heard::Confirmed { tag, .. } if !self.outstanding.has_sent(tag) => return Err(ConnectionEnd::Broke),
                Heard::Confirmed { tag, multiple, word } => {
                    let freed = self.outstanding.confirmed(tag, multiple, word);
                    self.release(&freed);
                }
                Heard::Returned(returned) => self.outstanding.returned(returned),
                Heard::Ended(end) => return Err(end),
                Heard::Delivered(_) | Heard::Answered(..) | Heard::Agreed => return Err(ConnectionEnd::Broke),
            }
        }
        Ok(())
    }

    fn release(&self, freed: &Freed) {
        if freed.publications > 0 {
            self.shared.release(freed.publications, freed.bytes);
        }
    }

    fn take_in(&mut self, count: usize) {
        self.drained = count == 0;
        for batch in self.batches.drain(..) {
            self.outstanding.push(batch);
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
        self.outstanding.is_empty()
    }

    /// Learns from the end of an epoch which publication the broker would not have, if that was why.
    fn learn(&mut self, reason: &ConnectionEnd) {
        let Some((code, text)) = fault_of_a_publication(reason) else { return };
        let freed = self.outstanding.blame(|exchange, key| {
            warn!(%exchange, routing_key = key, code, text, "the broker closes the connection over a message");
            blame(code, text, exchange, key)
        });
        self.release(&freed);
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
            self.outstanding.push(batch);
        }
        self.drained = self.inbox.is_closed() && self.inbox.is_empty();
    }

    /// Drops what is unconfirmed, which tells its callers, and answers the closer.
    fn finish(mut self) {
        self.shared.room.close();
        self.shared.bytes.close();
        let unconfirmed = self.outstanding.len();
        self.outstanding = Outstanding::new();
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
fn fault_of_a_publication(reason: &ConnectionEnd) -> Option<(u16, &str)> {
    match reason {
        ConnectionEnd::ChannelClosed { code, text } => Some((*code, text)),
        // Frame, syntax and unexpected-frame errors, not implemented. Others are the broker's own affairs.
        ConnectionEnd::ConnectionClosed { code: code @ (501 | 502 | 505 | 540), text } => Some((*code, text)),
        ConnectionEnd::ConnectionClosed { .. }
        | ConnectionEnd::ConsumerCancelled
        | ConnectionEnd::Broke
        | ConnectionEnd::Stuck
        | ConnectionEnd::NoAnswer { .. }
        | ConnectionEnd::Unconfirmed(_)
        | ConnectionEnd::Closed => None,
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
