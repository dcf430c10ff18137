//! What a step is called with: one JSON object in one line.
//!
//! ```json
//! {"order": {…as orderd understood it…}, "message": {…as it came…}, "steps": {"charge": {…its result…}}}
//! ```
//! Without `order` if the message is none. For an undo, with `failure`: why the order failed.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::when::OrderFacts;
use crate::ledger::{RecordedStep, RunFailure, RunKey, RunMessage, StepAction, StepStatus};

use super::service::TraceContext;

/// A message whose steps are called.
#[derive(Debug, Clone, Copy)]
pub struct RunInput<'a> {
    /// Its run.
    pub key: &'a RunKey,
    /// Which message it is.
    pub message: &'a RunMessage,
    /// Whether it was published anew, and is neither delivered again nor a copy after a failure.
    pub is_new: bool,
    /// When it was replayed, if it says so.
    pub replayed_at: Option<jiff::Timestamp>,
    /// Its body as text.
    pub text: &'a str,
    /// The order, if it is one.
    pub order: Option<OrderInput<'a>>,
    /// Its trace context.
    pub trace: TraceContext<'a>,
    /// Its delayed retries so far.
    pub retries: u32,
}

/// An order whose steps are called.
#[derive(Debug, Clone, Copy)]
pub struct OrderInput<'a> {
    /// The order as orderd understood it.
    pub json: &'a RawValue,
    /// What conditions are about.
    pub facts: OrderFacts,
}

/// Why a step is undone.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "failure")]
pub struct UndoCause<'a> {
    /// The failure's kind, such as `permanent`.
    kind: &'a str,
    /// The failure's stable code, such as `http_409`, or `cancelled`.
    code: &'a str,
    /// Text for people.
    reason: &'a str,
}

/// The body of a call. `failure`: of an undo, why the run is undone.
pub(super) fn body(input: &RunInput<'_>, recorded: &[RecordedStep], failure: Option<&RunFailure>) -> Bytes {
    let mut body = Vec::with_capacity(input.text.len() + 512);
    body.push(b'{');
    if let Some(order) = input.order {
        body.extend_from_slice(b"\"order\":");
        push_json(&mut body, order.json.get());
        body.push(b',');
    }
    body.extend_from_slice(b"\"message\":");
    match serde_json::from_str::<&RawValue>(input.text) {
        Ok(json) => push_json(&mut body, json.get()),
        // A message that is not JSON is passed on as text.
        Err(_) => push(&mut body, &input.text),
    }
    body.extend_from_slice(b",\"steps\":{");
    let done = recorded.iter().filter(|step| step.action == StepAction::Do && step.status == StepStatus::Done);
    for (index, step) in done.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        push(&mut body, &step.step);
        body.push(b':');
        push_json(&mut body, step.result.as_deref().unwrap_or("null"));
    }
    body.push(b'}');
    if let Some(RunFailure { kind, code, reason, .. }) = failure {
        body.extend_from_slice(b",\"failure\":");
        push(&mut body, &UndoCause { kind, code, reason });
    }
    body.push(b'}');
    body.into()
}

/// Appends JSON without its line breaks, which are never part of a value.
fn push_json(body: &mut Vec<u8>, json: &str) {
    body.extend(json.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
}

fn push(body: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(body, value).expect("texts are written to memory");
}

/// The message as JSON, if it is JSON.
pub(super) fn message_json(text: &str) -> Option<Json> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn step(name: &str, action: StepAction, status: StepStatus, result: Option<&str>) -> RecordedStep {
        RecordedStep {
            step: name.to_owned(),
            action,
            round: 1,
            position: 0,
            undoable: true,
            status,
            attempts: 1,
            first_retry: 0,
            uncertain: false,
            result: result.map(str::to_owned),
        }
    }

    #[test]
    fn a_request_is_one_line_with_the_order_the_message_and_the_results_so_far() {
        let key = RunKey { scope: String::new(), identity: "ord-2".to_owned() };
        let order = RawValue::from_string("{\"id\":\n\"ord-2\"}".to_owned()).unwrap();
        let facts = OrderFacts { priority: false, total: 1.into(), currency: "EUR".parse().unwrap() };
        let input = RunInput {
            key: &key,
            message: &RunMessage { queue: "order_queue".into(), hash: [0; 32] },
            is_new: true,
            replayed_at: None,
            text: "{\r\n  \"id\": 1.10, \"note\": \"a\\nb\"\n}",
            order: Some(OrderInput { json: &order, facts }),
            trace: TraceContext::default(),
            retries: 0,
        };
        let recorded = [
            step("charge", StepAction::Do, StepStatus::Done, Some("{\"id\":7.00}")),
            step("charge", StepAction::Undo, StepStatus::Done, Some("1")),
            step("mail", StepAction::Do, StepStatus::Done, None),
            step("ship", StepAction::Do, StepStatus::Failed, None),
        ];
        assert_eq!(
            body(&input, &recorded, None),
            "{\"order\":{\"id\": \"ord-2\"},\"message\":{    \"id\": 1.10, \"note\": \"a\\nb\" },\
             \"steps\":{\"charge\":{\"id\":7.00},\"mail\":null}}"
        );
        let failure = RunFailure {
            kind: "permanent".to_owned(),
            code: "http_404".to_owned(),
            reason: "no \"address\"\n".to_owned(),
            dead_letter_reason: "permanent".to_owned(),
            retries: 0,
            failed_at: Timestamp::UNIX_EPOCH,
            undo_from: Timestamp::UNIX_EPOCH,
        };
        let text = RunInput { text: "pay \"me\"\n", order: None, ..input };
        assert_eq!(
            body(&text, &[], Some(&failure)),
            "{\"message\":\"pay \\\"me\\\"\\n\",\"steps\":{},\
             \"failure\":{\"kind\":\"permanent\",\"code\":\"http_404\",\"reason\":\"no \\\"address\\\"\\n\"}}"
        );
    }
}
