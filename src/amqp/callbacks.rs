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

use super::epoch::{ConnectionEnd, EndOnDrop, Epoch};

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
        self.0.0.end(ConnectionEnd::ConnectionClosed { code, text });
        Ok(())
    }

    // The client does not announce the capability, so the broker never sends these.
    async fn blocked(&mut self, _: &Connection, _: String) {}

    async fn unblocked(&mut self, _: &Connection) {}

    async fn secret_updated(&mut self, _: &Connection) {}
}

/// Watches a channel that neither publishes nor consumes.
pub(super) struct ChannelWatch(EndOnDrop);

impl ChannelWatch {
    pub fn new(epoch: &Arc<Epoch>) -> Self {
        ChannelWatch(EndOnDrop(Arc::clone(epoch)))
    }
}

#[async_trait]
impl ChannelCallback for ChannelWatch {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> Answer<()> {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        self.0.0.end(ConnectionEnd::ChannelClosed { code, text });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Answer<()> {
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Answer<bool> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, _: Ack) {}

    async fn publish_nack(&mut self, _: &Channel, _: Nack) {}

    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}
