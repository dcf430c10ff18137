//! A rate: so many in a second or a minute. Pure.

use std::fmt;

use serde::{Serialize, Serializer};

use super::layers::Value;
use super::value_parser::text;

/// The largest number in a rate.
const MAX_COUNT: u32 = 1_000_000;
const EXAMPLE: &str = "must be a rate such as \"200/s\" or \"30/m\"";

/// At most so many in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// 1 to 1,000,000.
    count: u32,
    period: Period,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    Second,
    Minute,
}

impl Rate {
    /// How many in a second.
    pub fn per_second(&self) -> f64 {
        match self.period {
            Period::Second => f64::from(self.count),
            Period::Minute => f64::from(self.count) / 60.0,
        }
    }

    /// How many in a minute, at least 1.
    pub fn per_minute(&self) -> usize {
        match self.period {
            Period::Second => self.count as usize * 60,
            Period::Minute => self.count as usize,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period {
            Period::Second => "s",
            Period::Minute => "m",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Parses a rate: `200/s`, `30/m`.
pub(super) fn rate(value: &Value) -> Result<Rate, String> {
    let text = text(32)(value).map_err(|_| format!("{EXAMPLE}, is {value}"))?;
    let parsed = text.split_once('/').and_then(|(count, unit)| {
        let period = match unit.trim() {
            "s" => Period::Second,
            "m" => Period::Minute,
            _ => return None,
        };
        let count = count.trim();
        let is_number = count.bytes().all(|byte| byte.is_ascii_digit()) && !count.is_empty();
        Some((is_number.then(|| count.parse().unwrap_or(u32::MAX))?, period))
    });
    match parsed {
        Some((count, period)) if (1..=MAX_COUNT).contains(&count) => Ok(Rate { count, period }),
        Some(_) => Err(format!("must be from 1 to {MAX_COUNT} in a second or a minute, is {value}")),
        None => Err(format!("{EXAMPLE}, is {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_per_second_or_minute() {
        let read = |text: &str| rate(&Value::Text(text.to_owned()));
        for (text, per_second, per_minute) in
            [("200/s", 200.0, 12_000), ("1/m", 1.0 / 60.0, 1), ("30 / m", 0.5, 30), ("1000000/s", 1e6, 60_000_000)]
        {
            let rate = read(text).unwrap();
            assert_eq!((rate.per_second(), rate.per_minute()), (per_second, per_minute));
            assert_eq!(rate.to_string(), text.replace(' ', ""));
        }
        for wrong in
            ["", "200", "200/h", "0/s", "-1/s", "+1/s", "1.5/s", "/s", "200/", "1000001/s", "99999999999/s", "a/s"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(rate(&Value::Integer(200)).unwrap_err().contains("\"200/s\""));
    }
}
