//! Checks every second that the delivery counts add up, and logs an error when they do not. It also takes the samples
//! from which the rates are computed.
//!
//! It only reports; it never stops or repairs anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use super::registry::StatusRegistry;
use crate::metrics::conservation::{Imbalance, check};
use crate::shutdown::Shutdown;

/// How often the counts are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A sample for the rates is taken at every so many checks.
const CHECKS_PER_SAMPLE: u32 = 5;
/// Consecutive checks that must find an imbalance before it is reported. Readings are consistent, but a pool that dies
/// settles its deliveries a moment after its subscription has ended.
const REPORT_AFTER: u32 = 3;

/// Checks the counts of all consumers until a shutdown begins.
pub async fn check_invariants(status_registry: Arc<StatusRegistry>, shutdown: Shutdown) {
    let mut trackers = BTreeMap::new();
    for tick in 0_u32.. {
        for consumer in status_registry.consumers().iter() {
            let reading = consumer.counters.read();
            let imbalance = check(&reading.counts, &reading.pool).err();
            let tracker = trackers.entry(consumer.name.clone()).or_insert_with(ImbalanceTracker::default);
            match tracker.record(imbalance) {
                BalanceChange::None => {}
                BalanceChange::Broken(imbalance) => {
                    let counts = reading.counts;
                    error!(consumer = consumer.name, %imbalance, ?counts, "deliveries do not add up: report this with the log");
                }
                BalanceChange::Restored => info!(consumer = consumer.name, "deliveries add up again"),
            }
        }
        if tick.is_multiple_of(CHECKS_PER_SAMPLE) {
            status_registry.take_sample();
        }
        if !shutdown.sleep(CHECK_INTERVAL).await {
            return;
        }
    }
}

/// The number of consecutive checks at which a consumer's counts did not add up.
#[derive(Debug, Default)]
struct ImbalanceTracker {
    failed_checks: u32,
}

/// What has to be reported after a check.
#[derive(Debug, PartialEq, Eq)]
enum BalanceChange {
    None,
    Broken(Imbalance),
    Restored,
}

impl ImbalanceTracker {
    /// Records the result of one check.
    fn record(&mut self, imbalance: Option<Imbalance>) -> BalanceChange {
        let Some(imbalance) = imbalance else {
            let was_reported = std::mem::take(&mut self.failed_checks) >= REPORT_AFTER;
            return if was_reported { BalanceChange::Restored } else { BalanceChange::None };
        };
        self.failed_checks = self.failed_checks.saturating_add(1);
        if self.failed_checks == REPORT_AFTER { BalanceChange::Broken(imbalance) } else { BalanceChange::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: Imbalance = Imbalance::Missing { missing: 1 };

    #[test]
    fn only_a_lasting_imbalance_is_reported_and_only_once() {
        let mut tracker = ImbalanceTracker::default();
        assert_eq!(tracker.record(Some(MISSING)), BalanceChange::None);
        assert_eq!(tracker.record(None), BalanceChange::None, "it lasted for one check only");
        let changes: Vec<_> = (0..5).map(|_| tracker.record(Some(MISSING))).collect();
        let none = || BalanceChange::None;
        assert_eq!(changes, [none(), none(), BalanceChange::Broken(MISSING), none(), none()]);
        assert_eq!(tracker.record(None), BalanceChange::Restored);
        assert_eq!(tracker.record(None), BalanceChange::None);
    }
}
