//! Parses and checks single values: text, numbers, durations, addresses, names. Each parser returns the value, or what it
//! must be (`must be at least 1, is 0`).

use std::ops::RangeInclusive;
use std::time::Duration;

use super::address::Address;
use super::duration;
use super::layers::Value;
use super::suggestion::{did_you_mean, listed};
use crate::recovery::Delay;

/// Text that is not empty and has at most `max` bytes.
pub fn text(max: usize) -> impl Fn(&Value) -> Result<String, String> {
    move |value| match value {
        Value::Text(text) | Value::Untyped(text) => match text.len() {
            0 => Err("must not be empty".to_owned()),
            length if length > max => Err(format!("must be at most {max} bytes, is {length}")),
            _ => Ok(text.clone()),
        },
        other => Err(format!("must be text in quotes, is {other}")),
    }
}

/// A secret: like [`text`], but a problem never shows it.
pub fn secret(max: usize) -> impl Fn(&Value) -> Result<String, String> {
    move |value| match value {
        Value::Text(_) | Value::Untyped(_) => text(max)(value),
        _ => Err("must be text in quotes".to_owned()),
    }
}

/// `true` or `false`.
pub fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(truth) => Ok(*truth),
        Value::Untyped(text) if text == "true" => Ok(true),
        Value::Untyped(text) if text == "false" => Ok(false),
        other => Err(format!("must be true or false, is {other}")),
    }
}

/// A whole number in a range.
pub fn number<T>(range: RangeInclusive<T>) -> impl Fn(&Value) -> Result<T, String>
where
    T: TryFrom<i128> + TryInto<i128> + Copy,
{
    move |value| {
        let number = match value {
            Value::Integer(number) => *number,
            Value::Untyped(text) => text.trim().parse().map_err(|_| format!("must be a whole number, is {value}"))?,
            other => return Err(format!("must be a whole number, is {other}")),
        };
        let wide = |bound: &T| (*bound).try_into().unwrap_or(i128::MAX);
        within(number, &(wide(range.start())..=wide(range.end())), |number| number.to_string())?;
        T::try_from(number).map_err(|_| format!("must be a whole number, is {value}"))
    }
}

/// A number from 0 to 1.
pub fn fraction(value: &Value) -> Result<f64, String> {
    let fraction = match value {
        Value::Float(fraction) => *fraction,
        Value::Integer(0) => 0.0,
        Value::Integer(1) => 1.0,
        Value::Untyped(text) => text.trim().parse().unwrap_or(f64::NAN),
        Value::Text(_) | Value::Integer(_) | Value::Boolean(_) | Value::Time | Value::List(_) | Value::Table(_) => {
            f64::NAN
        }
    };
    if (0.0..=1.0).contains(&fraction) {
        Ok(fraction)
    } else {
        Err(format!("must be a number from 0 to 1, is {value}"))
    }
}

/// A duration in a range, written with a unit.
pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        let read = any_duration(value)?;
        within(read, &range, |bound| duration::format(*bound))?;
        Ok(read)
    }
}

/// `"off"`, which is `None`, or what `parse` accepts.
pub fn or_off<T>(parse: impl Fn(&Value) -> Result<T, String>) -> impl Fn(&Value) -> Result<Option<T>, String> {
    move |value| match value {
        Value::Text(text) | Value::Untyped(text) if text == "off" => Ok(None),
        _ => parse(value).map(Some).map_err(|message| format!("{message}; or \"off\"")),
    }
}

fn any_duration(value: &Value) -> Result<Duration, String> {
    let text = match value {
        Value::Text(text) | Value::Untyped(text) => text.as_str(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Time | Value::List(_) | Value::Table(_) => "",
    };
    duration::parse(text).map_err(|message| format!("{message}, is {value}"))
}

fn within<T: PartialOrd>(value: T, range: &RangeInclusive<T>, show: impl Fn(&T) -> String) -> Result<(), String> {
    if value < *range.start() {
        Err(format!("must be at least {}, is {}", show(range.start()), show(&value)))
    } else if value > *range.end() {
        Err(format!("must be at most {}, is {}", show(range.end()), show(&value)))
    } else {
        Ok(())
    }
}

/// A delay before a retry.
pub fn delay(value: &Value) -> Result<Delay, String> {
    let read = any_duration(value)?;
    within(read, &(Duration::from_millis(1)..=Delay::MAX), |bound| duration::format(*bound))?;
    Delay::new(read).ok_or_else(|| format!("must be whole milliseconds, is {value}"))
}

/// One of the given words; the result is its meaning.
pub fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let text = match value {
            Value::Text(text) | Value::Untyped(text) => text.as_str(),
            _ => "",
        };
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        words.iter().find(|(name, _)| *name == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let hint = did_you_mean(text, names.iter().copied());
            format!("must be one of {}, is {value}{hint}", listed(&names))
        })
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`. `port` is the default port.
///
/// An address with a scheme or an `@` is rejected without showing it: it may contain a password.
pub fn address(port: u16) -> impl Fn(&Value) -> Result<Address, String> {
    move |value| {
        let text = text(255)(value)?;
        if text.contains(['@', '/']) {
            return Err("must be host or host:port, without a scheme or credentials".to_owned());
        }
        Address::parse(&text, port)
            .ok_or_else(|| format!("must be host or host:port (a port from 1 to 65535, IPv6 in brackets), is {value}"))
    }
}

/// The problem with the name of a queue or a consumer, if there is one.
pub fn name_problem(name: &str, max: usize) -> Option<String> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || !name.bytes().all(is_allowed) {
        Some("must be named in lower-case letters, digits and underscores".to_owned())
    } else if name.len() > max {
        Some(format!("must have a name of at most {max} bytes, has {}", name.len()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_default_port_and_ipv6_brackets() {
        let read = |text: &str| address(5672)(&Value::Text(text.to_owned())).map(|address| address.to_string());
        assert_eq!(read("rabbit"), Ok("rabbit:5672".to_owned()));
        assert_eq!(read("127.0.0.1:5673"), Ok("127.0.0.1:5673".to_owned()));
        assert_eq!(read("[::1]"), Ok("[::1]:5672".to_owned()));
        assert_eq!(read("[fe80::1]:5671"), Ok("[fe80::1]:5671".to_owned()));
        for wrong in ["", ":5672", "a:", "a:0", "a:65536", "a:b", "::1", "a:+1", "[::1", "[::1]5672", "[a]:1", "a b"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_with_credentials_is_rejected_and_not_shown() {
        let problem = address(5672)(&Value::Text("amqp://me:hunter2@rabbit".to_owned())).unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn a_number_says_which_bound_it_breaks() {
        let read = |number| super::number(1u16..=1024)(&Value::Integer(number));
        assert_eq!(read(0), Err("must be at least 1, is 0".to_owned()));
        assert_eq!(read(1024), Ok(1024));
        assert_eq!(read(i128::MAX), Err(format!("must be at most 1024, is {}", i128::MAX)));
        assert_eq!(super::number(1u16..=9)(&Value::Untyped("8".to_owned())), Ok(8));
    }

    #[test]
    fn a_value_that_may_be_off_is_off_or_valid() {
        let read = super::or_off(super::duration(Duration::from_secs(1)..=Duration::from_secs(60)));
        assert_eq!(read(&Value::Text("off".to_owned())), Ok(None));
        assert_eq!(read(&Value::Untyped("5s".to_owned())), Ok(Some(Duration::from_secs(5))));
        let problem = read(&Value::Text("0s".to_owned())).unwrap_err();
        assert!(problem.contains("at least") && problem.contains("or \"off\""), "{problem}");
    }

    #[test]
    fn a_number_without_a_unit_is_not_a_duration() {
        let read = super::duration(Duration::from_secs(1)..=Duration::from_secs(60));
        let problem = read(&Value::Integer(30)).unwrap_err();
        assert_eq!(problem, "must be a duration with a unit, such as \"30s\" or \"1m 30s\", is 30");
        assert_eq!(read(&Value::Untyped("61s".to_owned())), Err("must be at most 1m, is 1m 1s".to_owned()));
    }
}
