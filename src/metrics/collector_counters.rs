//! Counts what the collector of one dead letter queue has done since the daemon started.
//!
//! Each delivery moves from in flight to its outcome in one step under one lock, so every reading adds up:
//! `received = stored + duplicates + released + in_flight`. It never decides anything.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a message stays in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptCause {
    /// Its body is larger than `broker.max_body`.
    TooLarge,
    /// The ledger refuses it.
    Refused,
}

impl KeptCause {
    /// All of them.
    pub const ALL: [KeptCause; 2] = [KeptCause::TooLarge, KeptCause::Refused];

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            KeptCause::TooLarge => "too_large",
            KeptCause::Refused => "refused",
        }
    }
}

/// What a delivery has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// It is stored.
    Stored,
    /// It was stored before.
    Duplicate,
}

/// One reading, which adds up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectorReading {
    /// It is to collect.
    pub enabled: bool,
    /// It has a subscription.
    pub subscribed: bool,
    /// Why its last attempt to subscribe failed.
    pub subscribe_error: Option<String>,
    /// Subscriptions since the start.
    pub subscriptions: u64,
    /// Deliveries received.
    pub received: u64,
    /// Stored, and acked.
    pub stored: u64,
    /// Acked, because they were stored before.
    pub duplicates: u64,
    /// Returned to the queue.
    pub released: u64,
    /// Received and not settled, those that stay in the queue included.
    pub in_flight: u64,
    /// Those of them that stay in the queue, because they are too large.
    pub too_large: u64,
    /// Those of them that stay in the queue, because the ledger refuses them.
    pub refused: u64,
}

impl CollectorReading {
    /// How many messages stay in the queue for this cause.
    pub fn kept(&self, cause: KeptCause) -> u64 {
        match cause {
            KeptCause::TooLarge => self.too_large,
            KeptCause::Refused => self.refused,
        }
    }
}

/// The counters of one collector.
#[derive(Debug, Default)]
pub struct CollectorCounters(Mutex<CollectorReading>);

impl CollectorCounters {
    /// All counts at one time.
    pub fn read(&self) -> CollectorReading {
        self.lock().clone()
    }

    /// Whether it is to collect.
    pub fn set_enabled(&self, enabled: bool) {
        self.lock().enabled = enabled;
    }

    /// An attempt to subscribe has failed.
    pub fn subscribe_failed(&self, error: String) {
        self.lock().subscribe_error = Some(error);
    }

    /// It has subscribed.
    pub fn subscribed(&self) {
        let mut state = self.lock();
        (state.subscribed, state.subscribe_error) = (true, None);
        state.subscriptions += 1;
    }

    /// The subscription has ended: what was not settled returns to the queue.
    pub fn unsubscribed(&self) {
        let mut state = self.lock();
        state.subscribed = false;
        state.released += state.in_flight;
        (state.in_flight, state.too_large, state.refused) = (0, 0, 0);
    }

    /// A delivery was received.
    pub fn received(&self) {
        let mut state = self.lock();
        state.received += 1;
        state.in_flight += 1;
    }

    /// A delivery is acked.
    pub fn collected(&self, outcome: Collected) {
        let mut state = self.lock();
        state.in_flight -= 1;
        match outcome {
            Collected::Stored => state.stored += 1,
            Collected::Duplicate => state.duplicates += 1,
        }
    }

    /// A delivery stays in its queue.
    pub fn kept(&self, cause: KeptCause) {
        let mut state = self.lock();
        match cause {
            KeptCause::TooLarge => state.too_large += 1,
            KeptCause::Refused => state.refused += 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, CollectorReading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_delivery_is_counted_once() {
        let counters = CollectorCounters::default();
        counters.subscribed();
        (0..5).for_each(|_| counters.received());
        counters.collected(Collected::Stored);
        counters.collected(Collected::Duplicate);
        counters.kept(KeptCause::TooLarge);
        let reading = counters.read();
        assert_eq!((reading.received, reading.in_flight, reading.kept(KeptCause::TooLarge)), (5, 3, 1));
        counters.unsubscribed();
        let CollectorReading { received, stored, duplicates, released, in_flight, too_large, .. } = counters.read();
        assert_eq!((received, stored + duplicates + released, in_flight, too_large), (5, 5, 0, 0));
    }
}
