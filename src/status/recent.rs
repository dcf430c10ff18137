//! The last minute: samples of counters, and what came since the oldest of them.
//!
//! Pure: the caller brings the time and the readings.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::metrics::{CounterReading, Histogram};

/// How far back samples are kept.
const SPAN: Duration = Duration::from_secs(60);
/// The least time a rate is told over.
const LEAST: Duration = Duration::from_secs(2);

/// What is kept of one consumer's reading.
#[derive(Debug, Clone)]
pub struct Sample {
    settled: u64,
    handling: Histogram,
    publish_to_ack: Histogram,
}

impl From<&CounterReading> for Sample {
    fn from(reading: &CounterReading) -> Self {
        Sample {
            settled: reading.counts.acked(),
            handling: reading.handling.clone(),
            publish_to_ack: reading.publish_to_ack.clone(),
        }
    }
}

/// Samples of all consumers over the last minute.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    samples: VecDeque<(Duration, BTreeMap<String, Sample>)>,
}

/// What one consumer did lately.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Deliveries acked per second.
    pub acks_per_second: Option<f64>,
    /// Handling times.
    pub handling: Histogram,
    /// Times from publishing to done.
    pub publish_to_ack: Histogram,
}

impl Recent {
    /// Keeps samples taken `now`, a time since the start, and forgets those older than a minute, but for the one
    /// that a minute is measured from.
    pub fn push(&mut self, now: Duration, samples: BTreeMap<String, Sample>) {
        self.samples.push_back((now, samples));
        while self.samples.get(1).is_some_and(|(taken, _)| now.saturating_sub(*taken) >= SPAN) {
            self.samples.pop_front();
        }
    }

    /// What a consumer did since the oldest sample, or since the start if there is none.
    pub fn window(&self, consumer: &str, now: Duration, reading: &CounterReading) -> Window {
        let current = Sample::from(reading);
        let oldest = self.samples.front().and_then(|(taken, samples)| Some((*taken, samples.get(consumer)?)));
        let (span, settled, handling, publish_to_ack) = match oldest {
            Some((taken, sample)) => (
                now.saturating_sub(taken),
                current.settled.saturating_sub(sample.settled),
                current.handling.since(&sample.handling),
                current.publish_to_ack.since(&sample.publish_to_ack),
            ),
            None => (now, current.settled, current.handling, current.publish_to_ack),
        };
        let acks_per_second = (span >= LEAST).then(|| settled as f64 / span.as_secs_f64());
        Window { acks_per_second, handling, publish_to_ack }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counters;

    fn reading(settled: u64) -> CounterReading {
        let mut reading = Counters::default().read();
        reading.counts.completed = settled;
        reading
    }

    fn sampled(settled: u64) -> BTreeMap<String, Sample> {
        [("order".to_owned(), Sample::from(&reading(settled)))].into()
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let mut recent = Recent::default();
        assert_eq!(recent.window("order", s(1), &reading(10)).acks_per_second, None, "too early to tell");
        assert_eq!(recent.window("order", s(10), &reading(20)).acks_per_second, Some(2.0), "since the start");
        for second in (0..=600_u64).step_by(5) {
            // A thousand a second in the first minute, one a second after.
            let settled = second.min(60) * 1000 + second.saturating_sub(60);
            recent.push(s(second), sampled(settled));
        }
        assert_eq!(recent.window("order", s(602), &reading(60_542)).acks_per_second, Some(1.0));
        assert_eq!(recent.samples.len(), 13);
    }

    #[test]
    fn a_consumer_without_samples_is_measured_from_the_start() {
        let mut recent = Recent::default();
        recent.push(s(5), sampled(5));
        assert_eq!(recent.window("new", s(10), &reading(100)).acks_per_second, Some(10.0));
    }
}
