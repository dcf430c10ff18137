//! The ceiling: the broker operations of the pipeline and nothing else. What it reaches is what the broker
//! allows on this machine; no client that does the same operations can be faster for long.
//!
//! What it publishes has the flags, the properties and the size of what orderd publishes; only the content is
//! always that of one order, since making it is not the broker's work.
//!
//! There are two, of which orderd is compared with both. The stream keeps everything moving: two connections
//! process (deliveries are read and both events published by one thread; confirms are read
//! and deliveries acknowledged by another), two drain the event queues. Each works on whatever has arrived
//! and never waits for a full batch. In windows, as simple clients do it, one thread takes so many orders, publishes
//! their events, waits until all are confirmed, and acknowledges.

use std::io;
use std::process;
use std::thread;
use std::time::Instant;

use jiff::Timestamp;
use orderd::domain::{AnalyticsEvent, Notification, Order};

use super::daemon::cpu_of;
use super::minimal_client::{Connection, Reader, Writer};
use super::node::Node;
use super::report::Side;

/// Flush what has been collected at this size, even if more can be had without waiting.
const FLUSH_BYTES: usize = 64 * 1024;
/// Unconfirmed orders while preloading.
const PRELOAD_WINDOW: u64 = 2_000;

/// The queues of one order's way.
pub const ORDER_QUEUE: &str = "order_queue";
pub const EVENT_QUEUES: [&str; 2] = ["notification_queue", "analytics_queue"];
const EXCHANGE: &str = "orders";
const EVENT_KEYS: [&str; 2] = ["order.notification.email", "order.analytics.processed"];
const EVENT_TOPICS: [&str; 2] = ["notification/processed", "analytics/processed"];

/// How orders are taken through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Everything at once.
    Stream,
    /// One window after the other, each of [`Window::acks`] orders.
    Windows,
}

/// How much may be on its way at a time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Deliveries the broker hands out before it wants to be told that some are done.
    pub prefetch: u16,
    /// Acknowledge when so many are done.
    pub acks: u64,
}

/// Fills the order queue with orders 1 to `count`, all confirmed.
pub fn preload(port: u16, count: u64) -> io::Result<()> {
    let mut connection = Connection::open(port)?;
    connection.confirm_select()?;
    let mut confirms = Confirms::new(count);
    for number in 1..=count {
        let (id, body) = order(number);
        connection.writer.publish(EXCHANGE, "order.normal.created", &id, &id, body.as_bytes());
        if connection.writer.out.len() >= FLUSH_BYTES || number == count {
            connection.writer.flush()?;
        }
        while number - confirms.prefix() >= PRELOAD_WINDOW || (number == count && confirms.prefix() < count) {
            connection.writer.flush()?;
            confirms.read(&mut connection.reader)?;
        }
    }
    Ok(())
}

/// The orders are alike in shape and size, and valid.
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

/// Takes `count` preloaded orders through the broker. The clock starts when all connections are open and
/// stops when the broker has taken the last acknowledgement of each queue.
pub fn run(node: &Node, count: u64, style: Style, window: Window) -> io::Result<Side> {
    let port = node.amqp_port;
    let mut intake = Connection::open(port)?;
    let mut outlet = Connection::open(port)?;
    outlet.confirm_select()?;
    let drains = [Connection::open(port)?, Connection::open(port)?];

    let (begin, cpu, broker_cpu) = (Instant::now(), cpu_of(process::id())?, cpu_of(node.pid)?);
    thread::scope(|scope| {
        let draining: Vec<_> = drains
            .into_iter()
            .zip(EVENT_QUEUES)
            .map(|(connection, queue)| scope.spawn(move || drain(connection, queue, count, window)))
            .collect();
        intake.consume(ORDER_QUEUE, window.prefetch)?;
        let events = events()?;
        match style {
            Style::Windows => in_windows(&mut intake, &mut outlet, count, window.acks, &events)?,
            Style::Stream => stream(&mut intake, &mut outlet, count, window, &events)?,
        }
        intake.inspect(ORDER_QUEUE)?;
        draining.into_iter().try_for_each(|thread| joined(thread.join()))
    })?;
    Ok(Side::new(count, begin.elapsed(), cpu_of(process::id())? - cpu, cpu_of(node.pid)? - broker_cpu))
}

fn joined<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("a thread of the ceiling panicked")))
}

/// Takes all orders at once: one thread publishes while another acknowledges.
fn stream(
    intake: &mut Connection,
    outlet: &mut Connection,
    count: u64,
    window: Window,
    events: &[Vec<u8>; 2],
) -> io::Result<()> {
    let Connection { writer: acks, reader: deliveries } = intake;
    let Connection { writer: publishes, reader: confirms } = outlet;
    thread::scope(|scope| {
        let acknowledging = scope.spawn(|| acknowledge(confirms, acks, count, window));
        carry(deliveries, publishes, count, events)?;
        joined(acknowledging.join())
    })
}

/// The bodies of the two events that orderd makes of an order in the middle.
fn events() -> io::Result<[Vec<u8>; 2]> {
    let order = Order::decode(order(50_000).1.as_bytes()).map_err(io::Error::other)?;
    let (total, currency) = order.check().map_err(io::Error::other)?;
    let notification = serde_json::to_vec(&Notification::processed(&order, total, currency))?;
    let analytics = serde_json::to_vec(&AnalyticsEvent::processed(&order, total, currency, Timestamp::now()))?;
    Ok([notification, analytics])
}

/// Reads each order and publishes its two events.
fn carry(deliveries: &mut Reader, publishes: &mut Writer, count: u64, events: &[Vec<u8>; 2]) -> io::Result<()> {
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

/// Reads confirms, and acknowledges the orders both of whose events are confirmed. Orders are published in
/// the order of their tags, so order n is done when the first 2n publications are confirmed.
fn acknowledge(confirms: &mut Reader, acks: &mut Writer, count: u64, window: Window) -> io::Result<()> {
    let mut seen = Confirms::new(2 * count);
    let mut acked = 0;
    while acked < count {
        seen.read(confirms)?;
        let done = seen.prefix() / 2;
        if done - acked >= window.acks || done == count {
            acks.ack_up_to(done);
            acks.flush()?;
            acked = done;
        }
    }
    Ok(())
}

/// Takes one window of orders after the other.
fn in_windows(
    intake: &mut Connection,
    outlet: &mut Connection,
    count: u64,
    window: u64,
    events: &[Vec<u8>; 2],
) -> io::Result<()> {
    let mut body = Vec::new();
    let mut seen = Confirms::new(2 * count);
    for number in 1..=count {
        intake.reader.delivery(&mut body)?;
        publish_events(&mut outlet.writer, number, events);
        if outlet.writer.out.len() >= FLUSH_BYTES || !intake.reader.has_frame() {
            outlet.writer.flush()?;
        }
        if number % window == 0 || number == count {
            outlet.writer.flush()?;
            while seen.prefix() < 2 * number {
                seen.read(&mut outlet.reader)?;
            }
            intake.writer.ack_up_to(number);
            intake.writer.flush()?;
        }
    }
    Ok(())
}

/// Takes `count` messages from an event queue.
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

/// Which of the publications 1 to n are confirmed. Confirms come in any order, and may stand for all before
/// them.
struct Confirms {
    confirmed: Vec<bool>,
    /// The first that is not confirmed.
    first_open: usize,
}

impl Confirms {
    fn new(publications: u64) -> Self {
        Confirms { confirmed: vec![false; publications as usize + 2], first_open: 1 }
    }

    /// How many are confirmed without a gap.
    fn prefix(&self) -> u64 {
        self.first_open as u64 - 1
    }

    /// Waits for one confirm, and takes what has arrived with it.
    fn read(&mut self, reader: &mut Reader) -> io::Result<()> {
        loop {
            let (tag, multiple) = reader.confirm()?;
            let last = tag as usize;
            let first = if multiple { self.first_open } else { last };
            self.confirmed
                .get_mut(first..=last)
                .ok_or_else(|| io::Error::other(format!("a confirm of publication {tag}, which never was")))?
                .fill(true);
            while self.confirmed[self.first_open] {
                self.first_open += 1;
            }
            if !reader.has_frame() {
                return Ok(());
            }
        }
    }
}
