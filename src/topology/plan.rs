//! The plan: the exchanges, queues and bindings that must exist, in the order in which to declare them.
//!
//! Pure. Targets come before sources: when a queue is declared, the exchange it dead-letters to and the queue bound there
//! already exist. A queue that dead-letters holds its messages until that queue is bound.
//!
//! The arguments were tested on RabbitMQ 3.10.8, 4.0.5 and 4.3.6 and are the same for all of them. Changing one makes every
//! broker that already has the queue refuse the declaration with 406.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::model::{Argument, Binding, Declaration, Exchange, ExchangeKind, Queue};
use crate::delay::Delay;
use crate::message::ExchangeNames;

/// How often a work queue redelivers a message before it dead-letters it. Set explicitly, because RabbitMQ 3.10 has no
/// default; in 4.x the default is the same.
pub const DELIVERY_LIMIT: i64 = 20;

/// The delivery limit of `dead_letter_queue` and `unrouted_queue`, which must never drop a message: so high that it is never
/// reached.
///
/// Measured by returning one message 60 times. Without a limit: kept on 3.10.8, dropped at the 21st return on 4.0.5 and
/// 4.3.6. With `-1`: kept on 4.0.5 and 4.3.6, dropped at the first return on 3.10.8. With this value: kept on all three.
pub const UNLIMITED_DELIVERIES: i64 = i32::MAX as i64;

/// A queue that orderd consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkQueue {
    /// Its name.
    pub name: String,
    /// Topic patterns on the orders exchange.
    pub bindings: Vec<String>,
    /// What happens to its failures.
    pub role: Role,
}

/// What happens to the failures of a work queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// They go to the failed-order queue, from which they return after a delay or are dead-lettered.
    Work {
        /// The name of its consumer, which ends the routing key of its failures.
        consumer: String,
        /// The consumer's retry delays. Each distinct one has a retry queue.
        delays: Vec<Delay>,
    },
    /// This is the failed-order queue: the broker dead-letters them to the dead letter queue.
    Failed,
}

/// Everything that must exist, in the order in which to declare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    names: ExchangeNames,
    declarations: Vec<Declaration>,
}

impl Topology {
    /// The plan for these queues. Failed-order queues are declared before the queues whose failures they receive. Bindings
    /// to the orders exchange come last, so that everything exists when the first message arrives.
    pub fn new(names: ExchangeNames, queues: &[WorkQueue]) -> Self {
        let mut plan = Plan { names: &names, declarations: Vec::new() };
        plan.fanout_with_queue(&names.unrouted, ExchangeNames::UNROUTED_QUEUE);
        plan.fanout_with_queue(&names.dead_letter, ExchangeNames::DEAD_LETTER_QUEUE);
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

    /// The declarations, in order.
    pub fn declarations(&self) -> &[Declaration] {
        &self.declarations
    }

    /// Splits the declarations before the bindings to the orders exchange: no order arrives before those are declared.
    pub fn split_at_order_bindings(&self) -> (&[Declaration], &[Declaration]) {
        let binds_orders = |step: &Declaration| match step {
            Declaration::Binding(binding) => binding.exchange == *self.names.orders,
            Declaration::Exchange(_) | Declaration::Queue(_) => false,
        };
        let last = self.declarations.iter().rposition(|step| !binds_orders(step));
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
    /// A fanout exchange and the one queue bound to it, whose messages wait for an operator.
    fn fanout_with_queue(&mut self, exchange: &str, queue: &str) {
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

    /// A work queue, its binding to the requeue exchange, and its retry queues.
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

    /// The queue in which messages of one work queue wait for one delay.
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

    /// Every queue is a quorum queue that refuses publishes when it is full, rather than drop messages.
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

/// Dead-lettering with the at-least-once strategy: the broker keeps a message until the target queue has confirmed it. The
/// default strategy loses every message whose delay ends while the target or the broker is down.
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
