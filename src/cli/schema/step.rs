//! The schema of a step's request: what the shop's own services are called with.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use crate::handlers::StepOrder;
use crate::steps::UndoCause;

/// What a step is called with. The body of an HTTP call, and `request` of a line to a long-lived command.
#[derive(JsonSchema)]
#[schemars(title = "step")]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct StepRequest<'a> {
    /// The order as orderd understood it; missing if the message is not an order.
    order: Option<StepOrder<'a>>,
    /// The message's body as it came; of an order in a CloudEvent, the event's data. A body that is not JSON is a text.
    message: serde_json::Value,
    /// The results of the steps that are done, by name.
    steps: BTreeMap<String, serde_json::Value>,
    /// Why the step is undone; missing unless this is an undo.
    failure: Option<UndoCause<'a>>,
}
