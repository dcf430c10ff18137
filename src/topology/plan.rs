//! The plan: which exchanges, queues and bindings there must be, in the order in which to declare them.
//!
//! Pure. Targets come before sources: when a queue is declared, the exchange it dead-letters to and the queue
//! bound there exist, so that no message can fall between two declarations.
//!
//! The arguments were measured on RabbitMQ 3.10.8, 4.0.5 and 4.3.6 and are the same for all: changing one is
//! a 406 on every broker that has the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::model::{Argument, Binding, Declaration, Exchange, ExchangeKind, Queue};
use crate::delay::Delay;
use crate::message::ExchangeNames;

/// How often a work queue hands a message out again before it dead-letters it. Written out, since RabbitMQ
/// 3.10 has no default and 4.x has this one.
pub const DELIVERY_LIMIT: i64 = 20;

/// The delivery limit of the queues that a person takes from, and from which nothing may ever be dropped.
///
/// Measured by returning one message 60 times. None given: kept on 3.10.8, dropped at the 21st return on 4.0.5
/// and 4.3.6. `-1`: kept on 4.0.5 and 4.3.6, dropped at the first return on 3.10.8. This one, more than there
/// will ever be: kept on all three.
pub const UNLIMITED_DELIVERIES: i64 = i32::MAX as i64;

/// A queue that orderd consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkQueue {
    /// Its name.
    pub name: String,
    /// Topic patterns on the orders exchange.
    pub bindings: Vec<String>,
    /// What becomes of its failures.
    pub role: Role,
}

/// What becomes of the failures of a work queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// They go to the failed-order queue, and come back after a delay or not at all.
    Work {
        /// Its consumer's name, the last word of the routing key of its failures.
        consumer: String,
        /// Its consumer's delays; each distinct one gets a retry queue.
        delays: Vec<Delay>,
    },
    /// It is the failed-order queue: they go to the dead letter queue.
    Failed,
}

/// All that must be there, in the order in which to declare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    names: ExchangeNames,
    declarations: Vec<Declaration>,
}

impl Topology {
    /// Plans for these queues. Failed-order queues are declared before the queues whose failures they take, and
    /// bindings to the orders exchange come last: the first message finds everything in place.
    pub fn new(names: ExchangeNames, queues: &[WorkQueue]) -> Self {
        let mut plan = Plan { names: &names, declarations: Vec::new() };
        plan.parking(&names.unrouted, ExchangeNames::UNROUTED_QUEUE);
        plan.parking(&names.dead_letter, ExchangeNames::DEAD_LETTER_QUEUE);
        plan.routing_exchanges();
        let (failed, work): (Vec<_>, Vec<_>) = queues.iter().partition(|queue| queue.role == Role::Failed);
        let queues = || failed.iter().chain(&work);
        queues().for_each(|queue| plan.work_queue(queue));
        for queue in queues() {
            queue.bindings.iter().for_each(|pattern| plan.bind(&names.orders, &queue.name, pattern));
        }
        let declarations = plan.declarations;
        Topology { names, declarations }
    }

    /// The exchanges' names.
    pub fn names(&self) -> &ExchangeNames {
        &self.names
    }

    /// The steps, in order.
    pub fn declarations(&self) -> &[Declaration] {
        &self.declarations
    }

    /// The steps before any order comes, and those that let orders come: the bindings to the orders exchange.
    pub fn before_orders_come(&self) -> (&[Declaration], &[Declaration]) {
        let brings_orders = |step: &Declaration| match step {
            Declaration::Binding(binding) => binding.exchange == *self.names.orders,
            Declaration::Exchange(_) | Declaration::Queue(_) => false,
        };
        let last = self.declarations.iter().rposition(|step| !brings_orders(step));
        self.declarations.split_at(last.map_or(0, |last| last + 1))
    }

    /// The exchanges, in order.
    pub fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.declarations.iter().filter_map(|step| match step {
            Declaration::Exchange(exchange) => Some(exchange),
            Declaration::Queue(_) | Declaration::Binding(_) => None,
        })
    }

    /// The queues, in order.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.declarations.iter().filter_map(|step| match step {
            Declaration::Queue(queue) => Some(queue),
            Declaration::Exchange(_) | Declaration::Binding(_) => None,
        })
    }

    /// The bindings, in order.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.declarations.iter().filter_map(|step| match step {
            Declaration::Binding(binding) => Some(binding),
            Declaration::Exchange(_) | Declaration::Queue(_) => None,
        })
    }
}

type Arguments = BTreeMap<&'static str, Argument>;

struct Plan<'n> {
    names: &'n ExchangeNames,
    declarations: Vec<Declaration>,
}

impl Plan<'_> {
    /// A fanout and the one queue bound to it, from which a person takes messages.
    fn parking(&mut self, exchange: &str, queue: &str) {
        self.exchange(exchange, ExchangeKind::Fanout, Arguments::new());
        self.queue(queue, Arguments::from([("x-delivery-limit", Argument::Number(UNLIMITED_DELIVERIES))]));
        self.bind(exchange, queue, "");
    }

    fn routing_exchanges(&mut self) {
        let ExchangeNames { orders, retry, requeue, unrouted, .. } = self.names;
        self.exchange(requeue, ExchangeKind::Direct, Arguments::new());
        self.exchange(retry, ExchangeKind::Direct, Arguments::new());
        let alternate = Arguments::from([("alternate-exchange", text(unrouted))]);
        self.exchange(orders, ExchangeKind::Topic, alternate);
    }

    /// A work queue, its way back, and its retry queues.
    fn work_queue(&mut self, queue: &WorkQueue) {
        let ExchangeNames { orders, requeue, dead_letter, .. } = self.names;
        let mut arguments = match &queue.role {
            Role::Work { consumer, .. } => dead_lettering(orders, Some(&ExchangeNames::failed_key(consumer))),
            Role::Failed => dead_lettering(dead_letter, None),
        };
        arguments.insert("x-delivery-limit", Argument::Number(DELIVERY_LIMIT));
        self.queue(&queue.name, arguments);
        self.bind(requeue, &queue.name, &queue.name);
        if let Role::Work { delays, .. } = &queue.role {
            for delay in delays.iter().collect::<BTreeSet<_>>() {
                self.retry_queue(&queue.name, *delay);
            }
        }
    }

    /// Where messages of one work queue wait for one delay.
    fn retry_queue(&mut self, queue: &str, delay: Delay) {
        let ExchangeNames { retry, requeue, .. } = self.names;
        let name = ExchangeNames::retry_queue(queue, delay);
        let mut arguments = dead_lettering(requeue, Some(queue));
        let millis = i64::try_from(delay.as_millis()).expect("a delay is below 2³² ms");
        arguments.insert("x-message-ttl", Argument::Number(millis));
        self.queue(&name, arguments);
        self.bind(retry, &name, &name);
    }

    fn exchange(&mut self, name: &str, kind: ExchangeKind, arguments: Arguments) {
        self.declarations.push(Declaration::Exchange(Exchange { name: name.to_owned(), kind, arguments }));
    }

    /// Every queue is a quorum queue that refuses rather than drops.
    fn queue(&mut self, name: &str, mut arguments: Arguments) {
        arguments.insert("x-queue-type", text("quorum"));
        arguments.insert("x-overflow", text("reject-publish"));
        self.declarations.push(Declaration::Queue(Queue { name: name.to_owned(), arguments }));
    }

    fn bind(&mut self, exchange: &str, queue: &str, routing_key: &str) {
        self.declarations.push(Declaration::Binding(Binding {
            exchange: exchange.to_owned(),
            queue: queue.to_owned(),
            routing_key: routing_key.to_owned(),
        }));
    }
}

/// At least once: the broker keeps a dead-lettered message until its target has confirmed it. The default
/// loses every message whose delay ends while the target or the broker is down.
fn dead_lettering(exchange: &Arc<str>, routing_key: Option<&str>) -> Arguments {
    let mut arguments = Arguments::from([
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-strategy", text("at-least-once")),
    ]);
    if let Some(key) = routing_key {
        arguments.insert("x-dead-letter-routing-key", text(key));
    }
    arguments
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}
