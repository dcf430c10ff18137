//! Conservation: every delivery received from the broker is settled or in flight; none is lost or counted twice.
//!
//! Pure: it checks one consistent reading of a consumer's counters.

use super::counter_reading::{DeliveryCounts, PoolState};

/// How the counts of a consumer do not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Imbalance {
    /// Fewer deliveries are settled or in flight than were received.
    #[error("{missing} deliveries are neither settled nor in flight")]
    Missing {
        /// How many.
        missing: u64,
    },
    /// More deliveries are settled or in flight than were received.
    #[error("{surplus} deliveries are settled twice, or settled and in flight")]
    Surplus {
        /// How many.
        surplus: u64,
    },
    /// More deliveries are in flight than the prefetch allows: some were dropped without being settled.
    #[error("{in_flight} deliveries are in flight where the prefetch allows {capacity}")]
    TooManyInFlight {
        /// How many are in flight.
        in_flight: u64,
        /// Workers × prefetch, of all subscriptions together.
        capacity: u64,
    },
    /// Deliveries are in flight without any subscription: they should have been settled with its end.
    #[error("{in_flight} deliveries are in flight without a subscription")]
    Stranded {
        /// How many.
        in_flight: u64,
    },
}

/// Checks one consumer. While one pool replaces another, both have deliveries in flight.
///
/// # Errors
/// The first rule that does not hold.
pub fn check(counts: &DeliveryCounts, pool: &PoolState) -> Result<(), Imbalance> {
    let accounted_for = counts.accounted_for();
    if accounted_for < counts.deliveries {
        return Err(Imbalance::Missing { missing: counts.deliveries - accounted_for });
    }
    if accounted_for > counts.deliveries {
        return Err(Imbalance::Surplus { surplus: accounted_for - counts.deliveries });
    }
    if counts.in_flight > 0 && !pool.has_subscription() {
        return Err(Imbalance::Stranded { in_flight: counts.in_flight });
    }
    if counts.in_flight > pool.capacity {
        return Err(Imbalance::TooManyInFlight { in_flight: counts.in_flight, capacity: pool.capacity });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirteen deliveries: two completed, two in flight, and one of each other outcome.
    fn balanced() -> DeliveryCounts {
        DeliveryCounts {
            deliveries: 13,
            completed: 2,
            duplicates: 1,
            cancelled: 1,
            prevented: 1,
            skipped: 1,
            forwarded: 1,
            retried: 1,
            dead_lettered: 1,
            released: 1,
            rejected: 1,
            in_flight: 2,
            ..DeliveryCounts::default()
        }
    }

    /// A pool with one subscription.
    fn subscribed(capacity: u64) -> PoolState {
        PoolState { active_subscriptions: 1, capacity, ..PoolState::default() }
    }

    #[test]
    fn settled_and_in_flight_deliveries_add_up() {
        assert_eq!(check(&balanced(), &subscribed(100)), Ok(()));
        assert_eq!(
            check(&balanced(), &PoolState { draining_subscriptions: 1, capacity: 2, ..PoolState::default() }),
            Ok(())
        );
        assert_eq!(check(&DeliveryCounts::default(), &PoolState::default()), Ok(()));
    }

    #[test]
    fn a_delivery_neither_settled_nor_in_flight_is_missing() {
        for lose in [
            |counts: &mut DeliveryCounts| counts.completed -= 1,
            |counts: &mut DeliveryCounts| counts.in_flight -= 1,
            |counts: &mut DeliveryCounts| counts.forwarded -= 1,
            |counts: &mut DeliveryCounts| counts.deliveries += 1,
        ] {
            let mut counts = balanced();
            lose(&mut counts);
            assert_eq!(check(&counts, &subscribed(100)), Err(Imbalance::Missing { missing: 1 }));
        }
    }

    #[test]
    fn a_delivery_counted_twice_is_a_surplus() {
        for count_twice in [
            |counts: &mut DeliveryCounts| counts.released += 1,
            |counts: &mut DeliveryCounts| counts.duplicates += 1,
            |counts: &mut DeliveryCounts| counts.dead_lettered += 1,
            |counts: &mut DeliveryCounts| counts.rejected += 1,
            |counts: &mut DeliveryCounts| counts.retried += 1,
            |counts: &mut DeliveryCounts| counts.returned += 1,
        ] {
            let mut counts = balanced();
            count_twice(&mut counts);
            assert_eq!(check(&counts, &subscribed(100)), Err(Imbalance::Surplus { surplus: 1 }));
        }
    }

    #[test]
    fn deliveries_that_are_never_settled_are_detected() {
        assert_eq!(check(&balanced(), &subscribed(1)), Err(Imbalance::TooManyInFlight { in_flight: 2, capacity: 1 }));
        assert_eq!(check(&balanced(), &PoolState::default()), Err(Imbalance::Stranded { in_flight: 2 }));
    }
}
