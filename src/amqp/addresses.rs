//! The broker's addresses: how many connections each has, and which have failed lately.
//!
//! Decides the order in which they are tried. Never connects.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Address;

/// How long an address that has failed is tried after all others. A node that does not answer takes seconds of each attempt
/// to connect.
const FAILED_FOR: Duration = Duration::from_secs(30);

/// The addresses of one broker, each once, shared by all connections to it.
#[derive(Debug)]
pub struct Addresses(Box<[AddressState]>);

#[derive(Debug)]
struct AddressState {
    address: Address,
    /// Each open channel holds a clone: the reference count says how many there are.
    in_use: Arc<()>,
    /// When an attempt to connect or to subscribe failed, if none to connect has succeeded since.
    failed_at: Mutex<Option<Instant>>,
}

impl Addresses {
    /// A repeated address counts once: it would get more than its share of the connections.
    pub fn new(configured: &[Address]) -> Self {
        let mut states: Vec<AddressState> = Vec::with_capacity(configured.len());
        for address in configured {
            if states.iter().all(|known| known.address != *address) {
                let (in_use, failed_at) = (Arc::default(), Mutex::default());
                states.push(AddressState { address: address.clone(), in_use, failed_at });
            }
        }
        Addresses(states.into())
    }

    /// The number of addresses.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, index: usize) -> &Address {
        &self.0[index].address
    }

    pub fn position(&self, address: &Address) -> Option<usize> {
        self.0.iter().position(|known| known.address == *address)
    }

    /// Counts one more connection to an address, until the result is dropped.
    pub fn occupy(&self, index: usize) -> Arc<()> {
        Arc::clone(&self.0[index].in_use)
    }

    /// Records the outcome of an attempt to connect or to subscribe.
    pub fn record(&self, index: usize, succeeded: bool, now: Instant) {
        let failed_at = (!succeeded).then_some(now);
        *self.0[index].failed_at.lock().unwrap_or_else(PoisonError::into_inner) = failed_at;
    }

    /// The order in which the addresses are tried: the one with the fewest connections first, equal ones in random order;
    /// then those that have failed lately, and at the end the one to avoid. So connections spread over the nodes of a cluster.
    pub fn order(&self, avoid: Option<&Address>, now: Instant) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.0.len()).collect();
        fastrand::shuffle(&mut order);
        order.sort_by_key(|index| {
            let state = &self.0[*index];
            let failed_at = *state.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
            let has_failed = failed_at.is_some_and(|at| now.duration_since(at) < FAILED_FOR);
            (avoid == Some(&state.address), has_failed, Arc::strong_count(&state.in_use))
        });
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(ports: &[u16]) -> Addresses {
        let address = |port: &u16| Address { host: "127.0.0.1".into(), port: *port };
        Addresses::new(&ports.iter().map(address).collect::<Vec<_>>())
    }

    #[test]
    fn connections_are_spread_over_the_addresses_and_a_refusing_one_is_tried_last() {
        let (addresses, now) = (addresses(&[1, 2, 3]), Instant::now());
        let mut open = Vec::new();
        for connections in 1..=6 {
            let first = addresses.order(None, now)[0];
            open.push(addresses.occupy(first));
            let counts: Vec<_> = addresses.0.iter().map(|state| Arc::strong_count(&state.in_use) - 1).collect();
            assert_eq!(counts.iter().sum::<usize>(), connections);
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
        let avoided = addresses.get(1).clone();
        assert_eq!(addresses.order(Some(&avoided), now)[2], 1);
    }

    #[test]
    fn a_node_that_has_failed_is_tried_last_for_a_while_although_it_has_the_fewest_connections() {
        let (addresses, start) = (addresses(&[1, 2]), Instant::now());
        let _open = addresses.occupy(0);
        assert_eq!(addresses.order(None, start), [1, 0]);
        addresses.record(1, false, start);
        assert_eq!(addresses.order(None, start), [0, 1]);
        assert_eq!(addresses.order(None, start + FAILED_FOR), [1, 0]);
        addresses.record(1, true, start);
        assert_eq!(addresses.order(None, start), [1, 0]);
    }

    #[test]
    fn an_address_that_is_listed_twice_gets_no_more_connections_than_the_others() {
        let addresses = addresses(&[1, 2, 1]);
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses.position(addresses.get(0)), Some(0));
    }
}
