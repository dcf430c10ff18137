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

/// Why nothing is taken out of the queues for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectionPause {
    /// Not all consumers have a subscription yet.
    Consumers,
    /// A consumer or the publisher gets no connection, because a limit of the broker is reached.
    ConnectionLimit,
    /// The ledger's disk is nearly full.
    DiskSpace,
}

impl CollectionPause {
    /// Its name in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            CollectionPause::Consumers => "consumers",
            CollectionPause::ConnectionLimit => "connection_limit",
            CollectionPause::DiskSpace => "disk_space",
        }
    }

    /// Whether a subscription must end, and not only wait to begin.
    pub fn ends_subscription(self) -> bool {
        match self {
            CollectionPause::Consumers => false,
            CollectionPause::ConnectionLimit | CollectionPause::DiskSpace => true,
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
    /// Why it does not subscribe for now.
    pub pause: Option<CollectionPause>,
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
    /// Messages that stay in the queue, because they are too large. A new subscription does not change that before it has
    /// received them again.
    pub too_large: u64,
    /// Messages that stay in the queue, because the ledger refuses them.
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

/// Messages that stay in the queue.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    too_large: u64,
    refused: u64,
}

impl Kept {
    fn max(self, other: Kept) -> Kept {
        Kept { too_large: self.too_large.max(other.too_large), refused: self.refused.max(other.refused) }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Without the messages that stay in the queue.
    reading: CollectorReading,
    /// Found by this subscription.
    kept: Kept,
    /// Found by the one before, until this one has received them again.
    kept_before: Kept,
}

/// The counters of one collector.
#[derive(Debug, Default)]
pub struct CollectorCounters(Mutex<State>);

impl CollectorCounters {
    /// All counts at one time.
    pub fn read(&self) -> CollectorReading {
        let state = self.lock();
        let Kept { too_large, refused } = state.kept.max(state.kept_before);
        CollectorReading { too_large, refused, ..state.reading.clone() }
    }

    /// Whether it is to collect.
    pub fn set_enabled(&self, enabled: bool) {
        let mut state = self.lock();
        state.reading.enabled = enabled;
        (state.reading.pause, state.kept_before) = (None, Kept::default());
    }

    /// Why it does not subscribe for now.
    pub fn set_pause(&self, cause: Option<CollectionPause>) {
        self.lock().reading.pause = cause;
    }

    /// An attempt to subscribe has failed.
    pub fn subscribe_failed(&self, error: String) {
        self.lock().reading.subscribe_error = Some(error);
    }

    /// It has subscribed.
    pub fn subscribed(&self) {
        let reading = &mut self.lock().reading;
        (reading.subscribed, reading.subscribe_error) = (true, None);
        reading.subscriptions += 1;
    }

    /// The subscription has received again what stays in the queue.
    pub fn has_received_kept(&self) {
        self.lock().kept_before = Kept::default();
    }

    /// The subscription has ended: what was not settled returns to the queue.
    pub fn unsubscribed(&self) {
        let mut state = self.lock();
        state.kept_before = state.kept.max(state.kept_before);
        state.kept = Kept::default();
        let reading = &mut state.reading;
        reading.subscribed = false;
        reading.released += reading.in_flight;
        reading.in_flight = 0;
    }

    /// A delivery was received.
    pub fn received(&self) {
        let reading = &mut self.lock().reading;
        reading.received += 1;
        reading.in_flight += 1;
    }

    /// A delivery is acked.
    pub fn collected(&self, outcome: Collected) {
        let reading = &mut self.lock().reading;
        reading.in_flight -= 1;
        match outcome {
            Collected::Stored => reading.stored += 1,
            Collected::Duplicate => reading.duplicates += 1,
        }
    }

    /// A delivery stays in its queue.
    pub fn kept(&self, cause: KeptCause) {
        let mut state = self.lock();
        match cause {
            KeptCause::TooLarge => state.kept.too_large += 1,
            KeptCause::Refused => state.kept.refused += 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
        let CollectorReading { received, stored, duplicates, released, in_flight, .. } = counters.read();
        assert_eq!((received, stored + duplicates + released, in_flight), (5, 5, 0));
    }

    #[test]
    fn what_stays_in_the_queue_is_counted_without_a_gap_while_a_subscription_is_renewed() {
        let counters = CollectorCounters::default();
        let too_large = || counters.read().too_large;
        counters.subscribed();
        (0..2).for_each(|_| counters.kept(KeptCause::TooLarge));
        for _ in 0..2 {
            counters.unsubscribed();
            assert_eq!(too_large(), 2, "between two subscriptions");
            counters.subscribed();
            counters.kept(KeptCause::TooLarge);
            assert_eq!(too_large(), 2, "before it has received both again");
        }
        counters.has_received_kept();
        assert_eq!(too_large(), 1, "the other was removed");
        counters.unsubscribed();
        counters.set_enabled(false);
        assert_eq!(too_large(), 0);
    }
}
