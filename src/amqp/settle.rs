//! Settling: many workers note what they finished, one task tells the broker in few frames.
//!
//! Owns a subscription's connection from its opening to its closing. Never decides what a settlement is, and
//! never sends one of a past epoch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amqprs::channel::{BasicAckArguments, BasicCancelArguments, BasicNackArguments, QueueDeclareArguments};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::ack_window::{AckWindow, Frame};
use super::connect::Wire;
use super::epoch::{Epoch, EpochEnd};
use crate::message::{DeliveryId, SettleError, Settlement, Settler};

/// How long a settlement may wait for others to share its frame. Each frame costs a system call on both sides.
const COALESCE: Duration = Duration::from_millis(1);
/// How often settlements stuck behind a slow delivery are looked at; they wait for one to two of these.
const STUCK_TICK: Duration = Duration::from_millis(25);

/// Nothing is on its way any more if nothing has come for so long while no ack was sent.
const QUIET: Duration = Duration::from_millis(100);
/// How long that is waited for. A broker whose machine is busy needs more than half a second to fill a prefetch of some
/// thousands: cut off in the middle of that, it took 610 messages back.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

/// How long closing waits for the queue to have applied the last settlements, and how often it looks.
const APPLIED_WITHIN: Duration = Duration::from_secs(1);
const APPLIED_LOOK: Duration = Duration::from_millis(5);

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
    Close(oneshot::Sender<Result<(), SettleError>>),
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
    /// The tag of the latest delivery that was yielded.
    pub latest: Arc<AtomicU64>,
}

impl ChannelSettler {
    /// Takes the connection over and spawns its owner task, which ends with the epoch or with the settler.
    pub fn spawn(wire: Wire, epoch: Arc<Epoch>, subscribed: Subscribed) -> Self {
        let enough = usize::from(subscribed.prefetch / 2).max(1);
        let notes = Arc::new(Notes { list: Mutex::default(), noted: Notify::new(), enough });
        let (commands, inbox) = mpsc::unbounded_channel();
        let window = AckWindow::new(subscribed.prefetch);
        let owner = Owner {
            wire,
            epoch: Arc::clone(&epoch),
            notes: Arc::clone(&notes),
            subscribed,
            cancelled: false,
            window,
            spare: Vec::new(),
            frames: Vec::new(),
        };
        tokio::spawn(owner.run(inbox));
        ChannelSettler { epoch, notes, commands }
    }
}

impl Settler for ChannelSettler {
    fn settle(&self, delivery: DeliveryId, settlement: Settlement) {
        if delivery.epoch == self.epoch.number && !self.epoch.is_over() {
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

/// The owner task's state: the only one that uses the channel.
struct Owner {
    wire: Wire,
    epoch: Arc<Epoch>,
    notes: Arc<Notes>,
    subscribed: Subscribed,
    cancelled: bool,
    window: AckWindow,
    spare: Vec<(u64, Settlement)>,
    frames: Vec<Frame>,
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let notes = Arc::clone(&self.notes);
        let mut tick = Instant::now();
        loop {
            tokio::select! {
                // Cancel-safe, all of them: `over`, `recv` and `notified` lose nothing, a timer neither.
                () = self.epoch.over() => break,
                command = inbox.recv() => match command {
                    Some(Command::Cancel(reply)) => {
                        self.cancel().await;
                        let _ = reply.send(());
                    }
                    Some(Command::WindDown(reply)) => {
                        self.await_quiet().await;
                        self.cancel().await;
                        let _ = reply.send(());
                    }
                    Some(Command::Close(reply)) => return self.close(Some(reply)).await,
                    None => return self.close(None).await,
                },
                () = notes.noted.notified() => {
                    self.coalesce().await;
                    if !self.window.has_stuck() {
                        tick = Instant::now() + STUCK_TICK;
                    }
                    self.send_noted().await;
                }
                () = sleep_until(tick), if self.window.has_stuck() => {
                    tick = Instant::now() + STUCK_TICK;
                    self.window.tick(&mut self.frames);
                    self.send_frames().await;
                }
            }
        }
        let (queue, epoch) = (&self.subscribed.queue, self.epoch.number);
        match self.epoch.reason() {
            EpochEnd::Closed => {}
            reason => warn!(%queue, epoch, %reason, "subscription lost"),
        }
    }

    /// Waits a moment for more, unless there is enough already.
    async fn coalesce(&self) {
        if self.notes.count() < self.notes.enough {
            tokio::select! {
                // All branches are cancel-safe: see `run`.
                () = sleep(COALESCE) => {}
                () = self.notes.noted.notified() => {}
                () = self.epoch.over() => {}
            }
        }
    }

    async fn send_noted(&mut self) {
        self.notes.take(&mut self.spare);
        self.window.settle(self.spare.drain(..), &mut self.frames);
        self.send_frames().await;
    }

    async fn send_frames(&mut self) {
        let channel = &self.wire.channel;
        for frame in self.frames.drain(..) {
            let queued = match frame {
                Frame::AckUpTo(tag) => self.epoch.queue(channel.basic_ack(BasicAckArguments::new(tag, true))).await,
                Frame::Ack(tag) => self.epoch.queue(channel.basic_ack(BasicAckArguments::new(tag, false))).await,
                Frame::Release(tag) => {
                    self.epoch.queue(channel.basic_nack(BasicNackArguments::new(tag, false, true))).await
                }
                Frame::Reject(tag) => {
                    self.epoch.queue(channel.basic_nack(BasicNackArguments::new(tag, false, false))).await
                }
            };
            if !queued {
                return;
            }
        }
    }

    /// Holds acks back until the broker hands out nothing more, since as much is unacked as may be, or nothing waits. What
    /// is on its way inside the broker when it is asked to cancel, it takes back by itself, marks as redelivered and counts
    /// toward the delivery limit, though nobody ever saw it (measured on 3.10.8 under load: some fifty messages).
    async fn await_quiet(&self) {
        let deadline = Instant::now() + QUIET_WITHIN;
        let latest = || self.subscribed.latest.load(Ordering::Relaxed);
        let mut before = None;
        while !self.cancelled && before != Some(latest()) && Instant::now() < deadline {
            before = Some(latest());
            // Cancel-safe: both only wait.
            tokio::select! {
                () = sleep(QUIET) => {}
                () = self.epoch.over() => return,
            }
        }
    }

    async fn cancel(&mut self) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        let channel = self.wire.channel.clone();
        let arguments = BasicCancelArguments::new(&self.subscribed.consumer_tag);
        let cancelling = async move { channel.basic_cancel(arguments).await };
        // A failure has ended the epoch, which ends the deliveries too.
        let _ = self.epoch.ask("basic.cancel", cancelling).await;
    }

    async fn close(mut self, reply: Option<oneshot::Sender<Result<(), SettleError>>>) {
        let result = self.flush().await;
        let (queue, number) = (&self.subscribed.queue, self.epoch.number);
        match &result {
            Ok(()) => info!(%queue, epoch = number, "subscription closed"),
            Err(reason) => warn!(%queue, epoch = number, %reason, "subscription lost while closing"),
        }
        self.wire.close(&self.epoch).await;
        if let Some(reply) = reply {
            let _ = reply.send(result.map_err(|_| SettleError));
        }
    }

    /// Sends all that was noted, gives back the rest, and waits until the queue has it.
    async fn flush(&mut self) -> Result<(), EpochEnd> {
        self.cancel().await;
        self.send_noted().await;
        self.window.flush(&mut self.frames);
        self.send_frames().await;
        // Tag 0 means all that is unsettled. Closing the channel would give it back too, but only with this does
        // the consumer come to an end that can be waited for.
        let rest = BasicNackArguments::new(0, true, true);
        if !self.epoch.is_over() {
            self.epoch.queue(self.wire.channel.basic_nack(rest)).await;
        }
        self.await_applied().await
    }

    /// Waits until the queue has what the channel was sent. A channel passes no more than 32 commands at a time
    /// on to a quorum queue (`quorum_commands_soft_limit`) and forgets those it holds back when it closes, so an
    /// answer from the channel does not do. But a quorum queue counts a cancelled consumer until everything that
    /// was handed out to it is settled: when the count falls, all has arrived.
    ///
    /// With consumers of other processes on the queue, the count may have fallen before it is first looked at,
    /// and ours cannot be told from theirs. So there is a bound; what is lost then, the broker hands out again.
    async fn await_applied(&self) -> Result<(), EpochEnd> {
        let deadline = Instant::now() + APPLIED_WITHIN;
        let mut most = 0;
        loop {
            if self.epoch.is_over() {
                return Err(self.epoch.reason());
            }
            let channel = self.wire.channel.clone();
            let arguments = QueueDeclareArguments::new(&self.subscribed.queue).passive(true).finish();
            let asking = async move { channel.queue_declare(arguments).await };
            let consumers = self.epoch.ask("queue.declare", asking).await?.map_or(0, |(_, _, consumers)| consumers);
            if consumers == 0 || consumers < most || Instant::now() > deadline {
                return Ok(());
            }
            most = consumers;
            sleep(APPLIED_LOOK).await;
        }
    }
}
