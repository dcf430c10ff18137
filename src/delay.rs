//! The delay before a delayed retry, and its text, which is part of a retry queue's name. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The delay before a delayed retry, in whole milliseconds. Its text is part of the retry queue's name
/// (`order_queue.retry.10s`), so equal delays have equal texts: they use the largest unit that divides them (`60s` is `1m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delay {
    millis: u64,
}

const UNITS: [(u64, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];

impl Delay {
    /// The longest delay: RabbitMQ takes a queue's `x-message-ttl` as milliseconds below 2³².
    pub const MAX: Duration = Duration::from_millis(u32::MAX as u64 - 1);

    /// `None` unless the duration is a whole number of milliseconds from 1 ms to [`Delay::MAX`].
    pub fn new(duration: Duration) -> Option<Self> {
        let millis = u64::try_from(duration.as_millis()).ok()?;
        let whole = Duration::from_millis(millis) == duration;
        (whole && millis > 0 && duration <= Self::MAX).then_some(Delay { millis })
    }

    /// In milliseconds, as `x-message-ttl` takes it.
    pub fn as_millis(self) -> u64 {
        self.millis
    }

    /// The delay as a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, unit) = UNITS
            .into_iter()
            .find(|(size, _)| self.millis.is_multiple_of(*size))
            .expect("every whole number of milliseconds is divisible by one millisecond");
        write!(f, "{}{unit}", self.millis / size)
    }
}

/// Parses what `Display` writes.
impl FromStr for Delay {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let size = UNITS.into_iter().find(|(_, known)| *known == unit).map(|(size, _)| size);
        digits
            .parse::<u64>()
            .ok()
            .zip(size)
            .and_then(|(count, size)| count.checked_mul(size))
            .and_then(|millis| Delay::new(Duration::from_millis(millis)))
            .ok_or_else(|| format!("{text:?} is not a delay such as \"10s\", from 1ms to 49d"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_delays_have_equal_texts() {
        for (seconds, text) in [(1, "1s"), (10, "10s"), (60, "1m"), (90, "90s"), (3600, "1h"), (86_400, "1d")] {
            let delay = Delay::new(Duration::from_secs(seconds)).unwrap();
            assert_eq!(delay.to_string(), text);
            assert_eq!(text.parse(), Ok(delay));
        }
        assert_eq!("60s".parse::<Delay>(), "1m".parse());
        assert_eq!(Delay::new(Duration::from_millis(1500)).unwrap().to_string(), "1500ms");
    }

    #[test]
    fn a_delay_is_at_least_a_millisecond_and_fits_the_broker() {
        assert_eq!(Delay::new(Duration::ZERO), None);
        assert_eq!(Delay::new(Duration::from_micros(1500)), None);
        assert_eq!(Delay::new(Duration::from_secs(60 * 86_400)), None);
        for text in ["", "s", "10", "10 s", "-1s", "1y", "99999999999999999999s"] {
            assert!(text.parse::<Delay>().is_err(), "{text:?}");
        }
    }
}
