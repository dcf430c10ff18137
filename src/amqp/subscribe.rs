//! Subscribing: a connection of its own for each, so that a message which kills the connection it is delivered
//! on (a header that is not UTF-8 does) stops no other queue.
//!
//! Owns the way from the client library to the stream of deliveries. Never settles anything.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments, ConsumerMessage};
use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::info;

use super::connect::{ConnectError, Link, SHORT_STRING, Wire};
use super::convert::from_amqp;
use super::epoch::{Epoch, EpochEnd};
use super::settle::{ChannelSettler, Subscribed};
use crate::chain::chain;
use crate::instance;
use crate::message::{Consumer, Delivery, SubscribeError, Subscription};

impl Consumer for Link {
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>> {
        let queue = queue.to_owned();
        Box::pin(async move {
            match subscribe(self, &queue, prefetch).await {
                Ok(subscription) => Ok(subscription),
                Err(error) => {
                    self.note(Some(chain(&error)));
                    let was_lost = matches!(error, ConnectError::Lost(_));
                    Err(SubscribeError { queue, was_lost, source: Box::new(error) })
                }
            }
        })
    }
}

async fn subscribe(link: &Link, queue: &str, prefetch: u16) -> Result<Subscription, ConnectError> {
    if queue.len() > SHORT_STRING {
        return Err(ConnectError::Invalid { problem: format!("the queue's name has {} bytes", queue.len()) });
    }
    // 0 would mean no limit, and the library buffers whatever the broker sends.
    let prefetch = prefetch.max(1);
    let epoch = Epoch::begin();
    let wire = Wire::open(link, &format!("consume {queue}"), &epoch).await?;
    match consume(&wire, &epoch, queue, prefetch).await {
        Ok((consumer_tag, messages)) => {
            info!(queue, epoch = epoch.number, address = %wire.address, prefetch, "subscribed");
            let latest = Arc::new(AtomicU64::new(0));
            let over = Box::pin(epoch.over_owned());
            let deliveries = Deliveries { messages, latest: Arc::clone(&latest), epoch: Arc::clone(&epoch), over };
            let subscribed = Subscribed { queue: queue.to_owned(), consumer_tag, prefetch, latest };
            let settler = ChannelSettler::spawn(wire, epoch, subscribed);
            Ok(Subscription { deliveries: Box::pin(deliveries), settler: Arc::new(settler) })
        }
        Err(reason) => {
            wire.close(&epoch).await;
            Err(ConnectError::Lost(reason))
        }
    }
}

async fn consume(
    wire: &Wire,
    epoch: &Epoch,
    queue: &str,
    prefetch: u16,
) -> Result<(String, UnboundedReceiver<ConsumerMessage>), EpochEnd> {
    let channel = wire.channel.clone();
    let qos = async move { channel.basic_qos(BasicQosArguments::new(0, prefetch, false)).await };
    epoch.ask("basic.qos", qos).await?;
    let channel = wire.channel.clone();
    let arguments = BasicConsumeArguments::new(queue, &format!("{}{}", instance::tag_prefix(), epoch.number));
    epoch.ask("basic.consume", async move { channel.basic_consume_rx(arguments).await }).await
}

/// The deliveries of one epoch, straight from the library's queue, which the prefetch bounds.
struct Deliveries {
    messages: UnboundedReceiver<ConsumerMessage>,
    /// The tag of the latest one yielded.
    latest: Arc<AtomicU64>,
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
        loop {
            match self.messages.poll_recv(cx) {
                Poll::Ready(Some(message)) => {
                    if let Some(delivery) = from_amqp(message, self.epoch.number) {
                        self.latest.store(delivery.id.tag, Ordering::Relaxed);
                        return Poll::Ready(Some(delivery));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return self.over.as_mut().poll(cx).map(|()| None),
            }
        }
    }
}
