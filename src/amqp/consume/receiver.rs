//! The task that owns a subscription's connection: receives deliveries and sends settlements.
//!
//! The only user of the channel. Passes deliveries on in the order they arrive. Never decides how a delivery is settled.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::info;

use super::ack_window::{AckFrame, AckWindow};
use super::answer_check::{ANSWER_TIMEOUT, AnswerCheck};
use super::settler::{ChannelSettler, CloseReply, Command, PendingSettlements};
use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime, EndOnDrop};
use crate::amqp::protocol::{Channel, Delivered, Method, ServerEvent, reject_unexpected};
use crate::message::{Delivery, DeliveryId, SettleError, Settlement};

/// How long a settlement may wait for others to share its frame. Each frame costs a system call on both sides.
const BATCH_WAIT: Duration = Duration::from_millis(1);
/// How often acks that are blocked behind an unfinished delivery are checked. They wait for one to two ticks.
const BLOCKED_ACK_TICK: Duration = Duration::from_millis(25);

/// How often it is checked whether the broker answers.
const ANSWER_TICK: Duration = Duration::from_secs(1);

/// What the receiver task needs to know about its subscription.
pub struct SubscriptionSettings {
    pub queue: String,
    pub consumer_tag: String,
    pub prefetch: u16,
}

/// Spawns the receiver task of a channel that consumes. The task ends with the connection or with the settler; the
/// deliveries end when the connection has ended or the consumer is cancelled.
pub fn spawn(
    channel: Channel,
    lifetime: Arc<ConnectionLifetime>,
    settings: SubscriptionSettings,
) -> (ChannelSettler, mpsc::UnboundedReceiver<Delivery>) {
    let pending = Arc::new(PendingSettlements::new(usize::from(settings.prefetch / 2).max(1)));
    let (commands, inbox) = mpsc::unbounded_channel();
    // Unbounded, because the prefetch limits how many deliveries it holds.
    let (output, received) = mpsc::unbounded_channel();
    let window = AckWindow::new(settings.prefetch);
    let task = ReceiverTask {
        channel,
        intake: DeliveryIntake::new(lifetime.number, settings.prefetch, output),
        lifetime: Arc::clone(&lifetime),
        pending: Arc::clone(&pending),
        settings,
        window,
        spare: Vec::new(),
        frames: Vec::new(),
    };
    tokio::spawn(task.run(inbox));
    (ChannelSettler { lifetime, pending, commands }, received)
}

/// A delivery that is not settled yet.
struct UnsettledDelivery {
    /// In bytes.
    memory: usize,
    received: Instant,
}

/// Passes deliveries from the broker on to the workers.
pub struct DeliveryIntake {
    /// The connection's number.
    connection: u64,
    /// The latest delivery tag.
    pub latest: u64,
    /// `None` once the consumer is cancelled.
    output: Option<mpsc::UnboundedSender<Delivery>>,
    /// The largest tag that the prefetch allows for now.
    limit: u64,
    /// The deliveries that are not settled, by tag.
    unsettled: HashMap<u64, UnsettledDelivery>,
    /// Deliveries for which there was no room. They are released.
    overflowed: Vec<u64>,
    answers: AnswerCheck,
}

impl DeliveryIntake {
    fn new(connection: u64, prefetch: u16, output: mpsc::UnboundedSender<Delivery>) -> Self {
        let (limit, unsettled, overflowed) = (prefetch.into(), HashMap::new(), Vec::new());
        let answers = AnswerCheck::default();
        DeliveryIntake { connection, latest: 0, output: Some(output), limit, unsettled, overflowed, answers }
    }

    /// Whether the broker may still deliver.
    pub fn is_open(&self) -> bool {
        self.output.is_some()
    }

    /// Ends the stream of deliveries after those it has.
    pub fn close(&mut self) {
        self.output = None;
    }

    /// How long the oldest delivery that is not settled has been held; `None` if all are settled.
    pub fn longest_hold(&self) -> Option<Duration> {
        self.unsettled.values().map(|delivery| delivery.received.elapsed()).max()
    }

    /// Handles an event that is not the reply to a request.
    pub fn accept(&mut self, event: ServerEvent) -> Result<(), ConnectionEnd> {
        match event {
            // The broker numbers the deliveries of a channel consecutively. If a number is missing, a delivery was lost, and
            // it is no longer certain which one a settlement refers to.
            ServerEvent::Delivered(delivered) if delivered.tag != self.latest + 1 => {
                Err(ConnectionEnd::Protocol { problem: "a delivery tag is out of sequence" })
            }
            ServerEvent::Delivered(delivered) if delivered.tag > self.limit => {
                Err(ConnectionEnd::Protocol { problem: "there are more deliveries than the prefetch allows" })
            }
            ServerEvent::Delivered(delivered) => {
                self.pass_on(delivered);
                Ok(())
            }
            ServerEvent::Reply(Method::BasicQosOk) if self.answers.answered() => Ok(()),
            ServerEvent::Ended(_)
            | ServerEvent::Blocked(_)
            | ServerEvent::Unblocked
            | ServerEvent::Confirmed { .. }
            | ServerEvent::Returned(_)
            | ServerEvent::Reply(_)
            | ServerEvent::ConnectionCloseOk => reject_unexpected(event),
        }
    }

    fn pass_on(&mut self, delivered: Delivered) {
        let Delivered { tag, redelivered, exchange, routing_key, message, memory, overflow } = delivered;
        self.latest = tag;
        self.unsettled.insert(tag, UnsettledDelivery { memory, received: Instant::now() });
        if overflow {
            self.overflowed.push(tag);
            return;
        }
        let id = DeliveryId { connection: self.connection, tag };
        if let Some(output) = &self.output {
            // If the stream was dropped, the delivery stays unsettled and is requeued when the subscription is closed.
            let _ = output.send(Delivery { id, exchange, routing_key, redelivered, message });
        }
    }
}

/// The task's state. `closing.rs` has the methods that end a subscription.
pub struct ReceiverTask {
    pub channel: Channel,
    pub intake: DeliveryIntake,
    lifetime: Arc<ConnectionLifetime>,
    pending: Arc<PendingSettlements>,
    pub settings: SubscriptionSettings,
    pub window: AckWindow,
    /// An empty list of settlements, kept for its capacity.
    spare: Vec<(u64, Settlement)>,
    /// Frames to be sent. Empty between calls, kept for its capacity.
    pub frames: Vec<AckFrame>,
}

impl ReceiverTask {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        // In case this task panics.
        let _end = EndOnDrop(Arc::clone(&self.lifetime));
        let (close_reply, end) = match self.serve(&mut inbox).await {
            Ok(close_reply) => (close_reply, self.flush().await.err()),
            Err(end) => (None, Some(end)),
        };
        let cause = match end.clone() {
            Some(end) => Some(self.find_cause(end).await),
            None => None,
        };
        let (queue, connection) = (&self.settings.queue, self.lifetime.number);
        match &cause {
            None => info!(%queue, connection, "subscription closed"),
            // The consumer's pool warns of it.
            Some(reason) => info!(%queue, connection, %reason, "subscription lost"),
        }
        let outcome = if cause.is_none() { Ok(()) } else { Err(SettleError) };
        self.lifetime.end(cause.unwrap_or(ConnectionEnd::ClosedByUs));
        // Callers that wait for a cancel are answered before the connection is closed.
        drop(inbox);
        self.channel.close(end.as_ref()).await;
        if let Some(reply) = close_reply {
            let _ = reply.send(outcome);
        }
    }

    /// Receives and settles until the subscription is to be closed. Returns where to send the outcome, if someone waits for
    /// it.
    async fn serve(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<Option<CloseReply>, ConnectionEnd> {
        let pending = Arc::clone(&self.pending);
        let mut tick = pin!(sleep(BLOCKED_ACK_TICK));
        let mut answer_tick = interval(ANSWER_TICK);
        answer_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In every iteration, not only after `drive_io`: events may also have arrived together with a reply.
            self.receive()?;
            tokio::select! {
                // All branches are cancel-safe: `recv`, `notified` and `drive_io` lose nothing, and neither does a timer.
                biased;
                command = inbox.recv() => match command {
                    Some(Command::Cancel(reply)) => self.cancel_for(reply).await?,
                    Some(Command::CancelWhenIdle(reply)) => {
                        self.await_idle().await?;
                        self.cancel_for(reply).await?;
                    }
                    Some(Command::Close(reply)) => return Ok(Some(reply)),
                    None => return Ok(None),
                },
                () = pending.added.notified() => {
                    self.await_batch().await?;
                    if !self.window.has_blocked() {
                        tick.as_mut().reset(Instant::now() + BLOCKED_ACK_TICK);
                    }
                    self.take_settlements();
                    self.send_settlements();
                }
                () = &mut tick, if self.window.has_blocked() => {
                    tick.as_mut().reset(Instant::now() + BLOCKED_ACK_TICK);
                    self.window.tick(&mut self.frames);
                    self.send_settlements();
                }
                _ = answer_tick.tick() => self.check_answers().await?,
                driven = self.channel.drive_io() => driven?,
            }
        }
    }

    /// Asks the broker for an answer after settlements, and ends the connection if it has not answered for too long.
    async fn check_answers(&mut self) -> Result<(), ConnectionEnd> {
        // If this task did not run for a while, an answer that arrived meanwhile is handled first. The runtime may report the
        // timer before the socket; yielding lets it report both.
        tokio::task::yield_now().await;
        if let Some(driven) = self.channel.drive_io().now_or_never() {
            driven?;
            self.receive()?;
        }
        let now = Instant::now();
        let answers = &mut self.intake.answers;
        if self.channel.is_paused() {
            answers.not_receiving(now);
        }
        if answers.is_due(now) {
            // Changes nothing: it applies to consumers that are started afterwards.
            self.channel.send_method(&Method::BasicQos { prefetch_count: self.settings.prefetch });
        }
        let waiting = answers.waiting(now);
        self.pending.unanswered_millis.store(waiting.as_millis() as u64, Ordering::Relaxed);
        if waiting >= ANSWER_TIMEOUT { Err(ConnectionEnd::Unanswered(ANSWER_TIMEOUT)) } else { Ok(()) }
    }

    async fn cancel_for(&mut self, reply: oneshot::Sender<()>) -> Result<(), ConnectionEnd> {
        self.cancel().await?;
        let _ = reply.send(());
        Ok(())
    }

    /// Handles the events that have arrived.
    fn receive(&mut self) -> Result<(), ConnectionEnd> {
        while let Some(event) = self.channel.next_event()? {
            self.intake.accept(event)?;
        }
        Ok(())
    }

    /// Sends and receives until `wait` is over.
    pub async fn receive_during(&mut self, wait: impl Future<Output = ()>) -> Result<(), ConnectionEnd> {
        let mut wait = pin!(wait);
        loop {
            self.receive()?;
            tokio::select! {
                // Cancel-safe: `wait` is kept over iterations, and `drive_io` keeps its progress.
                biased;
                () = &mut wait => return Ok(()),
                driven = self.channel.drive_io() => driven?,
            }
        }
    }

    /// Waits briefly for more settlements, unless there are enough for a batch.
    async fn await_batch(&mut self) -> Result<(), ConnectionEnd> {
        let pending = Arc::clone(&self.pending);
        if pending.is_batch() {
            return Ok(());
        }
        let more = async {
            tokio::select! {
                // Cancel-safe: both only wait.
                () = sleep(BATCH_WAIT) => {}
                () = pending.added.notified() => {}
            }
        };
        self.receive_during(more).await
    }

    pub fn take_settlements(&mut self) {
        self.pending.take(&mut self.spare);
        self.spare.extend(self.intake.overflowed.drain(..).map(|tag| (tag, Settlement::Release)));
        let settled = self.spare.iter().filter_map(|(tag, _)| self.intake.unsettled.remove(tag));
        let released = settled.map(|delivery| delivery.memory).sum();
        self.channel.release(released);
        self.window.settle(self.spare.drain(..), &mut self.frames);
    }

    /// Queues the frames that are due.
    pub fn send_settlements(&mut self) {
        // At most: the broker counts a delivery until it has received its settlement.
        if !self.frames.is_empty() {
            self.intake.answers.settled();
        }
        self.intake.limit = self.window.settled + u64::from(self.settings.prefetch);
        for frame in self.frames.drain(..) {
            let nack = |delivery_tag, requeue| Method::BasicNack { delivery_tag, multiple: false, requeue };
            self.channel.send_method(&match frame {
                AckFrame::AckUpTo(delivery_tag) => Method::BasicAck { delivery_tag, multiple: true },
                AckFrame::Ack(delivery_tag) => Method::BasicAck { delivery_tag, multiple: false },
                AckFrame::Release(delivery_tag) => nack(delivery_tag, true),
                AckFrame::Reject(delivery_tag) => nack(delivery_tag, false),
            });
        }
    }
}
