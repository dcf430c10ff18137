//! The channel that publications go out on, and its connection.
//!
//! Owns the bytes: it collects what is published, sends as much at a time as the network takes, and reads what the broker
//! says. Never decides what is published, or what becomes of it.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::decode::{Ear, Heard};
use super::encode::put_publication;
use crate::amqp::connect::{ConnectError, Link};
use crate::amqp::epoch::{ANSWER_TIMEOUT, EpochEnd};
use crate::amqp::frame::{Frame, HEARTBEAT, Malformed, Method, put_frame, put_method, put_short};
use crate::amqp::handshake::{CLOSE, CLOSE_OK, Refusal, Session, put_goodbye};
use crate::config::Address;
use crate::message::Publication;

const CHANNEL: u16 = 1;
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE_OK: Method = (20, 41);
const CONFIRM_SELECT: Method = (85, 10);
const CONFIRM_SELECT_OK: Method = (85, 11);

/// What may wait to be sent before no more is taken, in bytes: a few hundred publications of the usual size. One that is
/// larger waits alone.
const FULL: usize = 64 * 1024;
/// Room made for each read, in bytes.
const READ: usize = 16 * 1024;
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
    /// Where it leads.
    pub address: Address,
}

impl Channel {
    /// Connects and opens the channel, in confirm mode.
    pub async fn open(link: &Link) -> Result<Channel, ConnectError> {
        let (mut session, address) = link.session("publish").await?;
        let mut request = "channel.open";
        let opening = async {
            session.ask(CHANNEL, CHANNEL_OPEN, |out| put_short(out, ""), CHANNEL_OPEN_OK).await?;
            request = "confirm.select";
            session.ask(CHANNEL, CONFIRM_SELECT, |out| out.put_u8(0), CONFIRM_SELECT_OK).await
        };
        let end = match timeout(ANSWER_TIMEOUT, opening).await {
            Ok(Ok(())) => {
                let (ear, outgoing, now) = (Ear::default(), BytesMut::new(), Instant::now());
                let (swollen, flushed, mute, sent, heard) = (false, true, false, now, now);
                return Ok(Channel { session, ear, outgoing, swollen, flushed, mute, sent, heard, address });
            }
            Ok(Err(Refusal::Refused { code, text })) => EpochEnd::ConnectionClosed { code, text },
            Ok(Err(_)) => EpochEnd::Broke,
            Err(_) => EpochEnd::NoAnswer { request },
        };
        Err(ConnectError::Lost(end))
    }

    /// Whether so much waits to be sent that no more should be published now.
    pub fn is_full(&self) -> bool {
        self.outgoing.len() >= FULL
    }

    /// Collects a publication, for [`Channel::exchange`] to send.
    pub fn publish(&mut self, publication: &Publication) {
        put_publication(&mut self.outgoing, CHANNEL, publication, self.session.max_frame);
        self.swollen |= self.outgoing.len() > 4 * FULL;
    }

    /// Sends and receives until something has come in, or all is sent. Cancel-safe: what it has done is kept.
    pub async fn exchange(&mut self) -> Result<(), EpochEnd> {
        let exchanged = poll_fn(|cx| {
            let (sent, received) = (self.poll_send(cx), self.poll_receive(cx)?);
            if sent.is_ready() || received.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        exchanged.await.map_err(|error: io::Error| broke(&error))
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
    pub fn next(&mut self) -> Result<Option<Heard>, EpochEnd> {
        self.read().map_err(|error: Malformed| broke(&error))
    }

    fn read(&mut self) -> Result<Option<Heard>, Malformed> {
        let Session { incoming, max_frame, .. } = &mut self.session;
        while let Some(frame) = Frame::first(incoming, *max_frame)? {
            let (heard, length) = (self.ear.hear(&frame)?, frame.len());
            incoming.advance(length);
            if heard.is_some() {
                return Ok(heard);
            }
        }
        Ok(None)
    }

    /// Keeps a silent connection alive, and notices a dead one. To be called at least once a second: heartbeats are whole
    /// seconds, and a connection lives through one that is late.
    pub fn beat(&mut self) -> Result<(), EpochEnd> {
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
    /// before. `end`: what the broker has ended, if it was the broker.
    pub async fn close(mut self, end: Option<&EpochEnd>) {
        match end {
            Some(EpochEnd::ConnectionClosed { .. }) => put_method(&mut self.outgoing, 0, CLOSE_OK, |_| {}),
            Some(EpochEnd::ChannelClosed { .. }) => {
                put_method(&mut self.outgoing, CHANNEL, CHANNEL_CLOSE_OK, |_| {});
                put_method(&mut self.outgoing, 0, CLOSE, put_goodbye);
            }
            None => put_method(&mut self.outgoing, 0, CLOSE, put_goodbye),
            Some(_) => return,
        }
        let _ = timeout(GOODBYE, self.agree()).await;
    }

    /// Waits until the broker has hung up or agrees that we do.
    async fn agree(mut self) -> Result<(), EpochEnd> {
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

/// For whoever searches the network for what the end of the epoch does not tell.
fn broke(why: &dyn Display) -> EpochEnd {
    debug!(%why, "the publishing connection is of no more use");
    EpochEnd::Broke
}
