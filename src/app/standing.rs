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
        // Those of consumers that were removed too: they may have work in hand.
        let all = self.0.all_counters();
        all.iter().flat_map(|(name, counters)| counters.pulses().read(name)).collect()
    }

    fn standing(&self) -> Standing {
        let in_flight: u64 = self.0.all_counters().values().map(|counters| counters.tally().in_flight).sum();
        match (self.0.stage(), self.0.publishes()) {
            (Stage::Draining, _) => Standing::Waiting(format!("draining, {in_flight} in flight")),
            (Stage::Starting | Stage::Running, None) if !self.0.has_ledger() => {
                Standing::Waiting("opening the ledger".to_owned())
            }
            (Stage::Starting | Stage::Running, None) => Standing::Waiting("waiting for the broker".to_owned()),
            (Stage::Starting | Stage::Running, Some(publishes)) => running(&self.0.consumers(), publishes, in_flight),
        }
    }
}

/// Up once every consumer that is not paused has had a subscription; what is lost later comes back by itself.
fn running(consumers: &[Watched], publishes: bool, in_flight: u64) -> Standing {
    let names = |is: fn(&Watched) -> bool| -> Vec<&str> {
        // Without workers it was removed, and only finishes what it was handed.
        let configured = consumers.iter().filter(|watched| watched.workers > 0);
        configured.filter(|watched| is(watched)).map(|watched| watched.name.as_str()).collect()
    };
    let never = names(|one| one.paused_since.is_none() && one.counters.pool().subscriptions == 0);
    if !never.is_empty() {
        return Standing::Waiting(format!("waiting for the subscriptions of {}", never.join(", ")));
    }
    let mut line = format!("{} consumers, {in_flight} in flight", names(|_| true).len());
    let mut add = |what: &str, names: &[&str]| {
        if !names.is_empty() {
            line.push_str(what);
            line.push_str(&names.join(", "));
        }
    };
    add("; PAUSED: ", &names(|one| one.paused_since.is_some()));
    add("; no subscription: ", &names(|one| one.paused_since.is_none() && one.counters.pool().taking == 0));
    if !publishes {
        line.push_str("; no connection to publish on");
    }
    Standing::Up(line)
}
