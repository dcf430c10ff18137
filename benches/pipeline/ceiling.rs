//! The ceiling: only the broker operations of the pipeline. Its throughput is the most that the broker allows on this
//! machine to any client that performs the same operations.
//!
//! Its messages have the flags, properties and sizes of orderd's. The content of the events is always that of one order,
//! since encoding them is not part of the broker's work.
//!
//! There are two ceilings, and orderd is compared with both:
//! - [`Style::Stream`]: one thread reads deliveries and publishes both events, another reads confirms and acknowledges
//!   deliveries. No thread waits for a full batch.
//! - [`Style::Windows`], as simple clients do it: one thread reads a window of orders, publishes their events, waits until
//!   all are confirmed, and acknowledges the orders.
//!
//! In both, two more connections drain the event queues.

use std::io;
use std::process;
use std::thread;
use std::time::Instant;

use jiff::Timestamp;
use orderd::domain::{AnalyticsEvent, Notification, Order};

use super::daemon::cpu_of;
use super::minimal_client::{Connection, Reader, Writer};
use super::node::Node;
use super::report::Measurement;

/// Frames are sent once this many bytes are buffered, even if more deliveries have arrived.
const FLUSH_BYTES: usize = 64 * 1024;
/// Limit of unconfirmed orders while preloading.
const MAX_UNCONFIRMED: u64 = 2_000;

/// The queues that an order and its two events pass through.
pub const ORDER_QUEUE: &str = "order_queue";
pub const EVENT_QUEUES: [&str; 2] = ["notification_queue", "analytics_queue"];
const EXCHANGE: &str = "orders";
const EVENT_KEYS: [&str; 2] = ["order.notification.email", "order.analytics.processed"];
const EVENT_TOPICS: [&str; 2] = ["notification/processed", "analytics/processed"];

/// How orders are processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Reading, publishing and acknowledging at the same time.
    Stream,
    /// One window after the other, each of [`Window::acks`] orders.
    Windows,
}

/// How many deliveries may be unacknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The prefetch of each consumer.
    pub prefetch: u16,
    /// How many finished deliveries one acknowledgement covers.
    pub acks: u64,
}

/// Publishes orders 1 to `count` to the order queue, and waits for all confirms.
pub fn preload(port: u16, count: u64) -> io::Result<()> {
    publish_all(port, count, "order.normal.created", order)
}

/// Publishes notifications of orders 1 to `count`, and waits for all confirms.
pub fn preload_notifications(port: u16, count: u64) -> io::Result<()> {
    publish_all(port, count, EVENT_KEYS[0], notification)
}

/// Publishes messages 1 to `count`, each with its id and body, and waits for all confirms.
fn publish_all(port: u16, count: u64, routing_key: &str, message: impl Fn(u64) -> (String, String)) -> io::Result<()> {
    let mut connection = Connection::open(port)?;
    connection.confirm_select()?;
    let mut confirms = Confirms::new(count);
    for number in 1..=count {
        let (id, body) = message(number);
        connection.writer.publish(EXCHANGE, routing_key, &id, &id, body.as_bytes());
        if connection.writer.out.len() >= FLUSH_BYTES || number == count {
            connection.writer.flush()?;
        }
        while number - confirms.prefix() >= MAX_UNCONFIRMED || (number == count && confirms.prefix() < count) {
            connection.writer.flush()?;
            confirms.read(&mut connection.reader)?;
        }
    }
    Ok(())
}

/// Id and body of a notification.
fn notification(number: u64) -> (String, String) {
    let body = format!(
        "{{\"event\":\"processed\",\"order_id\":\"ord-{number}\",\"channel\":\"email\",\"email\":\"user{number}@example.com\",\
         \"product\":\"Laptop\",\"quantity\":3,\"price\":\"400.00\",\"total\":\"1200.00\",\"currency\":\"EUR\"}}"
    );
    (format!("ord-{number}/notification/processed"), body)
}

/// Id and body of a valid order. All orders are similar in size.
fn order(number: u64) -> (String, String) {
    let customer = number % 5000;
    let body = format!(
        "{{\"id\":\"ord-{number}\",\"customer_id\":\"cust-{customer}\",\"product\":\"Laptop\",\"quantity\":{},\
         \"price\":\"{}.99\",\"currency\":\"EUR\",\"priority\":false,\"email\":\"user{customer}@example.com\",\
         \"placed_at\":\"2026-11-22T08:00:00Z\"}}",
        1 + number % 5,
        100 + number % 900,
    );
    (format!("ord-{number}"), body)
}

/// Processes `count` preloaded orders. The time is measured from when all connections are open until the broker has
/// received the last acknowledgement for each queue.
pub fn run(node: &Node, count: u64, style: Style, window: Window) -> io::Result<Measurement> {
    let port = node.amqp_port;
    let mut consumer = Connection::open(port)?;
    let mut publisher = Connection::open(port)?;
    publisher.confirm_select()?;
    let drains = [Connection::open(port)?, Connection::open(port)?];

    let (begin, cpu, broker_cpu) = (Instant::now(), cpu_of(process::id())?, cpu_of(node.pid)?);
    thread::scope(|scope| {
        let draining: Vec<_> = drains
            .into_iter()
            .zip(EVENT_QUEUES)
            .map(|(connection, queue)| scope.spawn(move || drain(connection, queue, count, window)))
            .collect();
        consumer.consume(ORDER_QUEUE, window.prefetch)?;
        let events = events()?;
        match style {
            Style::Windows => in_windows(&mut consumer, &mut publisher, count, window.acks, &events)?,
            Style::Stream => stream(&mut consumer, &mut publisher, count, window, &events)?,
        }
        consumer.inspect(ORDER_QUEUE)?;
        draining.into_iter().try_for_each(|thread| joined(thread.join()))
    })?;
    Ok(Measurement::new(count, begin.elapsed(), cpu_of(process::id())? - cpu, cpu_of(node.pid)? - broker_cpu))
}

fn joined<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("a thread of the ceiling panicked")))
}

/// Processes orders with two threads: one publishes while the other acknowledges.
fn stream(
    consumer: &mut Connection,
    publisher: &mut Connection,
    count: u64,
    window: Window,
    events: &[Vec<u8>; 2],
) -> io::Result<()> {
    let Connection { writer: acks, reader: deliveries } = consumer;
    let Connection { writer: publishes, reader: confirms } = publisher;
    thread::scope(|scope| {
        let acknowledging = scope.spawn(|| acknowledge(confirms, acks, count, window));
        publish_for_each(deliveries, publishes, count, events)?;
        joined(acknowledging.join())
    })
}

/// The bodies of the two events that orderd publishes for order 50,000.
fn events() -> io::Result<[Vec<u8>; 2]> {
    let order = Order::decode(order(50_000).1.as_bytes()).map_err(io::Error::other)?;
    let amounts = order.check().map_err(io::Error::other)?;
    let notification = serde_json::to_vec(&Notification::processed(&order, &amounts))?;
    let analytics = serde_json::to_vec(&AnalyticsEvent::processed(&order, &amounts, Timestamp::now()))?;
    Ok([notification, analytics])
}

/// Reads each order and publishes its two events.
fn publish_for_each(
    deliveries: &mut Reader,
    publishes: &mut Writer,
    count: u64,
    events: &[Vec<u8>; 2],
) -> io::Result<()> {
    let mut body = Vec::new();
    for number in 1..=count {
        deliveries.delivery(&mut body)?;
        publish_events(publishes, number, events);
        if publishes.out.len() >= FLUSH_BYTES || !deliveries.has_frame() {
            publishes.flush()?;
        }
    }
    publishes.flush()
}

fn publish_events(publishes: &mut Writer, number: u64, events: &[Vec<u8>; 2]) {
    let id = format!("ord-{number}");
    for ((key, topic), event) in EVENT_KEYS.into_iter().zip(EVENT_TOPICS).zip(events) {
        publishes.publish(EXCHANGE, key, &format!("{id}/{topic}"), &id, event);
    }
}

/// Reads confirms, and acknowledges each order once both of its events are confirmed. Events are published in the order of
/// the deliveries, so order n is finished when the first 2n publications are confirmed.
fn acknowledge(confirms: &mut Reader, acks: &mut Writer, count: u64, window: Window) -> io::Result<()> {
    let mut confirmed = Confirms::new(2 * count);
    let mut acked = 0;
    while acked < count {
        confirmed.read(confirms)?;
        let finished = confirmed.prefix() / 2;
        if finished - acked >= window.acks || finished == count {
            acks.ack_up_to(finished);
            acks.flush()?;
            acked = finished;
        }
    }
    Ok(())
}

/// Processes one window of orders after the other.
fn in_windows(
    consumer: &mut Connection,
    publisher: &mut Connection,
    count: u64,
    window: u64,
    events: &[Vec<u8>; 2],
) -> io::Result<()> {
    let mut body = Vec::new();
    let mut confirmed = Confirms::new(2 * count);
    for number in 1..=count {
        consumer.reader.delivery(&mut body)?;
        publish_events(&mut publisher.writer, number, events);
        if publisher.writer.out.len() >= FLUSH_BYTES || !consumer.reader.has_frame() {
            publisher.writer.flush()?;
        }
        if number % window == 0 || number == count {
            publisher.writer.flush()?;
            while confirmed.prefix() < 2 * number {
                confirmed.read(&mut publisher.reader)?;
            }
            consumer.writer.ack_up_to(number);
            consumer.writer.flush()?;
        }
    }
    Ok(())
}

/// Consumes and acknowledges `count` messages of an event queue.
fn drain(mut connection: Connection, queue: &str, count: u64, window: Window) -> io::Result<()> {
    connection.consume(queue, window.prefetch)?;
    let mut body = Vec::new();
    for number in 1..=count {
        let tag = connection.reader.delivery(&mut body)?;
        if number % window.acks == 0 || number == count {
            connection.writer.ack_up_to(tag);
            connection.writer.flush()?;
        }
    }
    connection.inspect(queue).map(drop)
}

/// Which of the publications 1 to n are confirmed. Confirms arrive in any order, and may cover all publications before
/// theirs.
struct Confirms {
    confirmed: Vec<bool>,
    /// The first unconfirmed publication.
    first_unconfirmed: usize,
}

impl Confirms {
    fn new(publications: u64) -> Self {
        Confirms { confirmed: vec![false; publications as usize + 2], first_unconfirmed: 1 }
    }

    /// The number of confirmed publications before the first unconfirmed one.
    fn prefix(&self) -> u64 {
        self.first_unconfirmed as u64 - 1
    }

    /// Waits for a confirm, and reads all further ones that have arrived.
    fn read(&mut self, reader: &mut Reader) -> io::Result<()> {
        loop {
            let (tag, multiple) = reader.confirm()?;
            let last = tag as usize;
            let first = if multiple { self.first_unconfirmed } else { last };
            self.confirmed
                .get_mut(first..=last)
                .ok_or_else(|| io::Error::other(format!("a confirm of publication {tag}, which does not exist")))?
                .fill(true);
            while self.confirmed[self.first_unconfirmed] {
                self.first_unconfirmed += 1;
            }
            if !reader.has_frame() {
                return Ok(());
            }
        }
    }
}
