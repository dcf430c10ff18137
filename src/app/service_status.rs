//! How the daemon is doing, in one line, for the service manager; and whose heartbeats say that it makes progress.
//!
//! It reads counters and nothing else.

use std::sync::Arc;

use crate::status::DaemonState;
use crate::status::{RegisteredConsumer, StatusRegistry};
use crate::{
    systemd::{Readiness, StatusSource},
    watchdog::HeartbeatReading,
};

/// The daemon as the service manager is told of it.
pub(super) struct ServiceStatus(pub Arc<StatusRegistry>);

impl StatusSource for ServiceStatus {
    fn heartbeats(&self) -> Vec<HeartbeatReading> {
        // Those of consumers that were removed too: they may have work in hand.
        let all = self.0.all_counters();
        all.iter().flat_map(|(name, counters)| counters.heartbeats().read(name)).collect()
    }

    fn readiness(&self) -> Readiness {
        let in_flight: u64 = self.0.all_counters().values().map(|counters| counters.counts().in_flight).sum();
        match (self.0.state(), self.0.publishes()) {
            (DaemonState::Draining, _) => Readiness::Waiting(format!("draining, {in_flight} in flight")),
            (DaemonState::Starting | DaemonState::Running, None) if !self.0.has_ledger() => {
                Readiness::Waiting("opening the ledger".to_owned())
            }
            (DaemonState::Starting | DaemonState::Running, None) => {
                Readiness::Waiting("waiting for the broker".to_owned())
            }
            (DaemonState::Starting | DaemonState::Running, Some(publishes)) => {
                running(&self.0.consumers(), publishes, in_flight)
            }
        }
    }
}

/// Up once every consumer that is not paused has had a subscription; what is lost later comes back by itself.
fn running(consumers: &[RegisteredConsumer], publishes: bool, in_flight: u64) -> Readiness {
    let names = |is: fn(&RegisteredConsumer) -> bool| -> Vec<&str> {
        // Without workers it was removed, and only finishes what it was handed.
        let configured = consumers.iter().filter(|watched| watched.workers > 0);
        configured.filter(|watched| is(watched)).map(|watched| watched.name.as_str()).collect()
    };
    let never = names(|one| one.paused_since.is_none() && one.counters.pool().subscriptions == 0);
    if !never.is_empty() {
        return Readiness::Waiting(format!("waiting for the subscriptions of {}", never.join(", ")));
    }
    let mut line = format!("{} consumers, {in_flight} in flight", names(|_| true).len());
    let mut add = |what: &str, names: &[&str]| {
        if !names.is_empty() {
            line.push_str(what);
            line.push_str(&names.join(", "));
        }
    };
    add("; PAUSED: ", &names(|one| one.paused_since.is_some()));
    add(
        "; no subscription: ",
        &names(|one| one.paused_since.is_none() && one.counters.pool().active_subscriptions == 0),
    );
    if !publishes {
        line.push_str("; no connection to publish on");
    }
    Readiness::Up(line)
}
