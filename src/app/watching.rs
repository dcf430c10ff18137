//! The poller of the management API, with orderd's own counts joined to it.
//!
//! It reads counters and nothing else.

use std::sync::Arc;

use crate::amqp::ConfirmingPublisher;
use crate::config::Config;
use crate::monitor::{Limits, Own, Poller};
use crate::worker::Counters;

/// A poller that holds these consumers' counters against the broker's.
pub(super) fn poller(
    config: &Config,
    counters: &[(String, Arc<Counters>)],
    publisher: &Arc<ConfirmingPublisher>,
) -> Poller {
    let publisher = Arc::clone(publisher);
    let queue = |consumer: &String| config.consumers.get(consumer).map(|consumer| consumer.queue.clone());
    let by_queue: Vec<_> =
        counters.iter().filter_map(|(consumer, counters)| Some((queue(consumer)?, Arc::clone(counters)))).collect();
    let own = move || Own {
        tallies: by_queue.iter().map(|(queue, counters)| (queue.clone(), counters.tally())).collect(),
        publisher_epoch: publisher.state().epoch,
    };
    Poller::new(config, Limits::DEFAULT, own)
}
