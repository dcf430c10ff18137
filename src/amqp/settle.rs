//! Settling: many workers note what they finished, one task tells the broker in few frames.
//!
//! Owns a subscription's connection, and hands out what comes on it. Never decides what a settlement is, and never sends one
//! of a past epoch.

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::ack_window::{AckWindow, Frame};
use super::channel::{Channel, broke, nothing};
use super::decode::{ACK, CANCEL, Delivered, Heard, NACK, QUEUE_DECLARE};
use super::epoch::{ConnectionEnd, EndOnDrop, Epoch};
use super::frame::{Malformed, Method, get_short, put_short};
use crate::message::{Delivery, DeliveryId, SettleError, Settlement, Settler};

/// How long a settlement may wait for others to share its frame. Each frame costs a system call on both sides.
const COALESCE: Duration = Duration::from_millis(1);
/// How often settlements stuck behind a slow delivery are looked at; they wait for one to two of these.
const STUCK_TICK: Duration = Duration::from_millis(25);

/// Nothing is on its way any more if nothing has come for so long, nor waits in the queue, while no ack was sent.
const QUIET: Duration = Duration::from_millis(100);
/// How long that is waited for. A broker whose machine is busy needs more than half a second to fill a prefetch of some
/// thousands: cut off in the middle of that, it took 610 messages back.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

/// How long closing waits for the queue to have applied the last settlements, and how often it looks.
const APPLIED_WITHIN: Duration = Duration::from_secs(1);
const APPLIED_LOOK: Duration = Duration::from_millis(5);

/// The bits of an ack or a nack: this one and all before it; back to the queue.
const MULTIPLE: u8 = 1;
const REQUEUE: u8 = 2;

/// Settlements on their way from the workers to the owner task.
struct Notes {
    list: Mutex<Vec<(u64, Settlement)>>,
    /// Told at the first note, and when there are `enough` of them to be sent without delay.
    noted: Notify,
    enough: usize,
}

impl Notes {
    fn add(&self, tag: u64, settlement: Settlement) {
        let count = {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.push((tag, settlement));
            list.len()
        };
        if count == 1 || count == self.enough {
            self.noted.notify_one();
        }
    }

    /// Takes all notes, leaving the emptied `spare` to be filled.
    fn take(&self, spare: &mut Vec<(u64, Settlement)>) {
        std::mem::swap(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner), spare);
    }

    fn count(&self) -> usize {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

enum Command {
    Cancel(oneshot::Sender<()>),
    WindDown(oneshot::Sender<()>),
    Close(Closer),
}

/// The workers' end. Dropping it closes the subscription.
pub(super) struct ChannelSettler {
    epoch: Arc<Epoch>,
    notes: Arc<Notes>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What a subscription's owner task needs to know of it.
pub(super) struct Subscribed {
    pub queue: String,
    pub consumer_tag: String,
    pub prefetch: u16,
}

impl ChannelSettler {
    /// Takes over a channel that consumes, and spawns its owner task, which ends with the epoch or with the settler. It
    /// hands out what comes, until the epoch is over or the consumer is cancelled.
    pub fn spawn(
        channel: Channel,
        epoch: Arc<Epoch>,
        subscribed: Subscribed,
    ) -> (Self, mpsc::UnboundedReceiver<Delivery>) {
        let enough = usize::from(subscribed.prefetch / 2).max(1);
        let notes = Arc::new(Notes { list: Mutex::default(), noted: Notify::new(), enough });
        let (commands, inbox) = mpsc::unbounded_channel();
        // The prefetch bounds it.
        let (handing, handed_out) = mpsc::unbounded_channel();
        let window = AckWindow::new(subscribed.prefetch);
        let owner = Owner {
            channel,
            arrivals: Arrivals { epoch: epoch.number, latest: 0, handing: Some(handing) },
            epoch: Arc::clone(&epoch),
            notes: Arc::clone(&notes),
            subscribed,
            window,
            spare: Vec::new(),
            frames: Vec::new(),
        };
        tokio::spawn(owner.run(inbox));
        (ChannelSettler { epoch, notes, commands }, handed_out)
    }
}

impl Settler for ChannelSettler {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        if delivery.connection == self.epoch.number && !self.epoch.is_over() {
            self.notes.add(delivery.tag, settlement);
        }
    }

    fn ended(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.epoch.over_owned())
    }

    fn cancel(&self) -> BoxFuture<'static, ()> {
        let (reply, done) = oneshot::channel();
        // The owner task is gone if the epoch is over: then there is nothing to cancel.
        let _ = self.commands.send(Command::Cancel(reply));
        Box::pin(async move {
            let _ = done.await;
        })
    }

    fn wind_down(&self) -> BoxFuture<'static, ()> {
        let (reply, done) = oneshot::channel();
        let _ = self.commands.send(Command::WindDown(reply));
        Box::pin(async move {
            let _ = done.await;
        })
    }

    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>> {
        let (reply, done) = oneshot::channel();
        let _ = self.commands.send(Command::Close(reply));
        Box::pin(async move { done.await.unwrap_or(Err(SettleError)) })
    }
}

/// What has come from the broker, on its way to the workers.
struct Arrivals {
    /// The epoch's number.
    epoch: u64,
    /// The tag of the latest one.
    latest: u64,
    /// `None` once the broker hands out nothing more.
    handing: Option<mpsc::UnboundedSender<Delivery>>,
}

impl Arrivals {
    /// Takes in what the broker has said unasked.
    fn take_in(&mut self, heard: Heard) -> Result<(), ConnectionEnd> {
        match heard {
            // The broker numbers what it hands out on a channel one by one. If it does not, one was lost on the way, and
            // there is no telling any more which one a settlement is for.
            Heard::Delivered(delivered) if delivered.tag != self.latest + 1 => {
                Err(broke(&"a delivery that is numbered out of turn"))
            }
            Heard::Delivered(delivered) => {
                self.hand_out(delivered);
                Ok(())
            }
            Heard::Ended(_) | Heard::Confirmed { .. } | Heard::Returned(_) | Heard::Answered(..) | Heard::Agreed => {
                nothing(heard)
            }
        }
    }

    fn hand_out(&mut self, delivered: Delivered) {
        let Delivered { tag, redelivered, exchange, routing_key, message } = delivered;
        self.latest = tag;
        let id = DeliveryId { connection: self.epoch, tag };
        if let Some(handing) = &self.handing {
            // If nobody takes it any more, it stays unsettled, and goes back when the subscription is closed.
            let _ = handing.send(Delivery { id, exchange, routing_key, redelivered, message });
        }
    }
}

type Closer = oneshot::Sender<Result<(), SettleError>>;

/// The owner task's state: the only one that uses the channel.
struct Owner {
    channel: Channel,
    arrivals: Arrivals,
    epoch: Arc<Epoch>,
    notes: Arc<Notes>,
    subscribed: Subscribed,
    window: AckWindow,
    spare: Vec<(u64, Settlement)>,
    frames: Vec<Frame>,
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        // Should this task die.
        let _over = EndOnDrop(Arc::clone(&self.epoch));
        let (closer, outcome) = match self.serve(&mut inbox).await {
            Ok(closer) => (closer, self.flush().await),
            Err(end) => (None, Err(end)),
        };
        let (queue, epoch) = (&self.subscribed.queue, self.epoch.number);
        match &outcome {
            Ok(()) => info!(%queue, epoch, "subscription closed"),
            Err(reason) => warn!(%queue, epoch, %reason, "subscription lost"),
        }
        self.epoch.end(outcome.clone().err().unwrap_or(ConnectionEnd::Closed));
        // Whoever waits for a cancel need not wait for goodbyes.
        drop(inbox);
        self.channel.close(outcome.as_ref().err()).await;
        if let Some(closer) = closer {
            let _ = closer.send(outcome.map_err(|_| SettleError));
        }
    }

    /// Hands out and settles until it is to be closed. Returns who wants to hear of that, if anyone.
    async fn serve(&mut self, inbox: &mut mpsc::UnboundedReceiver<Command>) -> Result<Option<Closer>, ConnectionEnd> {
        let notes = Arc::clone(&self.notes);
        let mut tick = pin!(sleep(STUCK_TICK));
        loop {
            // Not only after an exchange: more may have come along with an answer.
            self.hear()?;
            tokio::select! {
                // Cancel-safe, all of them: `recv`, `notified` and `exchange` lose nothing, a timer neither.
                biased;
                command = inbox.recv() => match command {
                    Some(Command::Cancel(reply)) => {
                        self.cancel().await?;
                        let _ = reply.send(());
                    }
                    Some(Command::WindDown(reply)) => {
                        self.await_quiet().await?;
                        self.cancel().await?;
                        let _ = reply.send(());
                    }
                    Some(Command::Close(reply)) => return Ok(Some(reply)),
                    None => return Ok(None),
                },
                () = notes.noted.notified() => {
                    self.coalesce().await?;
                    if !self.window.has_stuck() {
                        tick.as_mut().reset(Instant::now() + STUCK_TICK);
                    }
                    self.take_notes();
                    self.say_frames();
                }
                () = &mut tick, if self.window.has_stuck() => {
                    tick.as_mut().reset(Instant::now() + STUCK_TICK);
                    self.window.tick(&mut self.frames);
                    self.say_frames();
                }
                exchanged = self.channel.exchange() => exchanged?,
            }
        }
    }

    /// Takes in what the broker has said.
    fn hear(&mut self) -> Result<(), ConnectionEnd> {
        while let Some(heard) = self.channel.next()? {
            self.arrivals.take_in(heard)?;
        }
        Ok(())
    }

    /// Waits, and goes on exchanging with the broker meanwhile.
    async fn exchange_during(&mut self, wait: impl Future<Output = ()>) -> Result<(), ConnectionEnd> {
        let mut wait = pin!(wait);
        loop {
            self.hear()?;
            tokio::select! {
                // Cancel-safe: the wait is kept over turns, and `exchange` keeps what it has done.
                biased;
                () = &mut wait => return Ok(()),
                exchanged = self.channel.exchange() => exchanged?,
            }
        }
    }

    /// Waits a moment for more, unless there is enough already.
    async fn coalesce(&mut self) -> Result<(), ConnectionEnd> {
        let notes = Arc::clone(&self.notes);
        if notes.count() >= notes.enough {
            return Ok(());
        }
        let moment = async {
            tokio::select! {
                // Cancel-safe: both only wait.
                () = sleep(COALESCE) => {}
                () = notes.noted.notified() => {}
            }
        };
        self.exchange_during(moment).await
    }

    fn take_notes(&mut self) {
        self.notes.take(&mut self.spare);
        self.window.settle(self.spare.drain(..), &mut self.frames);
    }

    fn say_frames(&mut self) {
        let mut frames = std::mem::take(&mut self.frames);
        for frame in frames.drain(..) {
            let (method, tag, bits) = match frame {
                Frame::AckUpTo(tag) => (ACK, tag, MULTIPLE),
                Frame::Ack(tag) => (ACK, tag, 0),
                Frame::Release(tag) => (NACK, tag, REQUEUE),
                Frame::Reject(tag) => (NACK, tag, 0),
            };
            self.say(method, tag, bits);
        }
        // Empty, with its room.
        self.frames = frames;
    }

    fn say(&mut self, method: Method, tag: u64, bits: u8) {
        self.channel.say(method, |out| {
            out.put_u64(tag);
            out.put_u8(bits);
        });
    }

    /// Holds acks back until the broker hands out nothing more: since as much is unacked as may be, or nothing waits. What
    /// is on its way inside the broker when it is asked to cancel, it takes back by itself, marks as redelivered and counts
    /// toward the delivery limit, though nobody ever saw it (measured on 3.10.8 under load: some fifty messages).
    async fn await_quiet(&mut self) -> Result<(), ConnectionEnd> {
        let deadline = Instant::now() + QUIET_WITHIN;
        let mut before = None;
        while self.arrivals.handing.is_some() && Instant::now() < deadline {
            let latest = self.arrivals.latest;
            if self.window.untold(latest) >= usize::from(self.subscribed.prefetch) {
                break;
            }
            // A broker that is silent may only be slow: it is asked whether there is more to come.
            if before.replace(latest) == Some(latest) && self.counts().await?.ready == 0 {
                break;
            }
            self.exchange_during(sleep(QUIET)).await?;
        }
        Ok(())
    }

    /// Stops what the broker hands out. All that it had handed out before is then in the stream, which ends.
    async fn cancel(&mut self) -> Result<(), ConnectionEnd> {
        if self.arrivals.handing.is_none() {
            return Ok(());
        }
        let Owner { channel, arrivals, subscribed, .. } = self;
        let cancelling = channel.ask(
            "basic.cancel",
            CANCEL,
            |out| {
                put_short(out, &subscribed.consumer_tag);
                // With an answer.
                out.put_u8(0);
            },
            |heard| arrivals.take_in(heard),
        );
        cancelling.await?;
        self.arrivals.handing = None;
        Ok(())
    }

    /// Sends all that was noted, gives back the rest, and waits until the queue has it.
    async fn flush(&mut self) -> Result<(), ConnectionEnd> {
        self.cancel().await?;
        self.take_notes();
        self.window.flush(&mut self.frames);
        self.say_frames();
        // Tag 0 means all that is unsettled. Closing the channel would give the rest back too, but only with this does the
        // consumer come to an end that can be waited for.
        self.say(NACK, 0, MULTIPLE | REQUEUE);
        self.await_applied().await
    }

    /// Waits until the queue has what the channel was sent. A channel passes no more than 32 commands at a time
    /// on to a quorum queue (`quorum_commands_soft_limit`) and forgets those it holds back when it closes, so an
    /// answer from the channel does not do. But a quorum queue counts a cancelled consumer until everything that
    /// was handed out to it is settled: when the count falls, all has arrived.
    ///
    /// With consumers of other processes on the queue, the count may have fallen before it is first looked at,
    /// and ours cannot be told from theirs. So there is a bound; what is lost then, the broker hands out again.
    async fn await_applied(&mut self) -> Result<(), ConnectionEnd> {
        let deadline = Instant::now() + APPLIED_WITHIN;
        let mut most = 0;
        loop {
            let consumers = self.counts().await?.consumers;
            if consumers == 0 || consumers < most || Instant::now() > deadline {
                return Ok(());
            }
            most = consumers;
            self.exchange_during(sleep(APPLIED_LOOK)).await?;
        }
    }

    /// What the queue has.
    async fn counts(&mut self) -> Result<Counts, ConnectionEnd> {
        /// Changes nothing: only asks.
        const PASSIVE: u8 = 1;
        let Owner { channel, arrivals, subscribed, .. } = self;
        let asking = channel.ask(
            "queue.declare",
            QUEUE_DECLARE,
            |out| {
                // Reserved.
                out.put_u16(0);
                put_short(out, &subscribed.queue);
                out.put_u8(PASSIVE);
                // No arguments.
                out.put_u32(0);
            },
            |heard| arrivals.take_in(heard),
        );
        let answer = asking.await?;
        Counts::read(&answer).map_err(|malformed| broke(&malformed))
    }
}

/// What a passive `queue.declare` tells of a queue.
struct Counts {
    /// Messages that wait to be handed out.
    ready: u32,
    consumers: u32,
}

impl Counts {
    fn read(mut answer: &[u8]) -> Result<Counts, Malformed> {
        let _queue = get_short(&mut answer)?;
        Ok(Counts { ready: answer.try_get_u32()?, consumers: answer.try_get_u32()? })
    }
}
