//! Subscribing: each subscription has a connection of its own, so that losing one does not affect the others.
//!
//! Owns the start of a subscription and its stream of deliveries. Never settles anything.
//!
//! ```text
//! broker ─► receiver.rs (the task that owns the connection) ─► Deliveries ─► workers
//! broker ◄─ receiver.rs ◄─ ack_window.rs (few frames) ◄─ settler.rs (settlements recorded by workers)
//! ```

mod ack_window;
mod answer_check;
mod closing;
mod receiver;
mod settler;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::info;

use super::connect::Connector;
use super::connect_error::ConnectError;
use super::lifetime::{ConnectionEnd, ConnectionLifetime};
use super::protocol::{Channel, MAX_SHORT_STRING, Method, reject_unexpected};
use crate::chain::chain;
use crate::instance;
use crate::message::{Consumer, Delivery, SubscribeError, Subscription};
use receiver::SubscriptionSettings;

impl Consumer for Connector {
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        let queue = queue.to_owned();
        Box::pin(async move {
            let mut subscribed = subscribe(self, &queue, prefetch).await;
            if subscribed.as_ref().is_err_and(ConnectError::is_not_found)
                && self.redeclaration().not_found_and_wait().await
            {
                subscribed = subscribe(self, &queue, prefetch).await;
            }
            match subscribed {
                Ok(subscription) => Ok(subscription),
                Err(error) => {
                    self.record_error(Some(chain(&error)));
                    Err(SubscribeError { queue, source: Box::new(error) })
                }
            }
        })
    }
}

async fn subscribe(connector: &Connector, queue: &str, prefetch: u16) -> Result<Subscription, ConnectError> {
    if queue.len() > MAX_SHORT_STRING {
        return Err(ConnectError::Invalid { problem: format!("the queue's name has {} bytes", queue.len()) });
    }
    // 0 would mean no limit, and everything delivered is kept in memory.
    let prefetch = prefetch.max(1);
    let lifetime = ConnectionLifetime::begin();
    let consumer_tag = format!("{}{}", instance::tag_prefix(), lifetime.number);
    let mut channel = connector.open_channel(&format!("consume {queue}")).await?;
    if let Err(end) = start_consumer(&mut channel, queue, prefetch, &consumer_tag).await {
        // A refusal closes the channel. Everything else is the node's trouble, and another node may have none.
        if !matches!(end, ConnectionEnd::ChannelClosed { .. }) {
            connector.record_unusable(&channel.address);
        }
        return Err(ConnectError::Lost(channel.close_after(end).await));
    }
    info!(queue, connection = lifetime.number, address = %channel.address, prefetch, "subscribed");
    let (address, silent) = (channel.address.to_string().into(), Arc::clone(&channel.silent));
    let settings = SubscriptionSettings { queue: queue.to_owned(), consumer_tag, prefetch };
    let (settler, received) = receiver::spawn(channel, Arc::clone(&lifetime), settings);
    let ended = Box::pin(lifetime.ended_owned());
    let deliveries = Deliveries { received, lifetime, ended };
    Ok(Subscription { deliveries: Box::pin(deliveries), settler: Arc::new(settler), address, silent })
}

async fn start_consumer(
    channel: &mut Channel,
    queue: &str,
    prefetch: u16,
    consumer_tag: &str,
) -> Result<(), ConnectionEnd> {
    channel.request(&Method::BasicQos { prefetch_count: prefetch }, reject_unexpected).await?;
    let consume = Method::BasicConsume { queue: queue.into(), consumer_tag: consumer_tag.into() };
    channel.request(&consume, reject_unexpected).await.map(drop)
}

/// The deliveries of one subscription. The prefetch bounds how many are queued.
struct Deliveries {
    received: UnboundedReceiver<Delivery>,
    lifetime: Arc<ConnectionLifetime>,
    /// Wakes the stream at the end of the connection. Polled only when there is nothing to yield.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for Deliveries {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        // The broker redelivers what is still queued when the connection has ended.
        if self.lifetime.has_ended() {
            return Poll::Ready(None);
        }
        match self.received.poll_recv(cx) {
            Poll::Pending => self.ended.as_mut().poll(cx).map(|()| None),
            ready => ready,
        }
    }
}
