//! Finds out why dead letters are to stay in their queues for now: the orders come first, on the broker and on the disk.
//!
//! It only watches. The collectors give way by themselves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::amqp::Connector;
use crate::files::{DiskSpace, disk_space};
use crate::metrics::CollectionPause;
use crate::shutdown::Shutdown;
use crate::status::{ConsumerSummary, StatusRegistry, StatusSummary, SubscriptionState};

/// How often the causes are looked for.
const CHECK: Duration = Duration::from_millis(200);
/// How often the disk is asked.
const DISK_CHECK: Duration = Duration::from_secs(5);
/// How long the consumers are waited for at most. One may lack its queue, which needs no connection of the collectors'.
const CONSUMERS_WAIT: Duration = Duration::from_secs(30);
/// After a refused connection, the consumers have this much longer than their longest wait between attempts.
const LIMIT_GRACE: Duration = Duration::from_secs(10);
/// This part of the ledger's disk is left to the orders, ...
const RESERVE_PART: u64 = 20;
/// ... but at least this much, ...
const MIN_RESERVE: u64 = 128 << 20;
/// ... and at most this much, ...
const MAX_RESERVE: u64 = 4 << 30;
/// ... and no more than this part of a small disk.
const SMALL_DISK_PART: u64 = 4;

/// What is watched.
pub(super) struct CollectionPauseWatch {
    pub status_registry: Arc<StatusRegistry>,
    /// The connections of consumers and publisher.
    pub connector: Connector,
    pub reconnect_max: Duration,
    /// The ledger's.
    pub directory: PathBuf,
    pub shutdown: Shutdown,
}

impl CollectionPauseWatch {
    /// Watches until a shutdown begins, or until nobody listens.
    pub async fn run(self, pause: watch::Sender<Option<CollectionPause>>) {
        let mut consumers_since = Some(Instant::now());
        let (mut is_short, mut disk_due) = (false, Instant::now());
        loop {
            if disk_due <= Instant::now() {
                is_short = self.is_short_of_disk(is_short).await;
                disk_due = Instant::now() + DISK_CHECK;
            }
            consumers_since = if self.all_consume() { None } else { consumers_since.or_else(|| Some(Instant::now())) };
            let waits = consumers_since.is_some_and(|since| since.elapsed() < CONSUMERS_WAIT);
            let at_limit = self.connector.was_refused_by_limit(self.reconnect_max + LIMIT_GRACE);
            let cause = match (is_short, at_limit, waits) {
                (true, _, _) => Some(CollectionPause::DiskSpace),
                (false, true, _) => Some(CollectionPause::ConnectionLimit),
                (false, false, true) => Some(CollectionPause::Consumers),
                (false, false, false) => None,
            };
            pause.send_if_modified(|known| std::mem::replace(known, cause) != cause);
            if pause.is_closed() || !self.shutdown.sleep(CHECK).await {
                return;
            }
        }
    }

    /// Whether each consumer that is to run has a subscription, and the publisher a connection.
    fn all_consume(&self) -> bool {
        let StatusSummary { consumers, publisher_connected, .. } = self.status_registry.summary();
        let consumes = |consumer: &ConsumerSummary| match consumer.subscription {
            SubscriptionState::Active | SubscriptionState::Paused => true,
            SubscriptionState::NeverOpened | SubscriptionState::Lost => false,
        };
        publisher_connected == Some(true) && consumers.iter().all(consumes)
    }

    async fn is_short_of_disk(&self, was_short: bool) -> bool {
        let directory = self.directory.clone();
        let asked = tokio::task::spawn_blocking(move || disk_space(&directory)).await;
        // If it cannot be found out, the ledger reports what is wrong.
        let Some(space) = asked.ok().flatten() else { return was_short };
        let (is_short, reserve) = (is_short(space, was_short), reserve(space.total));
        match (was_short, is_short) {
            (false, true) => warn!(
                free = space.free,
                reserve,
                "the ledger's disk is nearly full: dead letters stay in their queues, so that orders have room"
            ),
            (true, false) => info!(free = space.free, "the ledger's disk has room for dead letters again"),
            (true, true) | (false, false) => {}
        }
        is_short
    }
}

/// How much of a disk is left to the orders, in bytes.
fn reserve(total: u64) -> u64 {
    (total / RESERVE_PART).clamp(MIN_RESERVE, MAX_RESERVE).min(total / SMALL_DISK_PART)
}

/// Once it is short, it needs somewhat more to have enough: the collectors would use that up at once.
fn is_short(space: DiskSpace, was_short: bool) -> bool {
    let reserve = reserve(space.total);
    space.free < if was_short { reserve + reserve / 4 } else { reserve }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_a_part_for_orders_and_is_not_short_and_enough_in_turn() {
        const GIB: u64 = 1 << 30;
        for (total, expected) in
            [(GIB / 8, GIB / 32), (GIB / 2, MIN_RESERVE), (40 * GIB, 2 * GIB), (1_000 * GIB, MAX_RESERVE)]
        {
            assert_eq!(reserve(total), expected);
        }
        let space = |free| DiskSpace { free, total: 40 * GIB };
        assert!(is_short(space(2 * GIB - 1), false) && !is_short(space(2 * GIB), false));
        assert!(is_short(space(2 * GIB), true) && !is_short(space(3 * GIB), true));
    }
}
