//! Conservation: every delivery taken from the broker is settled or in hand, none is lost and none counted twice.
//!
//! Pure: it judges one consistent reading of a consumer's counters.

use super::counters::{DeliveryCounts, PoolState};

/// What does not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Imbalance {
    /// Fewer deliveries are settled or in flight than were taken.
    #[error("{missing} deliveries are neither settled nor in flight")]
    Missing {
        /// How many.
        missing: u64,
    },
    /// More deliveries are settled or in flight than were taken.
    #[error("{surplus} deliveries are settled twice, or settled and in flight")]
    Surplus {
        /// How many.
        surplus: u64,
    },
    /// More are in flight than the broker hands out: some were given up without being settled.
    #[error("{in_flight} deliveries are in flight where the prefetch allows {most}")]
    TooManyInFlight {
        /// How many are.
        in_flight: u64,
        /// Workers × prefetch, of all subscriptions together.
        most: u64,
    },
    /// Deliveries are in flight though no subscription is: whoever held them has not let go.
    #[error("{in_flight} deliveries are in flight without a subscription")]
    Stranded {
        /// How many.
        in_flight: u64,
    },
}

/// Judges one consumer. While a pool replaces another one, both have deliveries in flight.
///
/// # Errors
/// What does not add up.
pub fn check(counts: &DeliveryCounts, pool: &PoolState) -> Result<(), Imbalance> {
    let accounted = counts.accounted();
    if accounted < counts.deliveries {
        return Err(Imbalance::Missing { missing: counts.deliveries - accounted });
    }
    if accounted > counts.deliveries {
        return Err(Imbalance::Surplus { surplus: accounted - counts.deliveries });
    }
    if counts.in_flight > 0 && !pool.is_serving() {
        return Err(Imbalance::Stranded { in_flight: counts.in_flight });
    }
    if counts.in_flight > pool.capacity {
        return Err(Imbalance::TooManyInFlight { in_flight: counts.in_flight, most: pool.capacity });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten deliveries, one of each ending but two completed and two in flight.
    fn balanced() -> DeliveryCounts {
        DeliveryCounts {
            deliveries: 10,
            completed: 2,
            duplicates: 1,
            forwarded: 1,
            retried: 1,
            dead_lettered: 1,
            released: 1,
            rejected: 1,
            in_flight: 2,
            ..DeliveryCounts::default()
        }
    }

    fn serving(slots: u64) -> PoolState {
        PoolState { active_subscriptions: 1, capacity: slots, ..PoolState::default() }
    }

    #[test]
    fn what_is_settled_or_in_flight_adds_up() {
        assert_eq!(check(&balanced(), &serving(100)), Ok(()));
        assert_eq!(
            check(&balanced(), &PoolState { draining_subscriptions: 1, capacity: 2, ..PoolState::default() }),
            Ok(())
        );
        assert_eq!(check(&DeliveryCounts::default(), &PoolState::default()), Ok(()));
    }

    #[test]
    fn a_delivery_that_vanished_is_missing() {
        for lost in [
            |counts: &mut DeliveryCounts| counts.completed -= 1,
            |counts: &mut DeliveryCounts| counts.in_flight -= 1,
            |counts: &mut DeliveryCounts| counts.forwarded -= 1,
            |counts: &mut DeliveryCounts| counts.deliveries += 1,
        ] {
            let mut counts = balanced();
            lost(&mut counts);
            assert_eq!(check(&counts, &serving(100)), Err(Imbalance::Missing { missing: 1 }));
        }
    }

    #[test]
    fn a_delivery_counted_twice_is_a_surplus() {
        for doubled in [
            |counts: &mut DeliveryCounts| counts.released += 1,
            |counts: &mut DeliveryCounts| counts.duplicates += 1,
            |counts: &mut DeliveryCounts| counts.dead_lettered += 1,
            |counts: &mut DeliveryCounts| counts.rejected += 1,
            |counts: &mut DeliveryCounts| counts.retried += 1,
        ] {
            let mut counts = balanced();
            doubled(&mut counts);
            assert_eq!(check(&counts, &serving(100)), Err(Imbalance::Surplus { surplus: 1 }));
        }
    }

    #[test]
    fn deliveries_that_nobody_lets_go_of_are_found() {
        assert_eq!(check(&balanced(), &serving(1)), Err(Imbalance::TooManyInFlight { in_flight: 2, most: 1 }));
        assert_eq!(check(&balanced(), &PoolState::default()), Err(Imbalance::Stranded { in_flight: 2 }));
    }
}
