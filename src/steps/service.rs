//! The trait that the engine calls for each attempt at a step, with its input and output. `http` and `command` implement it.
//!
//! A service makes one call and classifies its outcome. It never retries, records or publishes: the engine and the worker do.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::recovery::Failure;

/// The longest answer of a step, in bytes: its result, events included.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The most events in one answer.
pub const MAX_EVENTS: usize = 16;

/// Performs the calls of one step.
pub trait StepService: Send + Sync + 'static {
    /// Makes one call. The future ends within the call's timeout and may be dropped at any await; the call may then have had its
    /// effect.
    ///
    /// # Errors
    /// See [`StepFailure`].
    fn call<'a>(&'a self, call: StepCall<'a>) -> BoxFuture<'a, Result<StepAnswer, StepFailure>>;
}

/// One call of a step, or of its undo.
#[derive(Debug, Clone, Copy)]
pub struct StepCall<'a> {
    /// `<order id>/<step>` or `<order id>/<step>/undo`.
    pub idempotency_key: &'a str,
    /// The request: one JSON object, without a line break.
    pub body: &'a Bytes,
    /// The trace context of the message.
    pub trace: TraceContext<'a>,
    /// How long the call may take.
    pub timeout: Duration,
}

/// The W3C trace context of a message, if it has one.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceContext<'a> {
    /// Its header `traceparent`.
    pub traceparent: Option<&'a str>,
    /// Its header `tracestate`.
    pub tracestate: Option<&'a str>,
}

/// What a service answered.
#[derive(Debug, Clone)]
pub struct StepAnswer {
    /// The result: the answer as it came, JSON of at most [`MAX_ANSWER_BYTES`] without a line break; `null` if it was empty.
    pub result: Box<RawValue>,
    /// The events it asks to publish, at most [`MAX_EVENTS`]: its field `events`, if it is an object that has one.
    pub events: Vec<StepEvent>,
}

/// An event to publish.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepEvent {
    /// Its routing key on the orders exchange.
    pub routing_key: String,
    /// Its body.
    pub body: Box<RawValue>,
}

impl StepAnswer {
    /// Reads an answer.
    ///
    /// # Errors
    /// What is wrong with it, without its content.
    pub fn read(answer: &[u8]) -> Result<Self, String> {
        if answer.len() > MAX_ANSWER_BYTES {
            return Err(format!("has more than {MAX_ANSWER_BYTES} bytes"));
        }
        let text = std::str::from_utf8(answer).map_err(|_| "is not UTF-8".to_owned())?.trim_ascii();
        let text = if text.is_empty() { "null" } else { text };
        // A line break in JSON is never part of a value: texts contain it escaped.
        let result = RawValue::from_string(text.replace(['\n', '\r'], " ")).map_err(|_| "is not JSON".to_owned())?;
        if !text.starts_with('{') {
            return Ok(StepAnswer { result, events: Vec::new() });
        }
        let Events { events } = serde_json::from_str(text).map_err(|error| format!("has invalid events: {error}"))?;
        let events = events.unwrap_or_default();
        match events.len() {
            0..=MAX_EVENTS => Ok(StepAnswer { result, events }),
            count => Err(format!("has {count} events, at most {MAX_EVENTS} are allowed")),
        }
    }
}

/// The part of an answer that orderd understands.
#[derive(Deserialize)]
struct Events {
    events: Option<Vec<StepEvent>>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailure {
    /// The failure of the message.
    pub failure: Failure,
    /// When the service asked to be called again; not limited yet.
    pub retry_after: Option<Duration>,
    /// What the failure says about the service and about the call's effect.
    pub cause: FailureCause,
}

/// What a failed call says about the service and about the call's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// The service answered that it does not do this, or not now: the call had no effect. Not counted by the circuit breaker.
    Refused,
    /// The service was not reached, so the call had no effect. Counted by the circuit breaker.
    NotReached,
    /// The service did not answer, or not with a decision about this call, which may have had its effect. Counted by the circuit
    /// breaker.
    Unanswered,
}

impl StepFailure {
    /// A failure without a time for the next call.
    pub fn new(failure: Failure, cause: FailureCause) -> Self {
        StepFailure { failure, retry_after: None, cause }
    }

    /// Whether the circuit breaker counts it: the service itself does not seem to work.
    pub fn is_unavailable(&self) -> bool {
        match self.cause {
            FailureCause::Refused => false,
            FailureCause::NotReached | FailureCause::Unanswered => true,
        }
    }
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_json_with_or_without_events() {
        let read = |answer: &str| StepAnswer::read(answer.as_bytes());
        assert_eq!(read(" \n").unwrap().result.get(), "null");
        assert_eq!(read("{\"a\":\r\n1}").unwrap().result.get(), "{\"a\":  1}");
        assert!(read("[1]").unwrap().events.is_empty() && read("{\"events\": null}").unwrap().events.is_empty());
        let with_event =
            read(r#"{"id": 7, "events": [{"routing_key": "order.shipping.sent", "body": {"n": 1.10}}]}"#).unwrap();
        assert_eq!(with_event.events[0].routing_key, "order.shipping.sent");
        assert_eq!(with_event.events[0].body.get(), r#"{"n": 1.10}"#);
        for wrong in ["<html>", "{", "{\"events\": 1}", "{\"events\": [{\"routing_key\": \"a\"}]}", "1 2"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(StepAnswer::read(&[0xff]).is_err());
        assert!(read(&format!("\"{}\"", "x".repeat(MAX_ANSWER_BYTES))).is_err());
        let event = r#"{"routing_key": "a", "body": 1}"#;
        let events = |count| format!("{{\"events\": [{}]}}", vec![event; count].join(","));
        assert!(read(&events(MAX_EVENTS)).is_ok() && read(&events(MAX_EVENTS + 1)).is_err());
    }
}
