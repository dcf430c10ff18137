//! Looks at the counters every second: keeps samples for the rates, and raises the alarm when they do not add up.
//!
//! It tells; it never stops or mends anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use super::registry::StatusRegistry;
use crate::metrics::conservation::{Imbalance, check};
use crate::shutdown::Shutdown;

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Every so many looks, a sample for the rates is kept.
const SAMPLE: u32 = 5;
/// Looks in a row after which an imbalance lasts. Readings are consistent, but a pool that dies lets go of its
/// deliveries a moment after it has ended.
const LASTING: u32 = 3;

/// Watches until a shutdown begins.
pub async fn watch(live: Arc<StatusRegistry>, shutdown: Shutdown) {
    let mut doubts = BTreeMap::new();
    for look in 0_u32.. {
        for watched in live.consumers().iter() {
            let reading = watched.counters.read();
            let judged = check(&reading.counts, &reading.pool);
            match doubts.entry(watched.name.clone()).or_insert_with(Doubt::default).look(judged.err()) {
                Change::None => {}
                Change::Broken(imbalance) => {
                    let counts = reading.counts;
                    error!(consumer = watched.name, %imbalance, ?counts, "deliveries do not add up: report this with the log");
                }
                Change::Mended => info!(consumer = watched.name, "deliveries add up again"),
            }
        }
        if look.is_multiple_of(SAMPLE) {
            live.sample();
        }
        if !shutdown.sleep(LOOK).await {
            return;
        }
    }
}

/// How long a consumer's counters have not added up.
#[derive(Debug, Default)]
struct Doubt {
    looks: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Broken(Imbalance),
    Mended,
}

impl Doubt {
    fn look(&mut self, imbalance: Option<Imbalance>) -> Change {
        let Some(imbalance) = imbalance else {
            let told = std::mem::take(&mut self.looks) >= LASTING;
            return if told { Change::Mended } else { Change::None };
        };
        self.looks = self.looks.saturating_add(1);
        if self.looks == LASTING { Change::Broken(imbalance) } else { Change::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: Imbalance = Imbalance::Missing { missing: 1 };

    #[test]
    fn only_what_lasts_is_told_and_it_is_told_once() {
        let mut doubt = Doubt::default();
        assert_eq!(doubt.look(Some(MISSING)), Change::None);
        assert_eq!(doubt.look(None), Change::None, "it was a passing moment");
        let changes: Vec<_> = (0..5).map(|_| doubt.look(Some(MISSING))).collect();
        let none = || Change::None;
        assert_eq!(changes, [none(), none(), Change::Broken(MISSING), none(), none()]);
        assert_eq!(doubt.look(None), Change::Mended);
        assert_eq!(doubt.look(None), Change::None);
    }
}
