//! What the client library calls when a connection or channel ends.
//!
//! Notes the end in the epoch and nothing else: a request made from inside a callback would deadlock the
//! library's dispatcher.

use std::sync::Arc;

use amqprs::callbacks::{ChannelCallback, ConnectionCallback};
use amqprs::channel::Channel;
use amqprs::connection::Connection;
use amqprs::{Ack, BasicProperties, Cancel, Close, CloseChannel, Nack, Return};
use async_trait::async_trait;

use super::epoch::{EndOnDrop, Epoch, EpochEnd};

type Answer<T> = Result<T, amqprs::error::Error>;

/// Watches a connection.
pub(super) struct ConnectionWatch(EndOnDrop);

impl ConnectionWatch {
    pub fn new(epoch: &Arc<Epoch>) -> Self {
        ConnectionWatch(EndOnDrop(Arc::clone(epoch)))
    }
}

#[async_trait]
impl ConnectionCallback for ConnectionWatch {
    async fn close(&mut self, _: &Connection, close: Close) -> Answer<()> {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        self.0.0.end(EpochEnd::ConnectionClosed { code, text });
        Ok(())
    }

    // The client does not announce the capability, so the broker never sends these; confirm timeouts serve.
    async fn blocked(&mut self, _: &Connection, _: String) {}

    async fn unblocked(&mut self, _: &Connection) {}

    async fn secret_updated(&mut self, _: &Connection) {}
}

/// A publication that the broker sent back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Returned<'a> {
    /// Such as `312 NO_ROUTE`.
    pub reply: &'a str,
    pub exchange: &'a str,
    pub routing_key: &'a str,
    pub message_id: Option<&'a str>,
    pub body: &'a [u8],
}

/// Takes what the broker says about publications.
pub(super) trait Confirms: Send + 'static {
    /// `basic.ack` (`taken`) or `basic.nack` of one publication, or of all up to it.
    fn confirmed(&mut self, tag: u64, multiple: bool, taken: bool);
    /// `basic.return`: no queue for it. Its ack follows.
    fn returned(&mut self, returned: Returned<'_>);
}

/// For channels that publish nothing.
impl Confirms for () {
    fn confirmed(&mut self, _: u64, _: bool, _: bool) {}
    fn returned(&mut self, _: Returned<'_>) {}
}

/// Watches a channel and passes confirms on.
pub(super) struct ChannelWatch<C> {
    epoch: EndOnDrop,
    confirms: C,
}

impl<C: Confirms> ChannelWatch<C> {
    pub fn new(epoch: &Arc<Epoch>, confirms: C) -> Self {
        ChannelWatch { epoch: EndOnDrop(Arc::clone(epoch)), confirms }
    }
}

#[async_trait]
impl<C: Confirms> ChannelCallback for ChannelWatch<C> {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> Answer<()> {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        self.epoch.0.end(EpochEnd::ChannelClosed { code, text });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Answer<()> {
        self.epoch.0.end(EpochEnd::ConsumerCancelled);
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Answer<bool> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        self.confirms.confirmed(ack.delivery_tag(), ack.mutiple(), true);
    }

    async fn publish_nack(&mut self, _: &Channel, nack: Nack) {
        self.confirms.confirmed(nack.delivery_tag(), nack.multiple(), false);
    }

    async fn publish_return(&mut self, _: &Channel, ret: Return, properties: BasicProperties, body: Vec<u8>) {
        self.confirms.returned(Returned {
            reply: &format!("{} {}", ret.reply_code(), ret.reply_text()),
            exchange: ret.exchange(),
            routing_key: ret.routing_key(),
            message_id: properties.message_id().map(String::as_str),
            body: &body,
        });
    }
}
