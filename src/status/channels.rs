//! The status of notification channels. Pure.

use std::sync::Arc;

use super::ChannelStatus;
use super::quantiles::quantiles;
use crate::metrics::ChannelsReading;
use crate::steps::{BreakerKind, BreakerReading, BreakerState};

/// The channels of a consumer, by name; of each, its providers in the order in which they are tried, and then those that are not
/// configured any more.
pub(super) fn channel_statuses(channels: &ChannelsReading, breakers: &[BreakerReading]) -> Vec<ChannelStatus> {
    let no_route = Vec::new();
    let mut statuses: Vec<(usize, ChannelStatus)> = Vec::new();
    for ((channel, provider), reading) in &channels.providers {
        let route = channels.routes.get(channel).unwrap_or(&no_route);
        let breaker = breakers.iter().find(|breaker| is_of(breaker, provider));
        let status = ChannelStatus {
            channel: channel.to_string(),
            provider: provider.to_string(),
            in_use: provider_in_use(route, breakers) == Some(provider),
            breaker: breaker.map(|breaker| breaker.state.as_str().to_owned()),
            in_flight: reading.in_flight,
            sent: reading.sent,
            failed: reading.failed.values().sum(),
            failures: reading.failed.clone(),
            abandoned: reading.abandoned,
            send_seconds: quantiles(&reading.durations),
        };
        statuses.push((route.iter().position(|known| known == provider).unwrap_or(usize::MAX), status));
    }
    statuses.sort_by(|(a, first), (b, second)| (&first.channel, a).cmp(&(&second.channel, b)));
    statuses.into_iter().map(|(_, status)| status).collect()
}

/// The provider of a channel that gets its notifications now: the first one whose circuit breaker lets them pass.
pub fn provider_in_use<'r>(route: &'r [Arc<str>], breakers: &[BreakerReading]) -> Option<&'r Arc<str>> {
    let is_unavailable = |breaker: &BreakerReading| match breaker.state {
        BreakerState::Open | BreakerState::HalfOpen => true,
        BreakerState::Closed | BreakerState::RampUp => false,
    };
    route.iter().find(|provider| !breakers.iter().any(|breaker| is_of(breaker, provider) && is_unavailable(breaker)))
}

fn is_of(breaker: &BreakerReading, provider: &Arc<str>) -> bool {
    breaker.kind == BreakerKind::Channel && breaker.name == *provider
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Counters;
    use crate::steps::{BreakerSettings, CircuitBreakers, FailureCause, StepFailure};

    #[tokio::test(start_paused = true)]
    async fn the_provider_in_use_is_the_first_whose_breaker_lets_notifications_pass() {
        let (breakers, counters) = (CircuitBreakers::default(), Counters::default());
        let [email, backup]: [Arc<str>; 2] = ["email".into(), "backup".into()];
        counters.channels().configure([(Arc::clone(&email), vec![Arc::clone(&email), Arc::clone(&backup)])].into());
        let settings = BreakerSettings { open: Duration::from_secs(3600), ..BreakerSettings::default() };
        let [first, second] = [&email, &backup]
            .map(|name| breakers.breaker(&"notification".into(), BreakerKind::Channel, name, settings));
        let status = || {
            let statuses = channel_statuses(&counters.channels().read(), &breakers.read());
            let facts = |status: ChannelStatus| (status.provider, status.in_use, status.breaker.unwrap());
            statuses.into_iter().map(facts).collect::<Vec<_>>()
        };
        let row = |name: &str, in_use, state: &str| (name.to_owned(), in_use, state.to_owned());
        assert_eq!(status(), [row("email", true, "closed"), row("backup", false, "closed")]);
        let down = || {
            let failure = crate::recovery::Failure::new(crate::recovery::FailureKind::Transient, "unreachable", "down");
            StepFailure::new(failure, FailureCause::NotReached)
        };
        for _ in 0..10 {
            first.begin().await.ended(Some(&down()));
        }
        assert_eq!(status(), [row("email", false, "open"), row("backup", true, "closed")]);
        for _ in 0..10 {
            second.begin().await.ended(Some(&down()));
        }
        assert_eq!(status(), [row("email", false, "open"), row("backup", false, "open")]);
    }
}
