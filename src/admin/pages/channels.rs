//! The metrics of notification channels and their providers.

use std::fmt;

use super::metric_writer::{MetricWriter, flag};
use crate::status::{ConsumerReading, provider_in_use};
use crate::steps::{BreakerKind, BreakerReading, BreakerState};

pub(super) fn channels(consumers: &[ConsumerReading], writer: &mut MetricWriter<'_>) -> fmt::Result {
    let providers = || {
        consumers.iter().flat_map(|consumer| {
            consumer.reading.channels.providers.iter().map(move |((channel, provider), reading)| {
                let labels = [("consumer", consumer.name.as_str()), ("channel", &**channel), ("provider", &**provider)];
                (labels, reading)
            })
        })
    };
    let sent = providers().map(|(labels, reading)| (labels, reading.sent));
    writer.counters("notifications_sent", "Notifications that a provider has accepted", sent)?;
    let failed = providers().flat_map(|([consumer, channel, provider], reading)| {
        let code = move |(code, count): (&'_ String, &u64)| (code.clone(), *count);
        reading.failed.iter().map(code).map(move |(code, count)| {
            let [consumer, channel, provider] =
                [consumer, channel, provider].map(|(label, value)| (label, value.to_owned()));
            ([consumer, channel, provider, ("code", code)], count)
        })
    });
    writer.counters("notifications_failed", "Attempts to deliver a notification that failed, by code", failed)?;
    let abandoned = providers().map(|(labels, reading)| (labels, reading.abandoned));
    writer.counters(
        "notifications_abandoned",
        "Attempts that did not end: orderd ended, or a fault in it",
        abandoned,
    )?;
    let in_flight = providers().map(|(labels, reading)| (labels, reading.in_flight as f64));
    writer.gauges("notifications_in_flight", "Attempts to deliver a notification that have not ended", in_flight)?;
    let durations = providers().map(|(labels, reading)| (labels, &reading.durations));
    let help = "Time from an attempt to deliver a notification to its end";
    writer.histograms("notification_seconds", help, durations)?;
    let in_use = consumers.iter().flat_map(|consumer| {
        consumer.reading.channels.routes.iter().flat_map(move |(channel, route)| {
            let in_use = provider_in_use(route, &consumer.breakers);
            route.iter().map(move |provider| {
                let labels = [("consumer", consumer.name.as_str()), ("channel", &**channel), ("provider", &**provider)];
                (labels, flag(in_use == Some(provider)))
            })
        })
    });
    let help = "1 for the provider that gets a channel's notifications now; 0 for all while none is available";
    writer.gauges("notification_provider_in_use", help, in_use)?;
    breakers(consumers, writer)
}

fn breakers(consumers: &[ConsumerReading], writer: &mut MetricWriter<'_>) -> fmt::Result {
    let of_channels = |breaker: &&BreakerReading| breaker.kind == BreakerKind::Channel;
    let breakers = || consumers.iter().flat_map(|consumer| &consumer.breakers).filter(of_channels);
    let labels = |breaker: &'_ BreakerReading| {
        [("consumer", breaker.consumer.to_string()), ("provider", breaker.name.to_string())]
    };
    let states = breakers().flat_map(|breaker| {
        BreakerState::ALL.map(|state| {
            let [consumer, provider] = labels(breaker);
            let labels = [consumer, provider, ("state", state.as_str().to_owned())];
            (labels, flag(breaker.state == state))
        })
    });
    let help = "1 for the state of the provider's circuit breaker, 0 for the others";
    writer.gauges("notification_breaker_state", help, states)?;
    let openings = breakers().map(|breaker| (labels(breaker), breaker.openings));
    let help = "Times in which the provider's circuit breaker opened";
    writer.counters("notification_breaker_openings", help, openings)?;
    let waiting = breakers().map(|breaker| (labels(breaker), breaker.waiting as f64));
    writer.gauges("notification_breaker_waiting", "Deliveries that wait for the provider's circuit breaker", waiting)
}
