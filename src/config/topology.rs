//! Derives the topology, and the permissions that orderd needs, from the configuration. Pure.

use super::model::{Config, Consumer};
use crate::topology::{
    Declaration, Exchange, ExchangeNames, Permissions, Queue, RequiredPermission, Role, Topology, WorkQueue,
};

impl Config {
    /// The names of the exchanges.
    pub fn names(&self) -> ExchangeNames {
        ExchangeNames::new(&self.topology.exchange)
    }

    /// The name of the failed-order consumer.
    pub fn failed_consumer(&self) -> &str {
        let mut consumers = self.consumers.iter().filter(|(_, consumer)| consumer.handles_failures());
        consumers.next().map(|(name, _)| name.as_str()).expect("loading checks that one consumer handles failures")
    }

    /// What orderd does on the broker while it processes orders. For exchanges that ignore routing keys, and for the
    /// notification channels, one key stands for all.
    pub fn work(&self) -> Vec<RequiredPermission> {
        let names = self.names();
        let publish = |exchange: &str, routing_key: &str| RequiredPermission::Publish {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
        };
        let consume = |consumer: &Consumer| RequiredPermission::Consume { queue: consumer.queue.clone() };
        let mut needs: Vec<RequiredPermission> = self.consumers.values().map(consume).collect();
        let working = self.consumers.iter().filter(|(_, consumer)| !consumer.handles_failures());
        needs.extend(working.map(|(name, _)| publish(&names.orders, &ExchangeNames::failed_key(name))));
        let events = ["order.notification.email", "order.analytics.processed", "order.analytics.failed"];
        needs.extend(events.map(|key| publish(&names.orders, key)));
        needs.extend([publish(&names.retry, ""), publish(&names.dead_letter, "")]);
        needs
    }

    /// Everything orderd does on the broker: it declares the topology, or checks that it exists if `topology.declare` is
    /// false, and then processes orders.
    pub fn needs(&self) -> Vec<RequiredPermission> {
        let topology = self.topology();
        let declarations = topology.declarations().iter().cloned();
        let mut needs: Vec<RequiredPermission> = if self.topology.declare {
            declarations.map(RequiredPermission::Declare).collect()
        } else {
            let find = |declaration| match declaration {
                Declaration::Exchange(Exchange { name, .. }) => {
                    Some(RequiredPermission::FindExchange { exchange: name })
                }
                Declaration::Queue(Queue { name, .. }) => Some(RequiredPermission::FindQueue { queue: name }),
                Declaration::Binding(_) => None,
            };
            declarations.filter_map(find).collect()
        };
        // Publishing comes last: a broker with an alarm answers nothing after that.
        needs.extend(self.work());
        needs
    }

    /// The least permissions that suffice.
    pub fn permissions(&self) -> Permissions {
        Permissions::least(&self.needs(), &self.topology.exchange)
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
