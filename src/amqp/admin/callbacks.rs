//! Callbacks that the client library calls when a channel ends. The relay notices the end of a connection.
//!
//! They record the end in the lifetime and never do anything else: a request made inside a callback would deadlock the
//! library's dispatcher.

use std::sync::Arc;

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::Channel;
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, Nack, Return};
use async_trait::async_trait;

use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime, EndOnDrop};

type CallbackResult<T> = Result<T, amqprs::error::Error>;

/// Ends a lifetime when its channel ends. The channel neither publishes nor consumes.
pub struct ChannelWatch(EndOnDrop);

impl ChannelWatch {
    pub fn new(lifetime: &Arc<ConnectionLifetime>) -> Self {
        ChannelWatch(EndOnDrop(Arc::clone(lifetime)))
    }
}

#[async_trait]
impl ChannelCallback for ChannelWatch {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> CallbackResult<()> {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        self.0.0.end(ConnectionEnd::ChannelClosed { code, text });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> CallbackResult<()> {
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> CallbackResult<bool> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, _: Ack) {}

    async fn publish_nack(&mut self, _: &Channel, _: Nack) {}

    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}
