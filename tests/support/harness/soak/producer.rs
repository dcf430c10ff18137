//! Publishes orders at a steady rate until it is stopped. An order counts once the broker has confirmed it; one that the
//! broker refuses is published again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use orderd::amqp::Connector;
use orderd::message::{Message, Properties, Publication, Publisher};
use serde_json::json;
use tokio::runtime::Runtime;

use super::super::Outcome;

/// Limit of unconfirmed publications.
const MAX_UNCONFIRMED: usize = 500;
const PRODUCTS: [&str; 3] = ["Laptop", "Phone", "Mouse"];
const RETRY: Duration = Duration::from_millis(200);

/// A producer in the background.
pub struct Producer {
    confirmed: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<u64, String>>,
}

impl Producer {
    /// Starts to publish this many orders a second.
    pub fn start(connector: Connector, rate: u32, runtime: &Runtime) -> Producer {
        let (confirmed, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = runtime.spawn(produce(connector, rate, Arc::clone(&confirmed), Arc::clone(&stopped)));
        Producer { confirmed, stopped, task }
    }

    /// The number of confirmed orders.
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// The number of confirmed orders, for another thread.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.confirmed)
    }

    /// Publishes no further order, waits until all are confirmed and returns their number.
    pub fn stop(mut self, runtime: &Runtime) -> Outcome<u64> {
        self.stopped.store(true, Ordering::Relaxed);
        Ok(runtime.block_on(&mut self.task)??)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

async fn produce(
    connector: Connector,
    rate: u32,
    confirmed: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
) -> Result<u64, String> {
    let publisher = connector.publisher();
    let mut interval = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut unconfirmed = FuturesUnordered::new();
    let mut number = 0;
    while !stopped.load(Ordering::Relaxed) {
        // Both branches are cancel-safe: the stream keeps its futures, and a tick that is not awaited comes later.
        tokio::select! {
            _ = interval.tick(), if unconfirmed.len() < MAX_UNCONFIRMED => {
                number += 1;
                unconfirmed.push(publish(&publisher, number));
            }
            Some(()) = unconfirmed.next() => { confirmed.fetch_add(1, Ordering::Relaxed); }
        }
    }
    while unconfirmed.next().await.is_some() {
        confirmed.fetch_add(1, Ordering::Relaxed);
    }
    publisher.close(Duration::from_secs(20)).await.map_err(|error| error.to_string())?;
    Ok(number)
}

async fn publish(publisher: &dyn Publisher, number: u64) {
    while publisher.publish([order(number)].into()).await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
}

/// Every tenth order is urgent. Faults are injected only into normal ones.
fn order(number: u64) -> Publication {
    let id = format!("ord-{number}");
    let urgent = number.is_multiple_of(10);
    let body = json!({
        "id": id,
        "product": PRODUCTS[(number % 3) as usize],
        "quantity": 1 + number % 5,
        "price": format!("{}.{:02}", 10 + number % 900, number % 100),
        "currency": if number.is_multiple_of(7) { "USD" } else { "EUR" },
        "priority": urgent,
    });
    let properties = Properties { message_id: Some(id), ..Properties::default() };
    Publication {
        exchange: "orders".into(),
        routing_key: if urgent { "order.priority.created" } else { "order.normal.created" }.to_owned(),
        message: Message { properties, body: body.to_string().into(), ..Message::default() },
    }
}
