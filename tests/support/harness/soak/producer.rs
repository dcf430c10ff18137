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
use super::super::audit::is_urgent;

/// Limit of unconfirmed publications.
const MAX_UNCONFIRMED: usize = 500;
const PRODUCTS: [&str; 3] = ["Laptop", "Phone", "Mouse"];
const RETRY: Duration = Duration::from_millis(200);

/// A producer in the background.
pub struct Producer {
    state: Arc<ProducerState>,
    task: tokio::task::JoinHandle<Result<u64, String>>,
}

#[derive(Debug, Default)]
struct ProducerState {
    published: AtomicU64,
    confirmed: Arc<AtomicU64>,
    paused: AtomicBool,
    stopped: AtomicBool,
}

impl Producer {
    /// Starts to publish this many orders a second.
    pub fn start(connector: Connector, rate: u32, runtime: &Runtime) -> Producer {
        let state = Arc::new(ProducerState::default());
        let task = runtime.spawn(produce(connector, rate, Arc::clone(&state)));
        Producer { state, task }
    }

    /// Publishes no further order until [`Producer::resume`].
    pub fn pause(&self) {
        self.state.paused.store(true, Ordering::SeqCst);
    }

    /// Publishes orders again.
    pub fn resume(&self) {
        self.state.paused.store(false, Ordering::SeqCst);
    }

    /// The number of orders, once all are confirmed; `None` before.
    pub fn all_confirmed(&self) -> Option<u64> {
        let confirmed = self.state.confirmed.load(Ordering::SeqCst);
        (confirmed == self.state.published.load(Ordering::SeqCst)).then_some(confirmed)
    }

    /// The number of orders that were published, confirmed or not.
    pub fn published(&self) -> u64 {
        self.state.published.load(Ordering::SeqCst)
    }

    /// The number of confirmed orders, for another thread.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.state.confirmed)
    }

    /// Publishes no further order, waits until all are confirmed and returns their number.
    pub fn stop(mut self, runtime: &Runtime) -> Outcome<u64> {
        self.state.stopped.store(true, Ordering::SeqCst);
        Ok(runtime.block_on(&mut self.task)??)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
    }
}

async fn produce(connector: Connector, rate: u32, state: Arc<ProducerState>) -> Result<u64, String> {
    let publisher = connector.publisher();
    let mut interval = tokio::time::interval(Duration::from_secs(1) / rate);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut unconfirmed = FuturesUnordered::new();
    while !state.stopped.load(Ordering::SeqCst) {
        // Both branches are cancel-safe: the stream keeps its futures, and a tick that is not awaited comes later.
        tokio::select! {
            _ = interval.tick() => {
                if unconfirmed.len() < MAX_UNCONFIRMED && !state.paused.load(Ordering::SeqCst) {
                    let number = state.published.fetch_add(1, Ordering::SeqCst) + 1;
                    unconfirmed.push(publish(&publisher, number));
                }
            }
            Some(()) = unconfirmed.next() => { state.confirmed.fetch_add(1, Ordering::SeqCst); }
        }
    }
    while unconfirmed.next().await.is_some() {
        state.confirmed.fetch_add(1, Ordering::SeqCst);
    }
    publisher.close(Duration::from_secs(20)).await.map_err(|error| error.to_string())?;
    Ok(state.published.load(Ordering::SeqCst))
}

async fn publish(publisher: &dyn Publisher, number: u64) {
    while publisher.publish([order(number)].into()).await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
}

/// Faults are injected only into orders that are not urgent.
fn order(number: u64) -> Publication {
    let id = format!("ord-{number}");
    let urgent = is_urgent(number);
    let line = |line: u64| {
        json!({
            "product": PRODUCTS[((number + line) % 3) as usize],
            "quantity": 1 + (number + line) % 5,
            "price": format!("{}.{:02}", 10 + number % 900, (number + line) % 100),
        })
    };
    // Every fourth has several lines, some of them with the same product twice.
    let mut body = if number.is_multiple_of(4) {
        json!({"items": (0..2 + number % 5).map(line).collect::<Vec<_>>()})
    } else {
        line(0)
    };
    body["id"] = json!(id);
    body["currency"] = json!(if number.is_multiple_of(7) { "USD" } else { "EUR" });
    body["priority"] = json!(urgent);
    let properties = Properties { message_id: Some(id), ..Properties::default() };
    Publication {
        exchange: "orders".into(),
        routing_key: if urgent { "order.priority.created" } else { "order.normal.created" }.to_owned(),
        message: Message { properties, body: body.to_string().into(), ..Message::default() },
    }
}
