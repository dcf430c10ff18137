//! A connection with its one channel, on which orderd speaks AMQP itself: to publish or to consume.
//!
//! Owns the bytes: it collects what is said, sends as much at a time as the network takes, and reads what the broker says.
//! Never decides what is said, or what becomes of what is heard, except heartbeats.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::connect::{ConnectError, Connector};
use super::content::put_properties;
use super::decode::{CHANNEL_CLOSE, CHANNEL_OPEN, Ear, Heard, answer_to};
use super::epoch::{ANSWER_TIMEOUT, ConnectionEnd};
use super::frame::{AROUND, BODY, Frame, HEADER, HEARTBEAT, Malformed, Method, put_frame, put_method, put_short};
use super::handshake::{CLOSE, CLOSE_OK, Session, put_goodbye};
use crate::config::Address;
use crate::message::Publication;

const CHANNEL: u16 = 1;
const PUBLISH: Method = (60, 40);
/// The broker returns what no queue takes.
const MANDATORY: u8 = 1;

/// What may wait to be sent before no more is taken, in bytes: a few hundred publications of the usual size. One that is
/// larger waits alone.
const FULL: usize = 64 * 1024;
/// The largest frame that is taken in, in bytes. It may exceed what was agreed on: RabbitMQ adds headers of its own to those
/// that a producer filled a frame with, and sends them in one all the same.
const LARGEST: usize = 512 * 1024;
/// Room made for each read, in bytes.
const READ: usize = 16 * 1024;
/// How often heartbeats are looked at. They are whole seconds, and a connection lives through one that is late.
const LOOK: Duration = Duration::from_secs(1);
/// How long the broker may take to agree that a connection ends. Nothing depends on it, and the next one waits.
const GOODBYE: Duration = Duration::from_secs(2);

/// See the module. Dropping it hangs up.
pub(super) struct Channel {
    session: Session,
    ear: Ear,
    outgoing: BytesMut,
    /// Whether it has grown for a large publication, and is to be given back.
    swollen: bool,
    /// Whether all that was written is on its way, as far as TLS is concerned.
    flushed: bool,
    /// Whether nothing can be sent any more: the broker has hung up, and what it said before is still to be heard.
    mute: bool,
    /// When something last went out, or came in.
    sent: Instant,
    heard: Instant,
    look: Interval,
    /// Where it leads.
    pub address: Address,
}

impl Channel {
    /// Connects and opens the channel.
    pub async fn open(link: &Connector, purpose: &str) -> Result<Channel, ConnectError> {
        let (session, address) = link.session(purpose).await?;
        let (ear, outgoing, now, mut look) = (Ear::default(), BytesMut::new(), Instant::now(), interval(LOOK));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (swollen, flushed, mute, sent, heard) = (false, true, false, now, now);
        let mut channel = Channel { session, ear, outgoing, swollen, flushed, mute, sent, heard, look, address };
        match channel.ask("channel.open", CHANNEL_OPEN, |out| put_short(out, ""), nothing).await {
            Ok(_) => Ok(channel),
            Err(end) => Err(channel.give_up(end).await),
        }
    }

    /// Asks for something and waits for the answer, of which it returns the arguments. What is heard before goes aside,
    /// which may end the waiting.
    pub async fn ask(
        &mut self,
        request: &'static str,
        method: Method,
        fill: impl FnOnce(&mut BytesMut),
        mut aside: impl FnMut(Heard) -> Result<(), ConnectionEnd>,
    ) -> Result<Vec<u8>, ConnectionEnd> {
        self.say(method, fill);
        let asking = async {
            loop {
                while let Some(heard) = self.next()? {
                    match heard {
                        Heard::Answered(answer, arguments) if answer == answer_to(method) => return Ok(arguments),
                        other => aside(other)?,
                    }
                }
                self.exchange().await?;
            }
        };
        timeout(ANSWER_TIMEOUT, asking).await.unwrap_or(Err(ConnectionEnd::NoAnswer { request }))
    }

    /// Collects a method, for [`Channel::exchange`] to send.
    pub fn say(&mut self, method: Method, fill: impl FnOnce(&mut BytesMut)) {
        put_method(&mut self.outgoing, CHANNEL, method, fill);
    }

    /// Whether so much waits to be sent that no more should be published now.
    pub fn is_full(&self) -> bool {
        self.outgoing.len() >= FULL
    }

    /// Collects a publication, for [`Channel::exchange`] to send. It has been measured before.
    pub fn publish(&mut self, publication: &Publication) {
        put_publication(&mut self.outgoing, publication, self.session.max_frame);
        self.swollen |= self.outgoing.len() > 4 * FULL;
    }

    /// Sends and receives until something has come in, or all is sent, or it is time to look after heartbeats. To be called
    /// again and again. Cancel-safe: what it has done is kept.
    pub async fn exchange(&mut self) -> Result<(), ConnectionEnd> {
        poll_fn(|cx| {
            let sent = self.poll_send(cx);
            let received = self.poll_receive(cx).map_err(|error| broke(&error))?;
            let looked = self.look.poll_tick(cx);
            if looked.is_ready() {
                self.beat()?;
            }
            let idle = sent.is_pending() && received.is_pending() && looked.is_pending();
            if idle { Poll::Pending } else { Poll::Ready(Ok(())) }
        })
        .await
    }

    /// Ready once all is sent, if there was anything. A failure is left to receiving, which meets it as well, but behind
    /// what the broker said first: why it hangs up.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.mute || (self.outgoing.is_empty() && self.flushed) {
            return Poll::Pending;
        }
        self.mute = ready!(self.poll_write(cx)).is_err();
        if self.mute { Poll::Pending } else { Poll::Ready(()) }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.session.stream).poll_write(cx, &self.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(written);
            self.flushed = false;
            self.sent = Instant::now();
        }
        if std::mem::take(&mut self.swollen) {
            self.outgoing = BytesMut::new();
        }
        ready!(Pin::new(&mut self.session.stream).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Session { stream, incoming, .. } = &mut self.session;
        incoming.reserve(READ);
        if ready!(pin!(stream.read_buf(incoming)).poll(cx))? == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.heard = Instant::now();
        Poll::Ready(Ok(()))
    }

    /// The next thing the broker has said, if it is here.
    pub fn next(&mut self) -> Result<Option<Heard>, ConnectionEnd> {
        self.read().map_err(|error: Malformed| broke(&error))
    }

    fn read(&mut self) -> Result<Option<Heard>, Malformed> {
        let Session { incoming, .. } = &mut self.session;
        while let Some(frame) = Frame::first(incoming, LARGEST)? {
            let (heard, length) = (self.ear.hear(&frame)?, frame.len());
            incoming.advance(length);
            if heard.is_some() {
                return Ok(heard);
            }
        }
        Ok(None)
    }

    /// Keeps a silent connection alive, and notices a dead one.
    fn beat(&mut self) -> Result<(), ConnectionEnd> {
        let heartbeat = self.session.heartbeat;
        if heartbeat.is_zero() {
            return Ok(());
        }
        // Two heartbeats missed, as RabbitMQ counts them too.
        if self.heard.elapsed() > heartbeat * 2 {
            return Err(broke(&"nothing was heard for two heartbeats"));
        }
        if self.sent.elapsed() >= heartbeat / 2 && self.outgoing.is_empty() {
            put_frame(&mut self.outgoing, HEARTBEAT, 0, |_| {});
        }
        Ok(())
    }

    /// Ends the connection in agreement with the broker, as well as may be. What was published must have been confirmed
    /// before, and what was settled be known to have arrived. `end`: what the broker has ended, if it was the broker.
    pub async fn close(mut self, end: Option<&ConnectionEnd>) {
        match end {
            Some(ConnectionEnd::ConnectionClosed { .. }) => put_method(&mut self.outgoing, 0, CLOSE_OK, |_| {}),
            Some(ConnectionEnd::ChannelClosed { .. }) => {
                self.say(answer_to(CHANNEL_CLOSE), |_| {});
                put_method(&mut self.outgoing, 0, CLOSE, put_goodbye);
            }
            None | Some(ConnectionEnd::ConsumerCancelled) => put_method(&mut self.outgoing, 0, CLOSE, put_goodbye),
            Some(_) => return,
        }
        let _ = timeout(GOODBYE, self.agree()).await;
    }

    /// Ends a connection that came to its end while it was being set up.
    pub async fn give_up(self, end: ConnectionEnd) -> ConnectError {
        self.close(Some(&end)).await;
        ConnectError::Lost(end)
    }

    /// Waits until the broker has hung up or agrees that we do.
    async fn agree(mut self) -> Result<(), ConnectionEnd> {
        loop {
            self.exchange().await?;
            while let Some(heard) = self.next()? {
                if heard == Heard::Agreed {
                    let _ = self.session.stream.shutdown().await;
                    return Ok(());
                }
            }
        }
    }
}

/// Takes in what is heard where nothing but an answer or the end may be.
pub(super) fn nothing(heard: Heard) -> Result<(), ConnectionEnd> {
    match heard {
        Heard::Ended(end) => Err(end),
        Heard::Confirmed { .. } | Heard::Returned(_) | Heard::Delivered(_) | Heard::Answered(..) | Heard::Agreed => {
            Err(broke(&"something that nobody asked for"))
        }
    }
}

/// For whoever searches the network for what the end of the epoch does not tell.
pub(super) fn broke(why: &dyn Display) -> ConnectionEnd {
    debug!(%why, "the connection is of no more use");
    ConnectionEnd::Broke
}

/// Appends `basic.publish` with its content, the body in frames of at most `max_frame` bytes.
fn put_publication(out: &mut BytesMut, publication: &Publication, max_frame: usize) {
    let Publication { exchange, routing_key, message } = publication;
    put_method(out, CHANNEL, PUBLISH, |out| {
        // Reserved.
        out.put_u16(0);
        put_short(out, exchange);
        put_short(out, routing_key);
        out.put_u8(MANDATORY);
    });
    put_frame(out, HEADER, CHANNEL, |out| {
        out.put_u16(PUBLISH.0);
        // Reserved.
        out.put_u16(0);
        out.put_u64(message.body.len() as u64);
        put_properties(out, message);
    });
    for part in message.body.chunks(max_frame - AROUND) {
        put_frame(out, BODY, CHANNEL, |out| out.put_slice(part));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::amqp::frame::METHOD;
    use crate::message::Message;

    /// The kind and the payload of each frame.
    fn frames(message: Message, max_frame: usize) -> Vec<(u8, Vec<u8>)> {
        let publication = Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message };
        let (mut out, mut frames) = (BytesMut::new(), Vec::new());
        put_publication(&mut out, &publication, max_frame);
        while let Some(frame) = Frame::first(&out, max_frame).unwrap() {
            assert_eq!(frame.channel, 1);
            frames.push((frame.kind, frame.payload.to_vec()));
            let _ = out.split_to(frame.len());
        }
        assert!(out.is_empty(), "half a frame");
        frames
    }

    #[test]
    fn everything_published_is_mandatory() {
        let frames = frames(Message::default(), 4096);
        assert_eq!(frames[0], (METHOD, b"\0\x3c\0\x28\0\0\x06orders\x10order.normal.new\x01".to_vec()));
        assert_eq!(frames[1].1[..12], [&[0, 60, 0, 0][..], &0_u64.to_be_bytes()].concat());
        assert_eq!(frames.len(), 2, "an empty body has no frame");
    }

    #[test]
    fn a_body_is_cut_into_frames_that_the_broker_takes() {
        let body = Bytes::from((0..=255).cycle().take(10_000).collect::<Vec<u8>>());
        let frames = frames(Message { body: body.clone(), ..Message::default() }, 4096);
        assert_eq!(frames[1].1[4..12], 10_000_u64.to_be_bytes());
        let sizes: Vec<_> = frames[2..].iter().map(|(kind, payload)| (*kind, payload.len())).collect();
        assert_eq!(sizes, [(BODY, 4088), (BODY, 4088), (BODY, 1824)]);
        assert_eq!(frames[2..].iter().flat_map(|(_, payload)| payload.clone()).collect::<Vec<_>>(), body);
    }
}
