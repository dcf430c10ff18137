//! Conservation: every delivery taken from the broker is settled or in hand, none is lost and none counted twice.
//!
//! Pure: it judges one consistent reading of a consumer's counters.

use super::counters::{PoolState, Tally};

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
pub fn check(tally: &Tally, pool: &PoolState) -> Result<(), Imbalance> {
    let accounted = tally.accounted();
    if accounted < tally.deliveries {
        return Err(Imbalance::Missing { missing: tally.deliveries - accounted });
    }
    if accounted > tally.deliveries {
        return Err(Imbalance::Surplus { surplus: accounted - tally.deliveries });
    }
    if tally.in_flight > 0 && !pool.is_serving() {
        return Err(Imbalance::Stranded { in_flight: tally.in_flight });
    }
    if tally.in_flight > pool.slots {
        return Err(Imbalance::TooManyInFlight { in_flight: tally.in_flight, most: pool.slots });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten deliveries, one of each ending but two completed and two in flight.
    fn balanced() -> Tally {
        Tally {
            deliveries: 10,
            completed: 2,
            duplicates: 1,
            forwarded: 1,
            retried: 1,
            parked: 1,
            released: 1,
            rejected: 1,
            in_flight: 2,
            ..Tally::default()
        }
    }

    fn serving(slots: u64) -> PoolState {
        PoolState { taking: 1, slots, ..PoolState::default() }
    }

    #[test]
    fn what_is_settled_or_in_flight_adds_up() {
        assert_eq!(check(&balanced(), &serving(100)), Ok(()));
        assert_eq!(check(&balanced(), &PoolState { draining: 1, slots: 2, ..PoolState::default() }), Ok(()));
        assert_eq!(check(&Tally::default(), &PoolState::default()), Ok(()));
    }

    #[test]
    fn a_delivery_that_vanished_is_missing() {
        for lost in [
            |tally: &mut Tally| tally.completed -= 1,
            |tally: &mut Tally| tally.in_flight -= 1,
            |tally: &mut Tally| tally.forwarded -= 1,
            |tally: &mut Tally| tally.deliveries += 1,
        ] {
            let mut tally = balanced();
            lost(&mut tally);
            assert_eq!(check(&tally, &serving(100)), Err(Imbalance::Missing { missing: 1 }));
        }
    }

    #[test]
    fn a_delivery_counted_twice_is_a_surplus() {
        for doubled in [
            |tally: &mut Tally| tally.released += 1,
            |tally: &mut Tally| tally.duplicates += 1,
            |tally: &mut Tally| tally.parked += 1,
            |tally: &mut Tally| tally.rejected += 1,
            |tally: &mut Tally| tally.retried += 1,
        ] {
            let mut tally = balanced();
            doubled(&mut tally);
            assert_eq!(check(&tally, &serving(100)), Err(Imbalance::Surplus { surplus: 1 }));
        }
    }

    #[test]
    fn deliveries_that_nobody_lets_go_of_are_found() {
        assert_eq!(check(&balanced(), &serving(1)), Err(Imbalance::TooManyInFlight { in_flight: 2, most: 1 }));
        assert_eq!(check(&balanced(), &PoolState::default()), Err(Imbalance::Stranded { in_flight: 2 }));
    }
}
