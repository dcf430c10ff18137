//! Builds the poller of the management API, which compares the broker's counts with orderd's own.
//!
//! It only reads counters.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::amqp::ConfirmingPublisher;
use crate::config::Config;
use crate::reconcile::{BrokerView, Limits, LocalCounts, Poller};
use crate::status::StatusRegistry;

/// A poller that holds the consumers' counters against the broker's. It is to run once there is a publisher.
pub(super) fn poller(
    config: &Config,
    live: Arc<StatusRegistry>,
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
    readers: watch::Sender<Arc<BrokerView>>,
) -> Poller {
    let own = move || {
        let consumers = live.consumers();
        // The broker counts by queue. Those that were removed are no queues of the configuration any more.
        let counted = consumers.iter().filter(|one| one.workers > 0 && !one.drains_elsewhere);
        LocalCounts {
            counts: counted.map(|one| (one.queue.clone(), one.counters.counts())).collect(),
            paused: consumers.iter().filter_map(|one| Some((one.queue.clone(), one.paused_since?))).collect(),
            publisher_connection: publisher.get().map_or(0, |publisher| publisher.state().connection),
        }
    };
    Poller::new(config, Limits::DEFAULT, own).with_readers(readers)
}
