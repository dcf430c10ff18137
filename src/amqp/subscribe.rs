//! Subscribing: a connection of its own for each, so that what ends one subscription stops no other queue.
//!
//! Owns the way to a subscription, and its stream of deliveries. Never settles anything.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BufMut;
use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::info;

use super::channel::{Channel, nothing};
use super::connect::{ConnectError, Connector, SHORT_STRING};
use super::decode::{CONSUME, QOS};
use super::epoch::{ConnectionEnd, Epoch};
use super::frame::put_short;
use super::settle::{ChannelSettler, Subscribed};
use crate::chain::chain;
use crate::instance;
use crate::message::{Consumer, Delivery, SubscribeError, Subscription};

impl Consumer for Connector {
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        let queue = queue.to_owned();
        Box::pin(async move {
            match subscribe(self, &queue, prefetch).await {
                Ok(subscription) => Ok(subscription),
                Err(error) => {
                    self.note(Some(chain(&error)));
                    Err(SubscribeError { queue, source: Box::new(error) })
                }
            }
        })
    }
}

async fn subscribe(link: &Connector, queue: &str, prefetch: u16) -> Result<Subscription, ConnectError> {
    if queue.len() > SHORT_STRING {
        return Err(ConnectError::Invalid { problem: format!("the queue's name has {} bytes", queue.len()) });
    }
    // 0 would mean no limit, and all that is handed out is taken in.
    let prefetch = prefetch.max(1);
    let epoch = Epoch::begin();
    let consumer_tag = format!("{}{}", instance::tag_prefix(), epoch.number);
    let mut channel = Channel::open(link, &format!("consume {queue}")).await?;
    if let Err(end) = consume(&mut channel, queue, prefetch, &consumer_tag).await {
        return Err(channel.give_up(end).await);
    }
    info!(queue, epoch = epoch.number, address = %channel.address, prefetch, "subscribed");
    let subscribed = Subscribed { queue: queue.to_owned(), consumer_tag, prefetch };
    let (settler, handed_out) = ChannelSettler::spawn(channel, Arc::clone(&epoch), subscribed);
    let over = Box::pin(epoch.over_owned());
    let deliveries = Deliveries { handed_out, epoch, over };
    Ok(Subscription { deliveries: Box::pin(deliveries), settler: Arc::new(settler) })
}

async fn consume(channel: &mut Channel, queue: &str, prefetch: u16, consumer_tag: &str) -> Result<(), ConnectionEnd> {
    let qos = channel.ask(
        "basic.qos",
        QOS,
        |out| {
            // No limit in bytes, which RabbitMQ does not have; and for the consumers to come, not for the channel.
            out.put_u32(0);
            out.put_u16(prefetch);
            out.put_u8(0);
        },
        nothing,
    );
    qos.await?;
    let consuming = channel.ask(
        "basic.consume",
        CONSUME,
        |out| {
            // Reserved.
            out.put_u16(0);
            put_short(out, queue);
            put_short(out, consumer_tag);
            // With acknowledgements, not exclusive, with an answer.
            out.put_u8(0);
            // No arguments.
            out.put_u32(0);
        },
        nothing,
    );
    consuming.await.map(drop)
}

/// The deliveries of one epoch, which the prefetch bounds.
struct Deliveries {
    handed_out: UnboundedReceiver<Delivery>,
    epoch: Arc<Epoch>,
    /// Wakes the stream at the end of the epoch; polled only when there is nothing to yield.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for Deliveries {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        // What a past epoch has left in the queue, the broker hands out again.
        if self.epoch.is_over() {
            return Poll::Ready(None);
        }
        match self.handed_out.poll_recv(cx) {
            Poll::Pending => self.over.as_mut().poll(cx).map(|()| None),
            ready => ready,
        }
    }
}
