//! Moves consumers to broker nodes that have fewer of orderd's connections, one at a time, once the broker has been healthy
//! for some time.
//!
//! Each new connection goes to the address with the fewest. When a node fails, its connections move to the others, and stay
//! there when it returns. [`Placement::next_move`] decides and is pure. It never moves the publishing connection, and closes
//! nothing itself: the consumer gets a new pool, and the former one finishes what it has received.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use crate::amqp::Connector;
use crate::backoff::Backoff;
use crate::config::{Address, Broker};
use crate::status::{Status, StatusRegistry};

/// The longest time between two looks at the status.
const MAX_CHECK: Duration = Duration::from_secs(5);
const MIN_CHECK: Duration = Duration::from_millis(100);

/// The longest wait before another move to a node to which moves did not lead.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// The task that decides what to move, and when.
pub(super) struct Rebalancer {
    moves: mpsc::Receiver<String>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Rebalancer {
    /// Starts the task, if there are several addresses and `broker.rebalance_after` is not `"off"`.
    pub fn start(broker: &Broker, connector: &Connector, registry: &Arc<StatusRegistry>) -> Self {
        // One move at a time.
        let (sender, moves) = mpsc::channel(1);
        let after = broker.rebalance_after.filter(|_| broker.addresses.len() > 1);
        let task = after.map(|after| {
            let (addresses, connector, registry) = (broker.addresses.clone(), connector.clone(), Arc::clone(registry));
            AbortOnDropHandle::new(tokio::spawn(rebalance(after, addresses, connector, registry, sender)))
        });
        Rebalancer { moves, _task: task }
    }

    /// The next consumer to move. Cancel-safe. Pending for ever if nothing is to be moved.
    pub async fn next(&mut self) -> String {
        match self.moves.recv().await {
            Some(consumer) => consumer,
            None => std::future::pending().await,
        }
    }
}

async fn rebalance(
    after: Duration,
    addresses: Vec<Address>,
    connector: Connector,
    registry: Arc<StatusRegistry>,
    moves: mpsc::Sender<String>,
) {
    let mut quiet = QuietTime::default();
    let (mut moved, mut failed) = (None::<(String, Address)>, FailedMoves::default());
    let mut check = interval((after / 4).clamp(MIN_CHECK, MAX_CHECK));
    loop {
        check.tick().await;
        let status = registry.snapshot().status;
        if quiet.observe(&status, Instant::now()) < after {
            continue;
        }
        if let Some((consumer, to)) = moved.take() {
            let consumer = status.consumers.get(&consumer);
            let arrived =
                consumer.and_then(|consumer| consumer.address.as_ref()).is_some_and(|at| *at == to.to_string());
            failed.record(to, arrived, after, Instant::now());
        }
        let Some(mut next) = Placement::of(&status, &addresses).next_move() else { continue };
        next.to.retain(|to| !failed.is_waiting(to, Instant::now()));
        if next.to.is_empty() {
            continue;
        }
        // Whatever happens, the next move waits for another quiet time.
        quiet = QuietTime::default();
        match first_reachable(&connector, &next.to).await {
            Some(to) => {
                let (consumer, from) = (next.consumer, next.from);
                moved = Some((consumer.clone(), to.clone()));
                info!(consumer, %from, %to, "moving the consumer to a node with fewer connections");
                if moves.send(consumer).await.is_err() {
                    return;
                }
            }
            None => debug!("no node with fewer connections is reachable"),
        }
    }
}

async fn first_reachable<'a>(connector: &Connector, candidates: &'a [Address]) -> Option<&'a Address> {
    for address in candidates {
        if connector.is_reachable(address).await {
            return Some(address);
        }
    }
    None
}

/// The nodes to which moves did not lead although they accept connections, such as one that is cut off from its cluster under
/// `cluster_partition_handling = ignore`: how many times in a row, and when the next move may be tried.
#[derive(Debug, Default)]
struct FailedMoves(BTreeMap<Address, (u32, Instant)>);

impl FailedMoves {
    fn record(&mut self, to: Address, arrived: bool, after: Duration, now: Instant) {
        if arrived {
            self.0.remove(&to);
            return;
        }
        let (times, retry_at) = self.0.entry(to).or_insert((0, now));
        let backoff = Backoff { first: after.saturating_mul(2), max: MAX_WAIT.max(after) };
        *retry_at = now + backoff.wait(*times, 1.0);
        *times = times.saturating_add(1);
    }

    fn is_waiting(&self, to: &Address, now: Instant) -> bool {
        self.0.get(to).is_some_and(|(_, retry_at)| now < *retry_at)
    }
}

/// For how long the daemon has been ready, with the same connections.
#[derive(Debug, Default)]
struct QuietTime {
    /// The number of connections made so far, and since when it is that.
    since: Option<(u64, Instant)>,
}

impl QuietTime {
    fn observe(&mut self, status: &Status, now: Instant) -> Duration {
        let made = status.daemon.connections_made;
        if !is_healthy(status) {
            self.since = None;
        } else if self.since.is_none_or(|(known, _)| known != made) {
            self.since = Some((made, now));
        }
        self.since.map_or(Duration::ZERO, |(_, since)| now.duration_since(since))
    }
}

/// Nothing is wrong, and no consumer is changing.
fn is_healthy(status: &Status) -> bool {
    status.checks.iter().all(|check| check.ok)
        && status.broker.alarms.as_ref().is_none_or(Vec::is_empty)
        && status.consumers.values().all(|consumer| consumer.draining == 0 && !consumer.safe_mode)
}

/// Which consumer is connected to which address, in a daemon with a publishing connection.
#[derive(Debug, PartialEq, Eq)]
struct Placement {
    /// By address; for each consumer, how many deliveries it has in flight and its name.
    consumers: BTreeMap<Address, Vec<(u64, String)>>,
    publisher: Option<Address>,
}

/// One consumer is to be moved.
#[derive(Debug, PartialEq, Eq)]
struct Move {
    consumer: String,
    from: Address,
    /// The addresses with fewer connections, the one with the fewest first.
    to: Vec<Address>,
}

impl Placement {
    fn of(status: &Status, addresses: &[Address]) -> Placement {
        let find = |text: Option<&String>| addresses.iter().find(|known| Some(&known.to_string()) == text).cloned();
        let mut consumers: BTreeMap<_, Vec<_>> =
            addresses.iter().map(|address| (address.clone(), Vec::new())).collect();
        for (name, consumer) in &status.consumers {
            if let Some(address) = find(consumer.address.as_ref()) {
                consumers.entry(address).or_default().push((consumer.in_flight, name.clone()));
            }
        }
        let publisher = status.daemon.publisher.as_ref().and_then(|publisher| find(publisher.address.as_ref()));
        Placement { consumers, publisher }
    }

    /// A consumer of the address with the most connections, if another has at least two fewer: the consumer with the fewest
    /// deliveries in flight.
    fn next_move(&self) -> Option<Move> {
        let count =
            |address: &Address| self.consumers[address].len() + usize::from(self.publisher.as_ref() == Some(address));
        let from = self.consumers.keys().max_by_key(|address| count(address))?;
        let (_, consumer) = self.consumers[from].iter().min()?;
        let mut to: Vec<_> = self.consumers.keys().filter(|to| count(to) + 2 <= count(from)).cloned().collect();
        to.sort_by_key(|address| count(address));
        if to.is_empty() { None } else { Some(Move { consumer: consumer.clone(), from: from.clone(), to }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Address {
        Address { host: "127.0.0.1".into(), port }
    }

    /// Consumers on each of the addresses 1, 2, …; the publisher is on the first.
    fn placement(counts: &[usize]) -> Placement {
        let consumers = counts.iter().zip(1..).map(|(count, port)| {
            let consumers = (0..*count).map(|number| (number as u64, format!("consumer-{port}-{number}")));
            (address(port), consumers.collect())
        });
        Placement { consumers: consumers.collect(), publisher: Some(address(1)) }
    }

    #[test]
    fn connections_that_piled_up_on_one_node_are_spread_one_at_a_time() {
        let next = placement(&[5, 0, 0]).next_move().unwrap();
        assert_eq!((next.consumer.as_str(), next.from), ("consumer-1-0", address(1)));
        assert_eq!(next.to, [address(2), address(3)]);
        assert_eq!(placement(&[4, 1, 0]).next_move().unwrap().to, [address(3), address(2)]);
        assert_eq!(placement(&[2, 1, 2]).next_move().map(|next| next.to), Some(vec![address(2)]));
    }

    #[test]
    fn a_node_to_which_moves_do_not_lead_is_tried_ever_more_rarely_until_one_does() {
        let (mut failed, start, minute) = (FailedMoves::default(), Instant::now(), Duration::from_secs(60));
        let mut tried = Vec::new();
        for number in 0..200 {
            let now = start + minute * number;
            if !failed.is_waiting(&address(1), now) {
                failed.record(address(1), false, minute, now);
                tried.push(number);
            }
        }
        assert_eq!(tried, [0, 2, 6, 14, 30, 62, 122, 182]);
        assert!(failed.is_waiting(&address(1), start + minute * 200) && !failed.is_waiting(&address(2), start));
        failed.record(address(1), true, minute, start);
        assert!(!failed.is_waiting(&address(1), start));
    }

    #[test]
    fn connections_that_are_spread_are_not_moved() {
        for counts in [&[1, 2, 2][..], &[2, 2, 2], &[1, 3, 2], &[0, 0, 0], &[0, 1], &[5]] {
            // The publisher counts as a connection of the first address.
            assert_eq!(placement(counts).next_move(), None, "{counts:?}");
        }
    }
}
