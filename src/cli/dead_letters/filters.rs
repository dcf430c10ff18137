//! The arguments that select dead letters, the same for all commands. It only turns them into a filter.

use clap::Args;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;

use crate::cli::argument::number;
use crate::domain::{Currency, ExactSum};
use crate::ledger::report::PointInTime;
use crate::ledger::{DeadLetterFilter, LetterSource, LetterState};

/// Which dead letters are meant.
#[derive(Debug, Args)]
pub(super) struct Filters {
    /// Only those in this state, or "any" [default: open; with --replay: any]
    #[arg(long, value_name = "STATE", value_parser = states())]
    state: Option<States>,
    #[command(flatten)]
    matching: Matching,
}

/// What dead letters have to match, whatever their state.
#[derive(Debug, Args)]
pub(super) struct Matching {
    /// Only those with this reason, such as permanent or retries_exhausted
    #[arg(long, value_name = "REASON", value_parser = NonEmptyStringValueParser::new())]
    reason: Option<String>,
    /// Only those taken from this queue
    #[arg(long, value_name = "QUEUE", value_parser = sources())]
    source: Option<LetterSource>,
    /// Only those with this failure code
    #[arg(long, value_name = "CODE", value_parser = NonEmptyStringValueParser::new())]
    code: Option<String>,
    /// Only those that failed in this consumer
    #[arg(long, value_name = "CONSUMER", value_parser = NonEmptyStringValueParser::new())]
    consumer: Option<String>,
    /// Only orders with a line for this product
    #[arg(long, value_name = "PRODUCT", value_parser = NonEmptyStringValueParser::new())]
    product: Option<String>,
    /// Only orders of the customer with this id
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    customer: Option<String>,
    /// Only the order with this id, and what is about it
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    order: Option<String>,
    /// Only those that failed at this time or later: an age such as 24h or 7d, a date, or a time (RFC 3339; UTC without an offset)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<PointInTime>,
    /// Only those that failed before this time, in the same formats
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<PointInTime>,
    /// Only those that contain this text, ignoring case: in ids, products, codes, the failure's text or the beginning of the body, 2,000
    /// bytes together
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    text: Option<String>,
    /// Only those that failed after at least this many delayed retries
    #[arg(long, value_name = "N")]
    min_retries: Option<u32>,
    /// Only orders in this currency, such as EUR
    #[arg(long, value_name = "CURRENCY")]
    currency: Option<Currency>,
    /// Only orders that cost this much or more; with --currency in that currency
    #[arg(long, value_name = "AMOUNT")]
    min_total: Option<ExactSum>,
    /// Only those that were last published with this routing key, such as a mistyped one
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    routing_key: Option<String>,
    /// Only letters of this replay, also those that it has not published
    #[arg(long, value_name = "N", value_parser = number)]
    replay: Option<i64>,
}

/// One state, or none: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct States(Option<LetterState>);

fn states() -> impl TypedValueParser<Value = States> {
    let names = LetterState::ALL.iter().map(|state| state.as_str()).chain(["any"]);
    PossibleValuesParser::new(names).map(|name| States(LetterState::parse(&name)))
}

fn sources() -> impl TypedValueParser<Value = LetterSource> {
    let names = LetterSource::ALL.iter().map(|source| source.as_str());
    PossibleValuesParser::new(names).map(|name| LetterSource::parse(&name).expect("it is one of the names"))
}

/// Nothing can match.
pub(super) const EMPTY_TIME: &str = "--since must be before --until";

impl Filters {
    /// The filter; `now` is what ages refer to.
    ///
    /// # Errors
    /// The time between `--since` and `--until` is empty.
    pub fn filter(&self, now: Timestamp) -> Result<DeadLetterFilter, &'static str> {
        let filter = self.matching.filter(now)?;
        let default = if filter.replay.is_some() { None } else { Some(LetterState::Open) };
        let state = self.state.map_or(default, |States(state)| state);
        Ok(DeadLetterFilter { states: state.into_iter().collect(), ..filter })
    }
}

impl Matching {
    /// The filter, in any state; `now` is what ages refer to.
    ///
    /// # Errors
    /// The time between `--since` and `--until` is empty.
    pub fn filter(&self, now: Timestamp) -> Result<DeadLetterFilter, &'static str> {
        let Matching {
            source,
            reason,
            code,
            consumer,
            product,
            customer,
            order,
            since,
            until,
            text,
            min_retries,
            currency,
            min_total,
            routing_key,
            replay,
        } = self;
        let (since, until) = (since.map(|since| since.at(now)), until.map(|until| until.at(now)));
        if since.zip(until).is_some_and(|(since, until)| since >= until) {
            return Err(EMPTY_TIME);
        }
        Ok(DeadLetterFilter {
            states: Vec::new(),
            source: *source,
            reason: reason.clone(),
            code: code.clone(),
            consumer: consumer.clone(),
            product: product.clone(),
            customer: customer.clone(),
            order: order.clone(),
            since,
            until,
            text: text.clone(),
            min_retries: *min_retries,
            currency: currency.map(|currency| currency.as_str().to_owned()),
            min_total: *min_total,
            routing_key: routing_key.clone(),
            replay: *replay,
        })
    }
}
