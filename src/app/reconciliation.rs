//! Builds the poller of the management API, which compares the broker's counts with orderd's own.
//!
//! It only reads counters.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::amqp::{ConfirmingPublisher, Redeclaration};
use crate::config::Config;
use crate::metrics::FailedUndos;
use crate::reconcile::{BrokerView, Limits, LocalCounts, Poller};
use crate::status::StatusRegistry;

/// A poller that compares the broker with these consumers' counters. It must not run before there is a publisher.
pub(super) fn poller(
    config: &Config,
    status_registry: Arc<StatusRegistry>,
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
    broker_view: watch::Sender<Arc<BrokerView>>,
    redeclaration: Redeclaration,
) -> Poller {
    let local_counts = move || {
        let consumers = status_registry.consumers();
        // The broker counts by queue. Queues of removed consumers are no longer in the configuration.
        let comparable = consumers.iter().filter(|consumer| consumer.workers > 0 && !consumer.drains_former_queue);
        let paused = consumers.iter().filter_map(|consumer| Some((consumer.queue.clone(), consumer.paused_since?)));
        LocalCounts {
            counts: comparable.map(|consumer| (consumer.queue.clone(), consumer.counters.counts())).collect(),
            paused: paused.collect(),
            failed_undos: consumers
                .iter()
                .map(|consumer| consumer.counters.failed_undos())
                .fold(FailedUndos::default(), FailedUndos::and),
            collectors: status_registry.running_collectors(),
            publisher_connection: publisher.get().map_or(0, |publisher| publisher.state().connection),
        }
    };
    Poller::new(config, Limits::DEFAULT, local_counts).with_readers(broker_view).with_redeclaration(redeclaration)
}
