//! A connection with its one channel, on which orderd publishes or consumes.
//!
//! Owns the bytes: collects what is to be sent, writes as much at a time as the socket takes, decodes what the broker sends,
//! and exchanges heartbeats. Never decides what is sent, nor how a server event is handled.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::assembler::{ContentAssembler, ServerEvent};
use super::content_header::put_content_header;
use super::encoding::ProtocolError;
use super::frame::{FRAME_OVERHEAD, Frame, FrameType, put_frame};
use super::handshake::{Connection, close_without_error};
use super::method::{Method, put_method};
use crate::amqp::lifetime::{ConnectionEnd, REPLY_TIMEOUT};
use crate::config::Address;
use crate::message::{HeaderValue, Publication, names};
use crate::telemetry::RepeatedLog;

/// The number of the one channel that orderd opens.
const CHANNEL: u16 = 1;
/// No more is published while this many bytes wait to be sent: a few hundred publications of the usual size. A single
/// larger publication is sent alone.
const SEND_BUFFER_LIMIT: usize = 64 * 1024;
/// A send buffer that grew beyond this many bytes is freed once it is empty.
const SHRINK_ABOVE: usize = 4 * SEND_BUFFER_LIMIT;
/// The largest frame that is accepted, in bytes. Larger than what is negotiated: when a producer's headers fill a whole
/// frame, RabbitMQ adds its own to them and still sends them in one frame.
const MAX_INCOMING_FRAME: usize = 512 * 1024;
/// Space reserved for each read, in bytes.
const READ_SIZE: usize = 16 * 1024;
/// How often heartbeats are checked. Heartbeat intervals are in whole seconds, and a connection survives one late
/// heartbeat, so this is often enough.
const HEARTBEAT_CHECK: Duration = Duration::from_secs(1);
/// How long the broker may take to answer a close. Short, because nothing depends on the answer, yet the next connection is
/// opened only after it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages whose headers do not fit a frame.
static HEADERS_CUT: RepeatedLog = RepeatedLog::new();

/// What a channel keeps in memory of what it receives, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveLimits {
    /// Of one body. Only the beginning of a longer one is kept.
    pub max_body: usize,
    /// Of all deliveries that are not released.
    pub max_held: usize,
}

/// A connection with its one channel. Dropping it closes the socket.
pub struct Channel {
    connection: Connection,
    assembler: ContentAssembler,
    /// The memory of the deliveries that are not released, in bytes.
    held: usize,
    /// While the next delivery would exceed this, nothing more is received. One that is larger is held alone.
    max_held: usize,
    /// Whether a reply is awaited. It comes after deliveries that are on their way, so that they must be received.
    requesting: bool,
    outgoing: BytesMut,
    /// Whether `outgoing` grew for a large publication, so that its memory is to be freed.
    shrink_after_flush: bool,
    /// Whether everything written has been flushed, which matters under TLS.
    flushed: bool,
    /// Whether nothing more can be sent because the broker has closed the connection. What it sent before that is still
    /// received.
    write_closed: bool,
    last_sent: Instant,
    last_received: Instant,
    heartbeat_check: Interval,
    /// The broker's address.
    pub address: Address,
    /// Whether nothing was received for a whole heartbeat interval, in which the broker sends two heartbeats.
    pub silent: Arc<AtomicBool>,
    /// Shared by all connections to this address, so that they can be counted.
    pub in_use: Option<Arc<()>>,
}

impl Channel {
    /// Opens the channel of a new connection to `address`.
    pub async fn open(
        connection: Connection,
        address: Address,
        limits: ReceiveLimits,
    ) -> Result<Channel, ConnectionEnd> {
        let (now, mut heartbeat_check) = (Instant::now(), interval(HEARTBEAT_CHECK));
        heartbeat_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut channel = Channel {
            connection,
            assembler: ContentAssembler::new(limits.max_body),
            held: 0,
            max_held: limits.max_held,
            requesting: false,
            outgoing: BytesMut::new(),
            shrink_after_flush: false,
            flushed: true,
            write_closed: false,
            last_sent: now,
            last_received: now,
            heartbeat_check,
            address,
            silent: Arc::default(),
            in_use: None,
        };
        match channel.request(&Method::ChannelOpen, reject_unexpected).await {
            Ok(_) => Ok(channel),
            Err(end) => Err(channel.close_after(end).await),
        }
    }

    /// Opens the channel again after the broker has closed it. The broker discards what was sent on it before.
    pub async fn reopen(&mut self) -> Result<(), ConnectionEnd> {
        self.assembler = ContentAssembler::new(self.assembler.max_body);
        self.send_method(&Method::ChannelCloseOk);
        self.request(&Method::ChannelOpen, reject_unexpected).await.map(|_| ())
    }

    /// Sends a request and waits for its reply, which it returns. `on_event` gets every event that comes before the reply,
    /// and may end the wait with an error.
    pub async fn request(
        &mut self,
        request: &Method<'_>,
        mut on_event: impl FnMut(ServerEvent) -> Result<(), ConnectionEnd>,
    ) -> Result<Method<'static>, ConnectionEnd> {
        self.send_method(request);
        let id = request.id();
        self.requesting = true;
        let replied = async {
            loop {
                while let Some(event) = self.next_event()? {
                    match event {
                        ServerEvent::Reply(reply) if reply.id() == id.reply() => return Ok(reply),
                        other => on_event(other)?,
                    }
                }
                self.drive_io().await?;
            }
        };
        let replied = timeout(REPLY_TIMEOUT, replied).await;
        self.requesting = false;
        replied.unwrap_or(Err(ConnectionEnd::NoReply { request: id.name() }))
    }

    /// Queues a method, which [`Channel::drive_io`] sends.
    pub fn send_method(&mut self, method: &Method<'_>) {
        put_method(&mut self.outgoing, CHANNEL, method);
    }

    /// Whether so much waits to be sent that no more should be published now.
    pub fn is_full(&self) -> bool {
        self.outgoing.len() >= SEND_BUFFER_LIMIT
    }

    /// Queues a publication, which [`Channel::drive_io`] sends. Its size must have been checked. If its headers do not fit a
    /// frame of this connection, because the broker's `frame_max` is below its default, the largest are left out. The broker
    /// refuses a `user_id` that is not the connection's user.
    pub fn publish(&mut self, publication: &Publication, user_id: &str) {
        let (max_frame, max_properties) = (self.connection.max_frame, max_properties(self.connection.max_frame));
        let max_properties = max_properties.saturating_sub(user_id.len() + 1);
        if publication.message.properties_len() > max_properties {
            let mut cut = publication.clone();
            cut.message.cut_headers(max_properties);
            if let Some(due) = HEADERS_CUT.occurred(()) {
                let names = cut.message.headers.get(names::HEADERS_DROPPED_NAMES).and_then(HeaderValue::as_text);
                let repeated = due.repeated;
                warn!(
                    max_frame,
                    names, repeated, "headers do not fit the broker's frame_max and are left out of a message"
                );
            }
            put_publication(&mut self.outgoing, &cut, user_id, max_frame);
        } else {
            put_publication(&mut self.outgoing, publication, user_id, max_frame);
        }
        self.shrink_after_flush |= self.outgoing.len() > SHRINK_ABOVE;
    }

    /// Sends and receives until something was received, everything is sent, or heartbeats were checked. To be called
    /// repeatedly. Cancel-safe: its progress is kept in `self`.
    pub async fn drive_io(&mut self) -> Result<(), ConnectionEnd> {
        poll_fn(|cx| {
            let sent = self.poll_send(cx);
            let received = self.poll_receive(cx).map_err(|error| broken(&error))?;
            let checked = self.heartbeat_check.poll_tick(cx);
            if checked.is_ready() {
                self.check_heartbeats()?;
            }
            let idle = sent.is_pending() && received.is_pending() && checked.is_pending();
            if idle { Poll::Pending } else { Poll::Ready(Ok(())) }
        })
        .await
    }

    /// Ready once everything is sent, if there was anything to send. A write error is not returned: reading fails too, but
    /// only after it has yielded what the broker sent before, which says why the broker closed the connection.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.write_closed || (self.outgoing.is_empty() && self.flushed) {
            return Poll::Pending;
        }
        self.write_closed = ready!(self.poll_write(cx)).is_err();
        if self.write_closed { Poll::Pending } else { Poll::Ready(()) }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.connection.stream).poll_write(cx, &self.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(written);
            self.flushed = false;
            self.last_sent = Instant::now();
        }
        if std::mem::take(&mut self.shrink_after_flush) {
            self.outgoing = BytesMut::new();
        }
        ready!(Pin::new(&mut self.connection.stream).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_paused() {
            // The broker may have sent heartbeats.
            self.last_received = Instant::now();
            return Poll::Pending;
        }
        let Connection { stream, incoming, .. } = &mut self.connection;
        incoming.reserve(READ_SIZE);
        if ready!(pin!(stream.read_buf(incoming)).poll(cx))? == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.last_received = Instant::now();
        Poll::Ready(Ok(()))
    }

    /// The next event among the bytes received so far, if it is complete.
    pub fn next_event(&mut self) -> Result<Option<ServerEvent>, ConnectionEnd> {
        self.decode().map_err(|ProtocolError(problem)| ConnectionEnd::Protocol { problem })
    }

    /// Whether nothing is received until deliveries are released.
    pub fn is_paused(&self) -> bool {
        !self.requesting && self.held > 0 && self.held + self.assembler.pending_bytes() > self.max_held
    }

    /// Gives back the memory of settled deliveries.
    pub fn release(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
    }

    fn decode(&mut self) -> Result<Option<ServerEvent>, ProtocolError> {
        while !self.is_paused()
            && let Some(frame) = Frame::parse(&self.connection.incoming, MAX_INCOMING_FRAME)?
        {
            let has_content = matches!(frame.kind, FrameType::Header | FrameType::Body);
            if frame.channel > CHANNEL || (frame.channel == 0 && has_content) {
                return Err(ProtocolError("a frame on a channel that is not open"));
            }
            let bounded = self.requesting && self.held > 0;
            self.assembler.room = if bounded { self.max_held.saturating_sub(self.held) } else { usize::MAX };
            let (event, length) = (self.assembler.accept(&frame)?, frame.len());
            self.connection.incoming.advance(length);
            if let Some(ServerEvent::Delivered(delivered)) = &event {
                self.held += delivered.memory;
            }
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Keeps an idle connection alive, and notices a dead one.
    fn check_heartbeats(&mut self) -> Result<(), ConnectionEnd> {
        let heartbeat = self.connection.heartbeat;
        if heartbeat.is_zero() {
            return Ok(());
        }
        let silent = self.last_received.elapsed() > heartbeat && !self.is_paused();
        self.silent.store(silent, Ordering::Relaxed);
        // After two missed heartbeats, as RabbitMQ does.
        if self.last_received.elapsed() > heartbeat * 2 {
            return Err(broken(&"nothing was received for two heartbeats"));
        }
        if self.last_sent.elapsed() >= heartbeat / 2 && self.outgoing.is_empty() {
            put_frame(&mut self.outgoing, FrameType::Heartbeat, 0, |_| {});
        }
        Ok(())
    }

    /// Closes the connection, and waits for the broker's answer, but not for long. Before this, publications must have been
    /// confirmed, and settlements must be known to have arrived. `end`: why the connection has already ended, if it has.
    pub async fn close(mut self, end: Option<&ConnectionEnd>) {
        match end {
            Some(ConnectionEnd::ConnectionClosed { .. }) => self.send_on_connection(&Method::ConnectionCloseOk),
            Some(ConnectionEnd::ChannelClosed { .. } | ConnectionEnd::AckTimeout(_)) => {
                self.send_method(&Method::ChannelCloseOk);
                self.send_on_connection(&close_without_error());
            }
            None | Some(ConnectionEnd::ConsumerCancelled) => self.send_on_connection(&close_without_error()),
            Some(
                ConnectionEnd::Broken
                | ConnectionEnd::NoReply { .. }
                | ConnectionEnd::Protocol { .. }
                | ConnectionEnd::Unanswered(_)
                | ConnectionEnd::WriteStalled
                | ConnectionEnd::ConfirmTimeout(_)
                | ConnectionEnd::Blocked(_)
                | ConnectionEnd::ClosedByUs,
            ) => return,
        }
        let _ = timeout(CLOSE_TIMEOUT, self.await_close_ok()).await;
    }

    /// Closes a connection that ended while it was being set up, and returns why it ended.
    pub async fn close_after(self, end: ConnectionEnd) -> ConnectionEnd {
        self.close(Some(&end)).await;
        end
    }

    fn send_on_connection(&mut self, method: &Method<'_>) {
        put_method(&mut self.outgoing, 0, method);
    }

    /// Waits until the broker has sent its close-ok or has closed the socket.
    async fn await_close_ok(mut self) -> Result<(), ConnectionEnd> {
        loop {
            self.drive_io().await?;
            while let Some(event) = self.next_event()? {
                if event == ServerEvent::ConnectionCloseOk {
                    let _ = self.connection.stream.shutdown().await;
                    return Ok(());
                }
            }
        }
    }
}

/// Handles an event at a time when only a reply, or the end of the connection, is expected.
pub fn reject_unexpected(event: ServerEvent) -> Result<(), ConnectionEnd> {
    match event {
        ServerEvent::Ended(end) => Err(end),
        // Only publishing is affected, and its confirms show when it continues.
        ServerEvent::Blocked(_) | ServerEvent::Unblocked => Ok(()),
        ServerEvent::Confirmed { .. }
        | ServerEvent::Returned(_)
        | ServerEvent::Delivered(_)
        | ServerEvent::Reply(_)
        | ServerEvent::ConnectionCloseOk => Err(broken(&"the broker sent an unexpected method")),
    }
}

/// Logs the cause, which [`ConnectionEnd::Broken`] does not contain.
pub fn broken(cause: &dyn Display) -> ConnectionEnd {
    debug!(%cause, "the connection is no longer usable");
    ConnectionEnd::Broken
}

/// The most that properties and headers may take in one frame, in bytes.
fn max_properties(max_frame: usize) -> usize {
    max_frame - (max_frame / 32).min(1024)
}

/// Appends `basic.publish` with its content, the body in frames of at most `max_frame` bytes.
fn put_publication(out: &mut BytesMut, publication: &Publication, user_id: &str, max_frame: usize) {
    let Publication { exchange, routing_key, message } = publication;
    let (exchange, routing_key) = (Cow::Borrowed(&**exchange), Cow::Borrowed(routing_key.as_str()));
    // Mandatory: the broker returns what no queue receives.
    put_method(out, CHANNEL, &Method::BasicPublish { exchange, routing_key, mandatory: true });
    put_content_header(out, CHANNEL, message, Some(user_id));
    // At once: a buffer that doubles would take twice the memory of a large body.
    out.reserve(message.body.len() + (message.body.len() / max_frame + 1) * 2 * FRAME_OVERHEAD);
    for part in message.body.chunks(max_frame - FRAME_OVERHEAD) {
        put_frame(out, FrameType::Body, CHANNEL, |out| out.put_slice(part));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Message;

    /// The kind and the payload of each frame.
    fn frames(message: Message, max_frame: usize) -> Vec<(FrameType, Vec<u8>)> {
        let publication = Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message };
        let (mut out, mut frames) = (BytesMut::new(), Vec::new());
        put_publication(&mut out, &publication, "orderd", max_frame);
        while let Some(frame) = Frame::parse(&out, max_frame).unwrap() {
            assert_eq!(frame.channel, 1);
            frames.push((frame.kind, frame.payload.to_vec()));
            let _ = out.split_to(frame.len());
        }
        assert!(out.is_empty(), "an incomplete frame");
        frames
    }

    #[test]
    fn every_publication_is_mandatory() {
        let frames = frames(Message::default(), 4096);
        assert_eq!(frames[0], (FrameType::Method, b"\0\x3c\0\x28\0\0\x06orders\x10order.normal.new\x01".to_vec()));
        assert_eq!(frames[1].1[..12], [&[0, 60, 0, 0][..], &0_u64.to_be_bytes()].concat());
        assert_eq!(frames.len(), 2, "an empty body has no frame");
    }

    #[test]
    fn a_body_is_split_into_frames_of_the_negotiated_size() {
        let body = Bytes::from((0..=255).cycle().take(10_000).collect::<Vec<u8>>());
        let frames = frames(Message { body: body.clone(), ..Message::default() }, 4096);
        assert_eq!(frames[1].1[4..12], 10_000_u64.to_be_bytes());
        let sizes: Vec<_> = frames[2..].iter().map(|(kind, payload)| (*kind, payload.len())).collect();
        assert_eq!(sizes, [(FrameType::Body, 4088), (FrameType::Body, 4088), (FrameType::Body, 1824)]);
        assert_eq!(frames[2..].iter().flat_map(|(_, payload)| payload.clone()).collect::<Vec<_>>(), body);
    }
}
