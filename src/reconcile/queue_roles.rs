//! Determines, by their names, which queues of a virtual host belong to orderd and what the role of each is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::broker_view::QueueRole;
use crate::config::Config;
use crate::message::ExchangeNames;
use crate::recovery::Delay;

/// The queues that belong to orderd.
#[derive(Debug)]
pub(super) struct QueueRoles {
    declared: BTreeSet<String>,
    /// The consumer of each work queue.
    consumers: BTreeMap<String, String>,
    /// The queue of the failed-order consumer.
    failed_queue: String,
}

impl QueueRoles {
    pub(super) fn new(config: &Config) -> Self {
        let declared = config.topology().queues().map(|queue| queue.name.clone()).collect();
        let consumers =
            config.consumers.iter().map(|(name, consumer)| (consumer.queue.clone(), name.clone())).collect();
        let failed = config.consumers.values().find(|consumer| consumer.handles_failures());
        let failed_queue = failed.map(|consumer| consumer.queue.clone()).unwrap_or_default();
        QueueRoles { declared, consumers, failed_queue }
    }

    /// The names of all queues that must exist.
    pub(super) fn declared(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().map(String::as_str)
    }

    /// The queue of the failed-order consumer.
    pub(super) fn failed_queue(&self) -> &str {
        &self.failed_queue
    }

    /// The role of a queue; `None` if it does not belong to orderd. Every queue that is named like a retry queue of a work
    /// queue is taken for one, from this configuration or an earlier one.
    pub(super) fn role_of(&self, queue: &str) -> Option<QueueRole> {
        match queue {
            ExchangeNames::DEAD_LETTER_QUEUE => return Some(QueueRole::DeadLetter),
            ExchangeNames::UNROUTED_QUEUE => return Some(QueueRole::Unrouted),
            _ => {}
        }
        if let Some(consumer) = self.consumers.get(queue) {
            return Some(QueueRole::Work { consumer: consumer.clone() });
        }
        let (of, delay) = queue.rsplit_once(".retry.")?;
        let parsed: Delay = delay.parse().ok()?;
        let is_ours = self.consumers.contains_key(of) && ExchangeNames::retry_queue(of, parsed) == queue;
        is_ours.then(|| QueueRole::Retry {
            of: of.to_owned(),
            delay: delay.to_owned(),
            configured: self.declared.contains(queue),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::handlers;

    pub fn config() -> Config {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
        let sources = Sources { file: Some(file.into()), ..handlers::sources() };
        Config::load(&sources).unwrap().config
    }

    #[test]
    fn the_role_of_a_queue_follows_from_its_name() {
        let roles = QueueRoles::new(&config());
        let retry = |delay: &str, configured| {
            Some(QueueRole::Retry { of: "order_queue".into(), delay: delay.into(), configured })
        };
        assert_eq!(roles.role_of("order_queue"), Some(QueueRole::Work { consumer: "order".into() }));
        assert_eq!(roles.role_of("order_queue.retry.10s"), retry("10s", true));
        assert_eq!(roles.role_of("order_queue.retry.7s"), retry("7s", false));
        assert_eq!(roles.role_of("dead_letter_queue"), Some(QueueRole::DeadLetter));
        assert_eq!(roles.role_of("unrouted_queue"), Some(QueueRole::Unrouted));
        for other in ["mine", "mine.retry.10s", "order_queue.retry.60s", "order_queue.retry.soon", "order_queue.retry."]
        {
            assert_eq!(roles.role_of(other), None, "{other}");
        }
        assert_eq!(roles.failed_queue(), "failed_order_queue");
        assert_eq!(roles.declared().count(), 20);
    }
}
