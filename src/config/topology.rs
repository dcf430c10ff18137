//! What the configuration says about the topology. Pure.

use super::model::Config;
use crate::recovery::FAILED_HANDLER;
use crate::topology::{Names, Role, Topology, WorkQueue};

impl Config {
    /// The names of the exchanges.
    pub fn names(&self) -> Names {
        Names::new(&self.topology.exchange)
    }

    /// The consumer of failures.
    pub fn failed_consumer(&self) -> &str {
        let mut consumers = self.consumers.iter().filter(|(_, consumer)| consumer.handler == FAILED_HANDLER);
        consumers.next().map(|(name, _)| name.as_str()).expect("checked: one consumer has the failed handler")
    }

    /// All that must be on the broker for this configuration.
    pub fn topology(&self) -> Topology {
        let queues: Vec<WorkQueue> = self
            .consumers
            .iter()
            .filter_map(|(name, consumer)| {
                let bindings = self.queues.get(&consumer.queue)?.bindings.clone();
                let role = if consumer.handler == FAILED_HANDLER {
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
