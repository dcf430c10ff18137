//! `GET /api/v1/orders/{id}`: the history of one order, and where its messages are as far as the ledger knows.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::{AnyError, ApiError, ReadError};
use super::query::{PathParameter, unreadable};
use crate::admin::response::{error_response, json_response};
use crate::ledger::LedgerReader;
use crate::ledger::trace::{MessageState, StoredCopy, Trace, TracedMessage};

/// The routes.
pub(super) fn router(ledger: Arc<dyn LedgerReader>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(order)).with_state(ledger)
}

/// The history of one order.
#[derive(Debug, Serialize, ToSchema)]
struct OrderTrace {
    #[serde(flatten)]
    trace: Trace,
    /// Where its messages are now.
    places: Vec<MessagePlace>,
}

/// Where one message is now.
#[derive(Debug, Serialize, ToSchema)]
struct MessagePlace {
    message: TracedMessage,
    #[serde(flatten)]
    state: MessageState,
    /// Its copies in the store of dead letters, the latest first, among them those that were edited to another order.
    stored: Vec<StoredCopy>,
}

/// The history of one order: attempts, failures, delays, steps and events
#[utoipa::path(
    get,
    path = "/api/v1/orders/{id}",
    params(("id" = String, Path, description = "The order's id")),
    responses(
        (status = 200, description = "The history", body = OrderTrace),
        (status = 404, body = ApiError, description = "Nothing is recorded about an order with this id: `unknown_order`"),
        AnyError,
        ReadError
    )
)]
async fn order(State(ledger): State<Arc<dyn LedgerReader>>, PathParameter(id): PathParameter<String>) -> Response {
    let stored = StoredCopy::query(&id);
    let read = async { Ok((ledger.trace(&id).await?, ledger.dead_letters(stored).await?.letters)) };
    match read.await {
        Ok((trace, letters)) if trace.is_empty() && letters.is_empty() => error_response(
            StatusCode::NOT_FOUND,
            "unknown_order",
            &format!("nothing is recorded about an order {id:?}"),
        ),
        Ok((trace, letters)) => {
            let places = trace.message_states(Timestamp::now()).into_iter();
            let place = |(message, state): (TracedMessage, MessageState)| {
                let stored = StoredCopy::of_message(&id, message, &letters);
                MessagePlace { message, state, stored }
            };
            let places = places.map(place).collect();
            json_response(StatusCode::OK, &OrderTrace { trace, places })
        }
        Err(error) => unreadable(&error),
    }
}
