//! Derives the topology, and the permissions that orderd needs, from the configuration. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::check::EVENTS;
use super::handler::MessageKind;
use super::model::{Config, Consumer};
use crate::message::MAX_HOLD;
use crate::topology::{
    Declaration, Exchange, ExchangeNames, Permissions, Queue, RequiredPermission, Role, Topology, WorkQueue,
};

impl Config {
    /// The names of the exchanges.
    pub fn names(&self) -> ExchangeNames {
        ExchangeNames::new(&self.topology.exchange)
    }

    /// The permissions that processing orders needs. For exchanges that ignore routing keys, and for the notification
    /// channels, one routing key stands for all.
    pub fn processing_permissions(&self) -> Vec<RequiredPermission> {
        let names = self.names();
        let publish = |exchange: &str, routing_key: &str| RequiredPermission::Publish {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
        };
        let consume = |consumer: &Consumer| RequiredPermission::Consume { queue: consumer.queue.clone() };
        let mut permissions: Vec<RequiredPermission> = self.consumers.values().map(consume).collect();
        let workers = self.consumers.iter().filter(|(_, consumer)| !consumer.handles_failures());
        permissions.extend(workers.map(|(name, _)| publish(&names.orders, &ExchangeNames::failed_key(name))));
        permissions.extend(EVENTS.map(|key| publish(&names.orders, key)));
        permissions.extend([&names.retry, &names.requeue, &names.dead_letter].map(|exchange| publish(exchange, "")));
        permissions
    }

    /// The permissions that draining the dead letter queues needs. Orders are processed without them.
    pub fn collecting_permissions(&self) -> Vec<RequiredPermission> {
        let queues = self.collected_queues().iter().map(|queue| (*queue).to_owned());
        queues.map(|queue| RequiredPermission::Consume { queue }).collect()
    }

    /// The queues that are drained into the ledger.
    pub fn collected_queues(&self) -> &'static [&'static str] {
        const QUEUES: &[&str] = &[ExchangeNames::DEAD_LETTER_QUEUE, ExchangeNames::UNROUTED_QUEUE];
        if self.dead_letters.collect { QUEUES } else { &[] }
    }

    /// All permissions that orderd needs: to declare the topology (or, if `topology.declare` is false, to check that it
    /// exists), to drain the dead letter queues, and to process orders.
    pub fn required_permissions(&self) -> Vec<RequiredPermission> {
        let topology = self.topology();
        let declarations = topology.declarations().iter().cloned();
        let mut permissions: Vec<RequiredPermission> = if self.topology.declare {
            declarations.map(RequiredPermission::Declare).collect()
        } else {
            let permission_to_find = |declaration| match declaration {
                Declaration::Exchange(Exchange { name, .. }) => {
                    Some(RequiredPermission::FindExchange { exchange: name })
                }
                Declaration::Queue(Queue { name, .. }) => Some(RequiredPermission::FindQueue { queue: name }),
                Declaration::Binding(_) => None,
            };
            declarations.filter_map(permission_to_find).collect()
        };
        // Publishing comes last: a broker with an alarm answers no request after it.
        permissions.extend(self.collecting_permissions());
        permissions.extend(self.processing_permissions());
        permissions
    }

    /// The minimum permissions of orderd's user.
    pub fn permissions(&self) -> Permissions {
        Permissions::least(&self.required_permissions(), &self.topology.exchange)
    }

    /// The minimum permissions of a user that publishes orders.
    pub fn producer_permissions(&self) -> Permissions {
        let orders = self.consumers.values().filter(|consumer| consumer.messages == MessageKind::Order);
        let bindings = orders.filter_map(|consumer| self.queues.get(&consumer.queue)).flat_map(|queue| &queue.bindings);
        Permissions::of_producer(&self.topology.exchange, bindings.map(String::as_str))
    }

    /// How long a delivery from each consumed queue may be held: all attempts of its handler with the calls of its steps, of their undos or of notification channels, and the wait for the end of an
    /// outage. The failed-order consumer may wait for the ledger, and then for what it publishes.
    pub fn longest_holds(&self) -> BTreeMap<String, Duration> {
        let hold = |consumer: &Consumer| {
            let attempts = if consumer.handles_failures() {
                MAX_HOLD
            } else {
                consumer.attempt_time().saturating_mul(consumer.retry.immediate.saturating_add(1))
            };
            (consumer.queue.clone(), attempts.saturating_add(MAX_HOLD))
        };
        let collected = self.collected_queues().iter().map(|queue| ((*queue).to_owned(), MAX_HOLD));
        self.consumers.values().map(hold).chain(collected).collect()
    }

    /// Everything that must exist on the broker for this configuration.
    pub fn topology(&self) -> Topology {
        let queues: Vec<WorkQueue> = self
            .consumers
            .iter()
            .filter_map(|(name, consumer)| {
                let bindings = self.queues.get(&consumer.queue)?.bindings.clone();
                let role = if consumer.handles_failures() {
                    Role::Failed
                } else {
                    Role::Work { consumer: name.clone(), delays: consumer.retry.delays.clone() }
                };
                Some(WorkQueue { name: consumer.queue.clone(), bindings, role })
            })
            .collect();
        Topology::new(self.names(), &queues)
    }
}
