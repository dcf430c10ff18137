//! `circuit_breaker` of a step or a notification channel: reads and checks the section. It decides nothing.

use std::time::Duration;

use serde::Serialize;

use crate::config::{Section, Value, duration, serialize_duration, value_parser};

/// A closed breaker does not open until this many calls have ended within its window.
pub const MIN_CALLS: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// `circuit_breaker` of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BreakerSettings {
    /// The fraction of the calls within the window that must fail for it to open; above 0, at most 1; default 0.5.
    pub failures: f64,
    /// The time within which calls count; default 30 s.
    #[serde(serialize_with = "serialize_duration")]
    pub window: Duration,
    /// How long it stays open before a call tries the service; default 10 s.
    #[serde(serialize_with = "serialize_duration")]
    pub open: Duration,
}

impl BreakerSettings {
    /// Reads the section.
    pub fn read(mut section: Section<'_>) -> Self {
        let default = BreakerSettings::default();
        let settings = BreakerSettings {
            failures: section.optional_or("failures", default.failures, &failures),
            window: section.optional_or("window", default.window, &value_parser::duration(SECOND..=3600 * SECOND)),
            // Well below the time for which the broker waits for an ack: a delivery may wait for the next trial.
            open: section.optional_or("open", default.open, &value_parser::duration(SECOND / 10..=120 * SECOND)),
        };
        section.finish();
        settings
    }

    /// Warns of a breaker that can never open. Of a service that does not answer, no more calls end within the window than these;
    /// below [`MIN_CALLS`], the breaker stays closed. `at_once` is the key that limits calls at the same time, and its value.
    pub fn warn_of_short_window(self, section: &Section<'_>, timeout: Duration, at_once: (&str, usize)) {
        let (key, at_once) = at_once;
        let calls_in_turn = 1 + self.window.as_millis() / timeout.as_millis().max(1);
        let calls = calls_in_turn.saturating_mul(at_once as u128);
        if calls < u128::from(MIN_CALLS) {
            let message = format!(
                "has a window of {}, too short for a timeout of {} and {key} = {at_once}: it opens only if {MIN_CALLS} calls end \
                 within the window, which never happens while the service does not answer",
                duration::format(self.window),
                duration::format(timeout)
            );
            section.warning("circuit_breaker", message);
        }
    }
}

/// Without any failure, the service works.
fn failures(value: &Value) -> Result<f64, String> {
    let fraction = value_parser::fraction(value).ok().filter(|fraction| *fraction > 0.0);
    fraction.ok_or_else(|| format!("must be a number above 0, up to 1, is {value}"))
}

impl Default for BreakerSettings {
    fn default() -> Self {
        BreakerSettings { failures: 0.5, window: 30 * SECOND, open: 10 * SECOND }
    }
}
