//! All paths of the admin server, guarded, with a time limit and the headers of every response.
//!
//! It never answers a path itself.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;

use super::guard::{AccessGuard, check_access};
use super::response::error_response;
use super::{api, pages};
use crate::control::Control;
use crate::dead_letters::LetterActionsHandle;
use crate::ledger::LedgerReader;
use crate::status::StatusRegistry;

/// Time limit of every answer but those to commands, which have their own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests answered at a time, besides health checks. Those without access are refused before, and count for nothing.
pub(super) const MAX_ANSWERS: usize = 16;

/// The router of the admin server. Reports are read from `ledger`.
pub(super) fn router(
    registry: Arc<StatusRegistry>,
    ledger: Arc<dyn LedgerReader>,
    (control, actions): (Control, LetterActionsHandle),
    guard: AccessGuard,
) -> Router {
    let (document_route, document) = api::document::router();
    let reading = api::router(Arc::clone(&registry), ledger).merge(document_route).layer(from_fn(limit_time));
    let (api, description) = OpenApiRouter::with_openapi(api::document::common())
        .merge(reading)
        .merge(api::dead_letter_actions::router(actions).layer(from_fn(limit_time)))
        .merge(api::commands::router(control))
        .split_for_parts();
    let description = description.to_json().expect("a document is text, numbers and maps with text keys");
    document.set(description).expect("it is set once");
    let limited = pages::router(Arc::clone(&registry))
        .layer(from_fn(limit_time))
        .merge(api)
        .layer(from_fn_with_state(Arc::new(Semaphore::new(MAX_ANSWERS)), limit_answers));
    pages::health(registry)
        .layer(from_fn(limit_time))
        .merge(limited)
        .layer(from_fn_with_state(Arc::new(guard), check_access))
        .layer(from_fn(add_headers))
}

/// Rejects a request while [`MAX_ANSWERS`] others are being answered.
async fn limit_answers(State(permits): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match permits.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_requests", "try again later"),
    }
}

async fn limit_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await;
    answer.unwrap_or_else(|_| (StatusCode::SERVICE_UNAVAILABLE, "the answer timed out; try again\n").into_response())
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}
