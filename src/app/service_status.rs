//! What the notifier thread reads from the daemon: the workers' heartbeats, and the readiness with its status line.
//!
//! It only reads the status registry.

use std::sync::Arc;

use crate::status::{DaemonState, StatusRegistry, StatusSummary, SubscriptionState};
use crate::systemd::{Readiness, StatusSource};
use crate::watchdog::HeartbeatReading;

/// Provides the daemon's status to the service manager.
pub(super) struct ServiceStatus(pub Arc<StatusRegistry>);

impl StatusSource for ServiceStatus {
    fn heartbeats(&self) -> Vec<HeartbeatReading> {
        self.0.heartbeats()
    }

    fn readiness(&self) -> Readiness {
        readiness(&self.0.summary())
    }
}

fn readiness(summary: &StatusSummary) -> Readiness {
    match (summary.state, summary.publisher_connected) {
        (DaemonState::Draining, _) => Readiness::Waiting(format!("draining, {} in flight", summary.in_flight)),
        (DaemonState::Starting | DaemonState::Running, None) if !summary.ledger_open => {
            Readiness::Waiting("opening the ledger".to_owned())
        }
        (DaemonState::Starting | DaemonState::Running, None) => Readiness::Waiting("waiting for the broker".to_owned()),
        (DaemonState::Starting | DaemonState::Running, Some(connected)) => running(summary, connected),
    }
}

/// Up once every consumer that is not paused has had a subscription. Pools reopen subscriptions that are lost later.
fn running(summary: &StatusSummary, publisher_connected: bool) -> Readiness {
    let names = |state: SubscriptionState| -> Vec<&str> {
        let consumers = summary.consumers.iter().filter(|consumer| consumer.subscription == state);
        consumers.map(|consumer| consumer.name.as_str()).collect()
    };
    let waiting_for = names(SubscriptionState::NeverOpened);
    if !waiting_for.is_empty() {
        return Readiness::Waiting(format!("waiting for the subscriptions of {}", waiting_for.join(", ")));
    }
    let plural = if summary.consumers.len() == 1 { "consumer" } else { "consumers" };
    let mut line = format!("{} {}, {} in flight", summary.consumers.len(), plural, summary.in_flight);
    for (label, state) in [("PAUSED", SubscriptionState::Paused), ("no subscription", SubscriptionState::Lost)] {
        let names = names(state);
        if !names.is_empty() {
            line.push_str(&format!("; {label}: {}", names.join(", ")));
        }
    }
    if !summary.open_breakers.is_empty() {
        line.push_str(&format!("; circuit breaker OPEN: {}", summary.open_breakers.join(", ")));
    }
    if !publisher_connected {
        line.push_str("; no connection to publish on");
    }
    Readiness::Up(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ConsumerSummary;

    /// A running daemon with 7 deliveries in flight and consumers in these states.
    fn running_with(consumers: &[(&str, SubscriptionState)]) -> StatusSummary {
        let consumers = consumers
            .iter()
            .map(|(name, subscription)| ConsumerSummary { name: (*name).to_owned(), subscription: *subscription });
        StatusSummary {
            state: DaemonState::Running,
            ledger_open: true,
            publisher_connected: Some(true),
            in_flight: 7,
            open_breakers: Vec::new(),
            consumers: consumers.collect(),
        }
    }

    #[test]
    fn the_daemon_is_up_once_every_consumer_that_is_not_paused_has_had_a_subscription() {
        use SubscriptionState::{Active, Lost, NeverOpened, Paused};
        let line = |consumers: &[_]| readiness(&running_with(consumers));
        let waiting = |line: &str| Readiness::Waiting(line.to_owned());
        let up = |line: &str| Readiness::Up(line.to_owned());
        let starting = [("a", NeverOpened), ("b", Active), ("c", NeverOpened)];
        assert_eq!(line(&starting), waiting("waiting for the subscriptions of a, c"));
        assert_eq!(line(&[("a", Active), ("b", Active)]), up("2 consumers, 7 in flight"));
        let degraded = [("a", Active), ("b", Paused), ("c", Lost), ("d", Lost)];
        assert_eq!(line(&degraded), up("4 consumers, 7 in flight; PAUSED: b; no subscription: c, d"));
        let open_breakers = vec!["a/charge".to_owned()];
        let without_service = StatusSummary { open_breakers, ..running_with(&[("a", Active)]) };
        assert_eq!(readiness(&without_service), up("1 consumer, 7 in flight; circuit breaker OPEN: a/charge"));
        let disconnected = StatusSummary { publisher_connected: Some(false), ..running_with(&[("a", Active)]) };
        assert_eq!(readiness(&disconnected), up("1 consumer, 7 in flight; no connection to publish on"));
    }

    #[test]
    fn before_the_pools_start_and_while_draining_the_line_says_what_the_daemon_waits_for() {
        let daemon = StatusSummary {
            state: DaemonState::Starting,
            ledger_open: false,
            publisher_connected: None,
            ..running_with(&[])
        };
        let waiting = |line: &str| Readiness::Waiting(line.to_owned());
        assert_eq!(readiness(&daemon), waiting("opening the ledger"));
        assert_eq!(
            readiness(&StatusSummary { ledger_open: true, ..daemon.clone() }),
            waiting("waiting for the broker")
        );
        let draining = StatusSummary { state: DaemonState::Draining, ..daemon };
        assert_eq!(readiness(&draining), waiting("draining, 7 in flight"));
    }
}
