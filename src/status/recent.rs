//! Samples of the counters over the last minute, and what each consumer did since the oldest of them.
//!
//! Pure: the caller passes the time and the readings.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::metrics::{CounterReading, Histogram};

/// How far back samples are kept.
const SAMPLE_RETENTION: Duration = Duration::from_secs(60);
/// Shortest time from which a rate is computed.
const MIN_RATE_PERIOD: Duration = Duration::from_secs(2);

/// The part of a consumer's reading from which rates and quantiles are computed.
#[derive(Debug, Clone)]
pub struct Sample {
    acked: u64,
    handling: Histogram,
    publish_to_ack: Histogram,
}

impl From<&CounterReading> for Sample {
    fn from(reading: &CounterReading) -> Self {
        Sample {
            acked: reading.counts.acked(),
            handling: reading.handling.clone(),
            publish_to_ack: reading.publish_to_ack.clone(),
        }
    }
}

/// Samples of all consumers over the last minute.
#[derive(Debug, Clone, Default)]
pub struct RecentSamples {
    /// Oldest first, each with its time since the daemon started; by consumer.
    samples: VecDeque<(Duration, BTreeMap<String, Sample>)>,
}

/// What one consumer did over the last minute.
#[derive(Debug, Clone, PartialEq)]
pub struct RecentActivity {
    /// Deliveries acked per second; `None` in the first two seconds.
    pub acks_per_second: Option<f64>,
    /// Handling times.
    pub handling: Histogram,
    /// Times from publishing to the ack.
    pub publish_to_ack: Histogram,
}

impl RecentSamples {
    /// Adds samples taken at `now`, measured from the start of the daemon. Removes those older than a minute, except for
    /// the newest of these, which the last minute is measured from.
    pub fn push(&mut self, now: Duration, samples: BTreeMap<String, Sample>) {
        self.samples.push_back((now, samples));
        while self.samples.get(1).is_some_and(|(taken_at, _)| now.saturating_sub(*taken_at) >= SAMPLE_RETENTION) {
            self.samples.pop_front();
        }
    }

    /// What a consumer did since the oldest sample, or since the start of the daemon if it has no sample there.
    pub fn activity(&self, consumer: &str, now: Duration, reading: &CounterReading) -> RecentActivity {
        let current = Sample::from(reading);
        let oldest = self.samples.front().and_then(|(taken_at, samples)| Some((*taken_at, samples.get(consumer)?)));
        let (period, acked, handling, publish_to_ack) = match oldest {
            Some((taken_at, sample)) => (
                now.saturating_sub(taken_at),
                current.acked.saturating_sub(sample.acked),
                current.handling.since(&sample.handling),
                current.publish_to_ack.since(&sample.publish_to_ack),
            ),
            None => (now, current.acked, current.handling, current.publish_to_ack),
        };
        let acks_per_second = (period >= MIN_RATE_PERIOD).then(|| acked as f64 / period.as_secs_f64());
        RecentActivity { acks_per_second, handling, publish_to_ack }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counters;

    fn reading(completed: u64) -> CounterReading {
        let mut reading = Counters::default().read();
        reading.counts.completed = completed;
        reading
    }

    fn sample(completed: u64) -> BTreeMap<String, Sample> {
        [("order".to_owned(), Sample::from(&reading(completed)))].into()
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_rate_covers_the_last_minute() {
        let mut recent = RecentSamples::default();
        assert_eq!(recent.activity("order", s(1), &reading(10)).acks_per_second, None, "too early for a rate");
        assert_eq!(recent.activity("order", s(10), &reading(20)).acks_per_second, Some(2.0), "since the start");
        for second in (0..=600_u64).step_by(5) {
            // A thousand a second in the first minute, one a second after.
            let completed = second.min(60) * 1000 + second.saturating_sub(60);
            recent.push(s(second), sample(completed));
        }
        assert_eq!(recent.activity("order", s(602), &reading(60_542)).acks_per_second, Some(1.0));
        assert_eq!(recent.samples.len(), 13);
    }

    #[test]
    fn a_consumer_without_samples_is_measured_from_the_start() {
        let mut recent = RecentSamples::default();
        recent.push(s(5), sample(5));
        assert_eq!(recent.activity("new", s(10), &reading(100)).acks_per_second, Some(10.0));
    }
}
