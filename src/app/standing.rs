//! How the daemon is doing, in one line, for the service manager; and whose pulses say that it makes progress.
//!
//! It reads counters and nothing else.

use std::sync::Arc;

use crate::admin::{Live, Watched};
use crate::monitor::status::Stage;
use crate::service::{Pulse, Standing, Vitals};

/// The daemon as the service manager is told of it.
pub(super) struct Seen(pub Arc<Live>);

impl Vitals for Seen {
    fn pulses(&self) -> Vec<Pulse> {
        self.0.consumers().iter().flat_map(|watched| watched.counters.pulses().read(&watched.name)).collect()
    }

    fn standing(&self) -> Standing {
        let consumers = self.0.consumers();
        let in_flight: u64 = consumers.iter().map(|watched| watched.counters.tally().in_flight).sum();
        match (self.0.stage(), self.0.publishes()) {
            (Stage::Draining, _) => Standing::Waiting(format!("draining, {in_flight} in flight")),
            (Stage::Starting | Stage::Running, None) if !self.0.has_ledger() => {
                Standing::Waiting("opening the ledger".to_owned())
            }
            (Stage::Starting | Stage::Running, None) => Standing::Waiting("waiting for the broker".to_owned()),
            (Stage::Starting | Stage::Running, Some(publishes)) => running(consumers, publishes, in_flight),
        }
    }
}

/// Up once every consumer has had a subscription; what is lost later comes back by itself.
fn running(consumers: &[Watched], publishes: bool, in_flight: u64) -> Standing {
    let names = |is: fn(&Watched) -> bool| -> Vec<&str> {
        consumers.iter().filter(|watched| is(watched)).map(|watched| watched.name.as_str()).collect()
    };
    let never = names(|watched| watched.counters.pool().subscriptions == 0);
    if !never.is_empty() {
        return Standing::Waiting(format!("waiting for the subscriptions of {}", never.join(", ")));
    }
    let away = names(|watched| !watched.counters.pool().serving);
    let mut line = format!("{} consumers, {in_flight} in flight", consumers.len());
    if !away.is_empty() {
        line.push_str("; no subscription: ");
        line.push_str(&away.join(", "));
    }
    if !publishes {
        line.push_str("; no connection to publish on");
    }
    Standing::Up(line)
}
