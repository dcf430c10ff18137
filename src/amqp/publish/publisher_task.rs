//! The task that owns the publishing connection: it publishes, handles confirms, reconnects, and publishes again.
//!
//! The only user of the channel, because confirms refer to publications by the order in which they were sent on it. Never drops
//! a publication that the broker has not confirmed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval, sleep};
use tracing::{debug, error, info, warn};

use super::Shared;
use super::outstanding_confirms::{Batch, OutstandingConfirms, ReleasedPermits};
use super::refusals::Refusals;
use crate::amqp::authenticated_user::{authenticated_user, is_refused_user};
use crate::amqp::connect::Connector;
use crate::amqp::connect_error::ConnectError;
use crate::amqp::lifetime::{self, ConnectionEnd};
use crate::amqp::protocol::{Channel, Confirm, Method, ServerEvent, reject_unexpected};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::Address;
use crate::message::{CONFIRMS_OVERDUE, PublishError};
use crate::telemetry::RepeatedLog;

/// Upper bound of the first wait between connection attempts. It doubles up to `broker.reconnect_max`.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// After a connection that lasted this long, the waits start over.
const STABLE_CONNECTION: Duration = Duration::from_secs(10);
/// Each consecutive connection without a single confirm doubles the confirm timeout of the next one, at most this many
/// times: while a broker has an alarm, publishing again and again would only add to its load.
const MAX_DOUBLINGS: u32 = 3;
/// With several addresses, a connection on which nothing at all is confirmed for this long is left for another node: its node
/// may be cut off from the others. Doubles like the confirm timeout.
const LEAVE_SILENT_NODE_AFTER: Duration = Duration::from_secs(10);
/// RabbitMQ's reply code for an exchange that does not exist.
const NOT_FOUND: u16 = 404;
/// The most batches taken from the inbox at a time.
const BATCHES_AT_A_TIME: usize = 128;

/// Channels closed because of a publication, by exchange, routing key and code.
static CLOSES: RepeatedLog = RepeatedLog::new();

/// Attempts to connect that failed, by whether another attempt can help.
static CONNECT_FAILURES: RepeatedLog = RepeatedLog::new();

type Closing = mpsc::Receiver<oneshot::Sender<usize>>;

/// What the task keeps between connections.
struct PublisherTask {
    connector: Connector,
    shared: Arc<Shared>,
    outstanding: OutstandingConfirms,
    inbox: mpsc::UnboundedReceiver<Batch>,
    closing: Closing,
    batches: Vec<Batch>,
    /// Where to report how many publications stayed unconfirmed, once a close was requested.
    closer: Option<oneshot::Sender<usize>>,
    /// Whether no more batches can arrive.
    drained: bool,
    refusals: Refusals,
    /// Whether to reconnect, to another node if there is one, once everything sent is answered.
    reconnect: bool,
    /// When the broker last confirmed or refused something on this connection.
    answered_at: Option<Instant>,
    /// Whether it was logged that the broker does not confirm.
    overdue: bool,
    /// Counts the declarations of the topology after which what was missing may exist.
    repairs: watch::Receiver<u64>,
}

/// Runs a publisher until it is closed or all its handles are dropped and everything is confirmed.
pub async fn run(connector: Connector, shared: Arc<Shared>, inbox: mpsc::UnboundedReceiver<Batch>, closing: Closing) {
    let (outstanding, batches) = (OutstandingConfirms::new(), Vec::with_capacity(BATCHES_AT_A_TIME));
    let mut task = PublisherTask {
        repairs: connector.redeclaration().repairs(),
        connector,
        shared,
        outstanding,
        inbox,
        closing,
        batches,
        closer: None,
        drained: false,
        refusals: Refusals::default(),
        reconnect: false,
        answered_at: None,
        overdue: false,
    };
    let backoff = Backoff { first: FIRST_WAIT, max: task.connector.broker.reconnect_max };
    let (mut attempt, mut without_confirm) = (0, 0_u32);
    while !task.is_finished() {
        match open(&task.connector).await {
            Ok(channel) => {
                let connected_at = Instant::now();
                for is_permanent in [false, true] {
                    CONNECT_FAILURES.ended(is_permanent);
                }
                let address = channel.address.clone();
                let end = task.run_connection(channel, ConfirmTimeouts::new(&task.connector, without_confirm)).await;
                if connected_at.elapsed() >= STABLE_CONNECTION {
                    attempt = 0;
                }
                let stuck = matches!(end, Err(ConnectionEnd::ConfirmTimeout(_)));
                if stuck {
                    task.connector.avoid = Some(address);
                }
                without_confirm = if stuck && !task.outstanding.is_proven() { without_confirm + 1 } else { 0 };
            }
            Err(error) => {
                let is_permanent = error.is_permanent();
                if let Some(due) = CONNECT_FAILURES.occurred(is_permanent) {
                    let (error, repeated) = (chain(&error), due.repeated);
                    match is_permanent {
                        true => error!(error, attempt, repeated, "cannot connect for publishing"),
                        false => warn!(error, attempt, repeated, "cannot connect for publishing"),
                    }
                }
            }
        }
        task.wait_to_reconnect(backoff.wait(attempt, fastrand::f64())).await;
        attempt += 1;
    }
    task.finish();
}

/// Connects and opens the channel, in confirm mode.
async fn open(connector: &Connector) -> Result<Channel, ConnectError> {
    let mut channel = connector.open_channel("publish").await?;
    match channel.request(&Method::ConfirmSelect, reject_unexpected).await {
        Ok(_) => Ok(channel),
        Err(end) => Err(ConnectError::Lost(channel.close_after(end).await)),
    }
}

/// Opens the channel again, in confirm mode, after the broker has closed it.
async fn reopen(channel: &mut Channel) -> Result<(), ConnectionEnd> {
    channel.reopen().await?;
    channel.request(&Method::ConfirmSelect, reject_unexpected).await.map(|_| ())
}

/// How long confirms may take on one connection.
#[derive(Debug, Clone, Copy)]
struct ConfirmTimeouts {
    /// For one publication.
    one: Duration,
    /// Without any answer at all.
    any: Duration,
}

impl ConfirmTimeouts {
    /// `without_confirm`: how many connections in a row have confirmed nothing.
    fn new(connector: &Connector, without_confirm: u32) -> Self {
        let one = connector.broker.confirm_timeout;
        let any = if connector.has_several_addresses() { one.min(LEAVE_SILENT_NODE_AFTER) } else { one };
        let factor = 2_u32.pow(without_confirm.min(MAX_DOUBLINGS));
        ConfirmTimeouts { one: one * factor, any: any * factor }
    }
}

impl PublisherTask {
    /// Publishes on a new channel until its connection ends.
    async fn run_connection(&mut self, mut channel: Channel, timeouts: ConfirmTimeouts) -> Result<(), ConnectionEnd> {
        let connection = lifetime::next_number();
        self.outstanding.begin_connection();
        info!(connection, address = %channel.address, unconfirmed = self.outstanding.len(), "connected for publishing");
        (self.reconnect, self.connector.avoid, self.answered_at) = (false, None, None);
        *self.shared.address.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel.address.clone());
        self.shared.connection.store(connection, Ordering::Relaxed);
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        self.shared.connected.store(true, Ordering::Relaxed);
        // Another node may accept what the last one refused.
        self.shared.announce_acceptance();
        let served = loop {
            let served = self.serve(&mut channel, timeouts).await;
            let Err(end) = &served else { break served };
            self.reject_offending_publication(end);
            if matches!(end, ConnectionEnd::ChannelClosed { code: NOT_FOUND, .. }) {
                self.connector.redeclaration().not_found();
            }
            let refused = matches!(end, ConnectionEnd::ChannelClosed { code: 311 | 403 | NOT_FOUND | 406, .. });
            if !refused {
                break served;
            }
            // The connection is usable, so only the channel is opened again.
            debug!(connection, reason = %end, "opening the publishing channel again");
            if let Err(end) = reopen(&mut channel).await {
                break Err(end);
            }
            self.outstanding.begin_connection();
        };
        // What waits for its confirm also waits while there is no connection.
        self.observe_waiting(&channel.address);
        self.shared.connected.store(false, Ordering::Relaxed);
        self.shared.set_blocked(None);
        if let Err(reason) = &served {
            warn!(connection, %reason, unconfirmed = self.outstanding.len(), "publishing connection lost");
        }
        channel.close(served.as_ref().err()).await;
        served
    }

    /// Publishes until the connection ends or everything is confirmed and the publisher is closed.
    async fn serve(&mut self, channel: &mut Channel, timeouts: ConfirmTimeouts) -> Result<(), ConnectionEnd> {
        // Events that arrived together with the reply to `confirm.select`.
        self.receive(channel)?;
        let mut check = interval((timeouts.any / 8).clamp(Duration::from_millis(20), Duration::from_secs(1)));
        loop {
            if self.reconnect && self.outstanding.in_flight() == 0 {
                info!(address = %channel.address, "reconnecting, because the broker keeps refusing messages");
                self.connector.avoid = Some(channel.address.clone());
                return Ok(());
            }
            self.send(channel);
            if self.is_finished() {
                return Ok(());
            }
            tokio::select! {
                // In this order, because under load the last two are always ready: everything accepted before `drive_io` is
                // sent in one write. All branches are cancel-safe: `recv_many` takes nothing unless it completes, `drive_io` keeps
                // its progress, the others keep no state.
                biased;
                _ = check.tick() => {
                    // If this task did not run for a while, confirms that arrived meanwhile are handled first. The runtime may
                    // report the timer before the socket; yielding lets it report both.
                    tokio::task::yield_now().await;
                    if let Some(driven) = channel.drive_io().now_or_never() {
                        driven?;
                        self.receive(channel)?;
                    }
                    self.observe_waiting(&channel.address);
                    if let Some(oldest) = self.outstanding.oldest_sent() {
                        let silent_since = self.answered_at.map_or(oldest, |at| at.max(oldest));
                        if oldest.elapsed() > timeouts.one {
                            return Err(ConnectionEnd::ConfirmTimeout(timeouts.one));
                        }
                        if silent_since.elapsed() > timeouts.any {
                            return Err(ConnectionEnd::ConfirmTimeout(timeouts.any));
                        }
                    }
                }
                Some(closer) = self.closing.recv(), if self.closer.is_none() => self.begin_closing(closer),
                () = abandoned(&mut self.closer) => return Ok(()),
                Ok(()) = self.repairs.changed() => {
                    self.outstanding.try_rejected_again();
                    self.shared.announce_acceptance();
                }
                count = self.inbox.recv_many(&mut self.batches, BATCHES_AT_A_TIME), if !self.drained && !channel.is_full() => self.accept(count),
                driven = channel.drive_io() => {
                    driven?;
                    self.receive(channel)?;
                }
            }
        }
    }

    /// Queues on the channel what may be sent, until the channel is full.
    fn send(&mut self, channel: &mut Channel) {
        let mut now = None;
        let user_id = self.connector.users().own();
        while !channel.is_full() && !self.reconnect {
            let next = self.outstanding.next_to_send(*now.get_or_insert_with(Instant::now));
            let Some(publication) = next else { return };
            channel.publish(publication, &user_id);
        }
    }

    /// Handles the events that have arrived.
    fn receive(&mut self, channel: &mut Channel) -> Result<(), ConnectionEnd> {
        self.receive_all(channel)?;
        if self.outstanding.take_recovered() {
            self.shared.announce_acceptance();
        }
        Ok(())
    }

    fn receive_all(&mut self, channel: &mut Channel) -> Result<(), ConnectionEnd> {
        while let Some(event) = channel.next_event()? {
            match event {
                // The broker's numbers differ from ours, so no confirm can be trusted.
                ServerEvent::Confirmed { tag, .. } if !self.outstanding.has_sent(tag) => {
                    return Err(ConnectionEnd::Broken);
                }
                ServerEvent::Confirmed { tag, multiple, confirm } => {
                    if confirm == Confirm::Nack {
                        self.reconnect |= self.refusals.refused(Instant::now());
                    }
                    self.answered_at = Some(Instant::now());
                    let released = self.outstanding.confirmed(tag, multiple, confirm);
                    self.release(&released);
                }
                ServerEvent::Returned(returned) => {
                    self.connector.redeclaration().request();
                    self.outstanding.returned(returned);
                }
                ServerEvent::Blocked(reason) => {
                    let address = &channel.address;
                    warn!(%address, reason, "the broker has blocked publishing: it has an alarm");
                    self.shared.set_blocked(Some(reason));
                }
                ServerEvent::Unblocked => {
                    info!(address = %channel.address, "the broker has unblocked publishing");
                    self.shared.set_blocked(None);
                }
                ServerEvent::Ended(end) => return Err(end),
                ServerEvent::Delivered(_) | ServerEvent::Reply(_) | ServerEvent::ConnectionCloseOk => {
                    return Err(ConnectionEnd::Broken);
                }
            }
        }
        Ok(())
    }

    /// Notices, logs and publishes for the status that the broker has not confirmed anything for too long.
    fn observe_waiting(&mut self, address: &Address) {
        let oldest = self.outstanding.oldest_sent();
        let known = self.shared.waiting_since();
        let is_new = self.outstanding.is_proven() || known.is_none();
        let waiting_since = match (self.outstanding.is_empty(), is_new) {
            (true, _) => None,
            (false, true) => oldest,
            (false, false) => known,
        };
        self.shared.set_waiting_since(waiting_since);
        let waiting = waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
        let overdue = waiting >= CONFIRMS_OVERDUE;
        if overdue != self.overdue {
            self.overdue = overdue;
            let unconfirmed = self.outstanding.len();
            match overdue {
                true => warn!(%address, ?waiting, unconfirmed, "the broker does not confirm what is published to it"),
                false => info!(%address, unconfirmed, "the broker confirms again"),
            }
        }
    }

    fn release(&self, released: &ReleasedPermits) {
        if released.publications > 0 {
            self.shared.release(released.publications, released.bytes);
        }
    }

    fn accept(&mut self, count: usize) {
        self.drained = count == 0;
        let now = Instant::now();
        let mut released = ReleasedPermits::default();
        for batch in self.batches.drain(..) {
            released += self.outstanding.push(batch, now);
        }
        self.release(&released);
    }

    /// Accepts no more batches. Those already queued are still published.
    fn begin_closing(&mut self, closer: oneshot::Sender<usize>) {
        self.inbox.close();
        self.closer = Some(closer);
    }

    /// Whether there is nothing left to do and nothing more can arrive.
    fn is_finished(&mut self) -> bool {
        let abandoned = self.closer.as_ref().is_some_and(oneshot::Sender::is_closed);
        if abandoned || !self.drained {
            return abandoned;
        }
        self.outstanding.is_empty()
    }

    /// If the connection ended because of a publication, rejects it, once it is known which one it was.
    fn reject_offending_publication(&mut self, reason: &ConnectionEnd) {
        let Some((code, text)) = error_of_a_publication(reason) else { return };
        if is_refused_user(code, text)
            && let Some(user) = authenticated_user(text, &self.connector.users().own())
        {
            info!(user, "the broker knows orderd's user by this name");
            self.connector.users().set_own(user);
            return;
        }
        let released = self.outstanding.reject_in_flight(Instant::now(), |exchange, key| {
            if let Some(due) = CLOSES.occurred((exchange, key, code)) {
                let repeated = due.repeated;
                warn!(%exchange, routing_key = key, code, text, repeated, "the broker closed the channel because of a message");
            }
            publish_error(code, text, exchange, key)
        });
        self.release(&released);
    }

    /// Waits before the next connection attempt. Batches stay in the inbox.
    async fn wait_to_reconnect(&mut self, wait: Duration) {
        if self.is_finished() {
            return;
        }
        let pause = sleep(wait);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                // Cancel-safe: `pause` is kept over iterations, `recv` and `abandoned` keep no state.
                () = &mut pause => break,
                Some(closer) = self.closing.recv(), if self.closer.is_none() => self.begin_closing(closer),
                () = abandoned(&mut self.closer) => break,
            }
        }
        // A publisher that is closed while it has nothing to publish need not connect.
        while let Ok(batch) = self.inbox.try_recv() {
            let released = self.outstanding.push(batch, Instant::now());
            self.release(&released);
        }
        self.drained = self.inbox.is_closed() && self.inbox.is_empty();
    }

    /// Drops what is unconfirmed, so that its callers get [`PublishError::Closed`], and reports the close.
    fn finish(mut self) {
        self.shared.publications.close();
        self.shared.bytes.close();
        let unconfirmed = self.outstanding.len();
        self.outstanding = OutstandingConfirms::new();
        self.shared.set_waiting_since(None);
        info!(unconfirmed, "publisher closed");
        if let Some(closer) = self.closer.take() {
            let _ = closer.send(unconfirmed);
        }
    }
}

/// Resolves when the caller of a close stops waiting; never if no close was requested.
async fn abandoned(closer: &mut Option<oneshot::Sender<usize>>) {
    match closer {
        Some(closer) => closer.closed().await,
        None => std::future::pending().await,
    }
}

/// Reply code and text if the broker ended the connection because of a publication.
fn error_of_a_publication(reason: &ConnectionEnd) -> Option<(u16, &str)> {
    match reason {
        ConnectionEnd::ChannelClosed { code, text } => Some((*code, text)),
        // Frame error, syntax error, unexpected frame, not implemented. Other codes are not about a publication.
        ConnectionEnd::ConnectionClosed { code: code @ (501 | 502 | 505 | 540), text } => Some((*code, text)),
        ConnectionEnd::ConnectionClosed { .. }
        | ConnectionEnd::AckTimeout(_)
        | ConnectionEnd::Unanswered(_)
        | ConnectionEnd::ConsumerCancelled
        | ConnectionEnd::Broken
        | ConnectionEnd::Protocol { .. }
        | ConnectionEnd::WriteStalled
        | ConnectionEnd::NoReply { .. }
        | ConnectionEnd::ConfirmTimeout(_)
        | ConnectionEnd::Blocked(_)
        | ConnectionEnd::ClosedByUs => None,
    }
}

/// The error for the publication that made the broker close the channel.
fn publish_error(code: u16, text: &str, exchange: &Arc<str>, routing_key: &str) -> PublishError {
    let (exchange, routing_key) = (Arc::clone(exchange), routing_key.to_owned());
    let reply = format!("{code} {text}");
    match code {
        // The exchange does not exist.
        404 => PublishError::Unroutable { exchange, routing_key, reply },
        // Every publication states the same user, so this is no fault of the message.
        _ if is_refused_user(code, text) => PublishError::Refused { exchange, routing_key, reply },
        // Too large, an `expiration` that is not a number; and protocol errors.
        311 | 406 | 500.. => PublishError::Invalid { exchange, problem: reply },
        // For example 403: the user may not publish there, for now.
        _ => PublishError::Refused { exchange, routing_key, reply },
    }
}
