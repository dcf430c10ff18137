//! Durations counted in fixed buckets, and the quantiles estimated from them.
//!
//! Pure: no clock, no lock.

use std::time::Duration;

/// Durations counted in fixed buckets, as in Prometheus. Copying and subtracting are cheap, so the last minute is the
/// difference of two histograms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Upper bounds of the buckets, inclusive, ascending; a last bucket without a bound follows.
    bounds: &'static [Duration],
    /// Number of durations in each bucket, not cumulative; one more element than `bounds`.
    counts: Vec<u64>,
    sum: Duration,
}

impl Histogram {
    /// An empty histogram with these inclusive upper bounds, ascending.
    pub fn new(bounds: &'static [Duration]) -> Self {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: Duration::ZERO }
    }

    /// Counts one duration.
    pub fn add(&mut self, duration: Duration) {
        let bucket = self.bounds.partition_point(|bound| *bound < duration);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Each bucket's upper bound (`None` for the last) and its number of durations, not cumulative.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.bounds.iter().copied().map(Some).chain([None]).zip(self.counts.iter().copied())
    }

    /// The durations counted since `earlier`, an older copy of this histogram.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then));
        Histogram { bounds: self.bounds, counts: counts.collect(), sum: self.sum.saturating_sub(earlier.sum) }
    }

    /// Estimates a quantile (0 to 1), assuming that durations are spread evenly within their bucket. Past the last
    /// bound the result is that bound. `None` if there are no durations.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let (mut below, mut lower) = (0.0, Duration::ZERO);
        for (bound, here) in self.buckets() {
            let Some(bound) = bound else { break };
            let here = here as f64;
            if here > 0.0 && below + here >= rank {
                return Some(lower + (bound - lower).mul_f64(((rank - below) / here).clamp(0.0, 1.0)));
            }
            below += here;
            lower = bound;
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const BOUNDS: [Duration; 3] = [ms(10), ms(100), ms(1000)];

    #[test]
    fn a_duration_on_a_bound_is_within_it() {
        let mut histogram = Histogram::new(&BOUNDS);
        for millis in [0, 10, 11, 100, 1000, 1001] {
            histogram.add(ms(millis));
        }
        let counts: Vec<_> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 2, 1, 1]);
        assert_eq!((histogram.count(), histogram.sum()), (6, ms(2122)));
    }

    #[test]
    fn quantiles_are_interpolated_in_their_bucket() {
        let mut histogram = Histogram::new(&BOUNDS);
        assert_eq!(histogram.quantile(0.5), None);
        (0..50).for_each(|_| histogram.add(ms(5)));
        (0..50).for_each(|_| histogram.add(ms(60)));
        assert_eq!(histogram.quantile(0.25), Some(ms(5)));
        assert_eq!(histogram.quantile(0.5), Some(ms(10)));
        assert_eq!(histogram.quantile(0.75), Some(ms(55)));
        assert_eq!(histogram.quantile(1.0), Some(ms(100)));
    }

    #[test]
    fn a_quantile_past_the_last_bound_is_that_bound() {
        let mut histogram = Histogram::new(&BOUNDS);
        histogram.add(ms(90_000));
        assert_eq!(histogram.quantile(0.99), Some(ms(1000)));
    }

    #[test]
    fn a_difference_contains_what_was_counted_in_between() {
        let mut histogram = Histogram::new(&BOUNDS);
        histogram.add(ms(5));
        let earlier = histogram.clone();
        histogram.add(ms(500));
        let between = histogram.since(&earlier);
        assert_eq!((between.count(), between.sum()), (1, ms(500)));
    }
}
