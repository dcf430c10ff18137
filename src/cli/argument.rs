//! Numbers among a command's arguments. Error texts say what the value must be.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A number such as that of a dead letter.
pub(super) fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "must be a number".to_owned())
}

/// A number in a range.
pub(super) fn within<N>(range: RangeInclusive<N>) -> impl Fn(&str) -> Result<N, String> + Clone + Send + Sync
where
    N: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
    }
}

/// A share in percent, with or without the sign.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let digits = text.strip_suffix('%').unwrap_or(text).trim_end();
    within(0..=100)(digits).map_err(|_| "must be a number from 0 to 100".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_number_is_refused_with_what_it_must_be() {
        assert_eq!((number("7"), percent("10"), percent("10%")), (Ok(7), Ok(10), Ok(10)));
        assert_eq!(within(1..=50_u32)("50"), Ok(50));
        for (problem, text) in [
            (number("x").map(drop), "must be a number"),
            (within(1..=50_u32)("51").map(drop), "must be a number from 1 to 50"),
            (within(1..=50_u32)("x").map(drop), "must be a number from 1 to 50"),
            (percent("101%").map(drop), "must be a number from 0 to 100"),
        ] {
            assert_eq!(problem, Err(text.to_owned()));
        }
    }
}
