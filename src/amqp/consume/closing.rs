//! Ending a subscription without losing settlements and without spurious redeliveries.
//!
//! Owns the order of cancelling, settling and waiting. Never drops a settlement that the broker can still receive.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::receiver::ReceiverTask;
use crate::amqp::lifetime::ConnectionEnd;
use crate::amqp::protocol::{Method, broken};

/// No delivery is on its way if none has arrived for this long and none is ready in the queue, while acks are held back.
const IDLE: Duration = Duration::from_millis(100);
/// How long to wait for that. A broker on a busy machine needs more than half a second to fill a prefetch of a few thousand:
/// when the consumer was cancelled during that time, the broker requeued 610 messages.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long closing waits until the queue has applied the last settlements.
const APPLIED_TIMEOUT: Duration = Duration::from_secs(1);
/// How often closing asks for that.
const APPLIED_POLL: Duration = Duration::from_millis(5);

/// An acknowledgement timeout is at least this long. RabbitMQ advises against less than a minute.
const MIN_ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// What a passive `queue.declare` reports about a queue.
struct QueueCounts {
    /// Messages that are ready to be delivered.
    ready: u32,
    consumers: u32,
}

impl ReceiverTask {
    /// Waits, while holding acks back, until the broker delivers nothing more because the prefetch is used up or nothing is
    /// ready. If the consumer were cancelled while a delivery is on its way inside the broker, the broker would requeue that
    /// message, mark it as redelivered and count it toward the delivery limit, although no consumer ever received it
    /// (measured on 3.10.8 under load: about fifty messages).
    pub async fn await_idle(&mut self) -> Result<(), ConnectionEnd> {
        let deadline = Instant::now() + IDLE_TIMEOUT;
        let mut before = None;
        while self.intake.is_open() && Instant::now() < deadline {
            let latest = self.intake.latest;
            // What does not fit into memory would be released again and again while waiting.
            if self.channel.is_paused() || self.window.unsettled(latest) >= usize::from(self.settings.prefetch) {
                break;
            }
            // The broker may only be slow, so it is asked whether more messages are ready.
            if before.replace(latest) == Some(latest) && self.queue_counts().await?.ready == 0 {
                break;
            }
            self.receive_during(sleep(IDLE)).await?;
        }
        Ok(())
    }

    /// Finds out why the broker ended the consumer, where the broker does not say.
    ///
    /// RabbitMQ 4.3 cancels a consumer when a delivery was not settled within the acknowledgement timeout, and a cancel has no
    /// reason. It also cancels the consumers of a deleted queue, so the queue is looked for. It is asked at once: another instance
    /// may declare it again.
    pub async fn find_cause(&mut self, end: ConnectionEnd) -> ConnectionEnd {
        let held = self.intake.longest_hold().filter(|held| *held >= MIN_ACK_TIMEOUT);
        // To the second: the delivery and the cancel were on their way for a while.
        let held = held.map(|held| Duration::from_secs(held.as_secs_f64().round() as u64));
        let is_ack_timeout = match &end {
            ConnectionEnd::AckTimeout(None) => true,
            ConnectionEnd::ConsumerCancelled => held.is_some() && self.queue_counts().await.is_ok(),
            _ => false,
        };
        if is_ack_timeout { ConnectionEnd::AckTimeout(held) } else { end }
    }

    /// Cancels the consumer. The stream then ends after everything that was delivered before.
    pub async fn cancel(&mut self) -> Result<(), ConnectionEnd> {
        if !self.intake.is_open() {
            return Ok(());
        }
        let ReceiverTask { channel, intake, settings, .. } = self;
        let cancel = Method::BasicCancel { consumer_tag: settings.consumer_tag.as_str().into() };
        channel.request(&cancel, |event| intake.accept(event)).await?;
        self.intake.close();
        Ok(())
    }

    /// Sends all settlements, requeues the rest, and waits until the queue has applied them.
    pub async fn flush(&mut self) -> Result<(), ConnectionEnd> {
        self.cancel().await?;
        self.take_settlements();
        self.window.flush(&mut self.frames);
        self.send_settlements();
        // Tag 0 means everything unsettled. Closing the channel would requeue the rest too, but only after this frame does the
        // queue stop counting the consumer, which `await_applied` waits for.
        self.channel.send_method(&Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true });
        self.await_applied().await
    }

    /// Waits until the queue has applied what was sent on the channel.
    ///
    /// A channel passes at most 32 commands at a time on to a quorum queue (`quorum_commands_soft_limit`) and drops the
    /// remaining ones when it closes, so a reply from the channel is not enough. But a quorum queue counts a cancelled consumer
    /// until all its deliveries are settled: when the count falls, everything has arrived.
    ///
    /// If other processes consume the queue too, this consumer cannot be distinguished from theirs, and the count may have
    /// fallen before it is first read. Therefore there is a timeout. The broker redelivers the messages whose settlements are
    /// lost then.
    async fn await_applied(&mut self) -> Result<(), ConnectionEnd> {
        let deadline = Instant::now() + APPLIED_TIMEOUT;
        let mut most = 0;
        loop {
            let consumers = self.queue_counts().await?.consumers;
            if consumers == 0 || consumers < most || Instant::now() > deadline {
                return Ok(());
            }
            most = consumers;
            self.receive_during(sleep(APPLIED_POLL)).await?;
        }
    }

    async fn queue_counts(&mut self) -> Result<QueueCounts, ConnectionEnd> {
        let ReceiverTask { channel, intake, settings, .. } = self;
        let declare = Method::QueueDeclare { queue: settings.queue.as_str().into(), passive: true };
        match channel.request(&declare, |event| intake.accept(event)).await? {
            Method::QueueDeclareOk { message_count, consumer_count } => {
                Ok(QueueCounts { ready: message_count, consumers: consumer_count })
            }
            _ => Err(broken(&"the reply to queue.declare is another method's")),
        }
    }
}
