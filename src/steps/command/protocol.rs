//! The protocol of long-lived commands: one JSON object a line on standard input and output. Pure.
//!
//! ```text
//! child  → orderd   {"orderd": 1}                                              hello: it is ready, and speaks version 1
//! orderd → child    {"id": 7301, "idempotency_key": "ord-1/charge", "request": {…}}
//! child  → orderd   {"id": 7301, "result": {…}}                                done
//!                   {"id": 7301, "retry": "reason", "after": "30s"}            not now
//!                   {"id": 7301, "reject": "reason"}                           never
//! ```
//! Requests also have `traceparent` and `tracestate` if the message has them. The id of a request cannot be guessed, so an
//! answer that was written before the request was read never fits.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::CommandRequest;
use crate::config::duration;
use crate::steps::{MAX_ANSWER_BYTES, StepAnswer};

/// The version of this protocol.
const VERSION: u64 = 1;
/// The largest request that is written to a command, in bytes.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 20;
/// The longest line that a command may write, in bytes: a result, with room for the rest of the line.
pub(super) const MAX_LINE_BYTES: usize = 2 * MAX_ANSWER_BYTES;
/// Ids are below this number, which every JSON parser reads exactly.
const MAX_ID: u64 = 1 << 53;

/// What a command answered.
#[derive(Debug, Clone)]
pub(super) enum ChildAnswer {
    /// The step is done.
    Done(StepAnswer),
    /// The call may succeed later.
    Retry { reason: String, after: Option<Duration> },
    /// The call will never succeed.
    Reject { reason: String },
}

#[derive(Deserialize)]
struct Hello {
    orderd: u64,
}

/// Checks the first line of a command.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_hello(line: &[u8]) -> Result<(), String> {
    match serde_json::from_slice(line) {
        Ok(Hello { orderd: VERSION }) => Ok(()),
        Ok(Hello { orderd }) => Err(format!("it speaks version {orderd} of the protocol, orderd speaks {VERSION}")),
        Err(_) => Err(format!("its first line is not {{\"orderd\": {VERSION}}}")),
    }
}

/// A new request id.
pub(super) fn new_id() -> u64 {
    fastrand::u64(1..MAX_ID)
}

#[derive(Serialize)]
struct RequestHead<'a> {
    id: u64,
    idempotency_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

/// What precedes the body in the line of a request, and what follows it.
pub(super) fn around_body(id: u64, request: &CommandRequest) -> (Vec<u8>, &'static [u8]) {
    let CommandRequest { idempotency_key, traceparent, tracestate, body: _ } = request;
    let (traceparent, tracestate) = (traceparent.as_deref(), tracestate.as_deref());
    let head = RequestHead { id, idempotency_key, traceparent, tracestate };
    let mut line = serde_json::to_vec(&head).expect("text and numbers are always JSON");
    // The body becomes the last field.
    line.pop();
    line.extend_from_slice(b",\"request\":");
    (line, b"}\n")
}

#[derive(Deserialize)]
struct AnswerLine<'a> {
    id: Option<u64>,
    /// `Some` also if it is null.
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    retry: Option<String>,
    after: Option<String>,
    reject: Option<String>,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Reads the answer to a request.
///
/// # Errors
/// What is wrong with it, without its content.
pub(super) fn read_answer(line: &[u8], id: u64) -> Result<ChildAnswer, String> {
    let answer: AnswerLine<'_> =
        serde_json::from_slice(line).map_err(|_| "it is not an object of the protocol".to_owned())?;
    if answer.id != Some(id) {
        return Err("its id is not that of the request".to_owned());
    }
    match (answer.result, answer.retry, answer.reject) {
        (Some(result), None, None) => {
            let read = StepAnswer::read(result.get().as_bytes());
            read.map(ChildAnswer::Done).map_err(|problem| format!("its result {problem}"))
        }
        (None, Some(reason), None) => {
            let after = answer.after.as_deref().map(duration::parse).transpose();
            let after = after.map_err(|problem| format!("its after {problem}"))?;
            Ok(ChildAnswer::Retry { reason, after })
        }
        (None, None, Some(reason)) => Ok(ChildAnswer::Reject { reason }),
        _ => Err("it does not have exactly one of result, retry and reject".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_request_is_one_line_of_json_with_the_body_as_it_is() {
        let request = CommandRequest {
            idempotency_key: "ord-\u{7}1/charge".to_owned(),
            traceparent: Some("00-a-b-01".to_owned()),
            tracestate: None,
            body: Bytes::from_static(b"{\"order\":{\"price\":1.10}}"),
        };
        let (mut line, end) = around_body(7, &request);
        line.extend_from_slice(&request.body);
        line.extend_from_slice(end);
        let expected = r#"{"id":7,"idempotency_key":"ord-\u00071/charge","traceparent":"00-a-b-01","request":{"order":{"price":1.10}}}"#;
        assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn an_answer_has_the_id_of_the_request_and_one_outcome() {
        let read = |line: &str| read_answer(line.as_bytes(), 7);
        assert!(
            matches!(read(r#"{"id": 7, "result": {"a": 1}, "more": 1}"#), Ok(ChildAnswer::Done(done)) if done.result.get() == "{\"a\": 1}")
        );
        assert!(
            matches!(read(r#"{"result": null, "id": 7}"#), Ok(ChildAnswer::Done(done)) if done.result.get() == "null")
        );
        let after = Some(Duration::from_secs(90));
        assert!(
            matches!(read(r#"{"id": 7, "retry": "busy", "after": "1m 30s"}"#), Ok(ChildAnswer::Retry { after: read, .. }) if read == after)
        );
        assert!(matches!(read(r#"{"id": 7, "retry": ""}"#), Ok(ChildAnswer::Retry { after: None, .. })));
        assert!(matches!(read(r#"{"id": 7, "reject": "no"}"#), Ok(ChildAnswer::Reject { reason }) if reason == "no"));
        for wrong in [
            "",
            "7",
            "[]",
            "{}",
            r#"{"id": 8, "result": 1}"#,
            r#"{"id": "7", "result": 1}"#,
            r#"{"result": 1}"#,
            r#"{"id": 7}"#,
            r#"{"id": 7, "result": 1, "reject": "no"}"#,
            r#"{"id": 7, "retry": "busy", "after": 30}"#,
            r#"{"id": 7, "retry": "busy", "after": "30"}"#,
            r#"{"id": 7, "result": {"events": 1}}"#,
            r#"{"id": 7, "result": 1} {"id": 7, "result": 1}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hello_names_the_version() {
        assert_eq!(check_hello(b"{\"orderd\": 1, \"name\": \"charge\"}"), Ok(()));
        for wrong in ["", "hello", "{\"orderd\": 2}", "{\"orderd\": \"1\"}", "{\"id\": 1}"] {
            assert!(check_hello(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
