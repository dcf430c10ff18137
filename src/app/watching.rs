//! The poller of the management API, with orderd's own counts joined to it.
//!
//! It reads counters and nothing else.

use std::sync::{Arc, OnceLock};

use crate::admin::Watched;
use crate::amqp::ConfirmingPublisher;
use crate::config::Config;
use crate::monitor::{Limits, Own, Poller};

/// A poller that holds these consumers' counters against the broker's. It is to run once there is a publisher.
pub(super) fn poller(
    config: &Config,
    consumers: &[Watched],
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
) -> Poller {
    let by_queue: Vec<_> = consumers.iter().map(|one| (one.queue.clone(), Arc::clone(&one.counters))).collect();
    let own = move || Own {
        tallies: by_queue.iter().map(|(queue, counters)| (queue.clone(), counters.tally())).collect(),
        publisher_epoch: publisher.get().map_or(0, |publisher| publisher.state().epoch),
    };
    Poller::new(config, Limits::DEFAULT, own)
}
