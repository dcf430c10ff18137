//! All paths of the admin server, guarded, with a time limit and the headers of every response.
//!
//! It never answers a path itself.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;

use super::body::BODY_TIMEOUT;
use super::guard::{AccessGuard, check_access};
use super::response::error_response;
use super::{api, pages};
use crate::control::Control;
use crate::dead_letters::LetterActionsHandle;
use crate::ledger::LedgerReader;
use crate::status::StatusRegistry;

/// Time limit of every answer but those to commands, which have their own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for requests with a body, which may take its time to arrive.
const ACTION_TIMEOUT: Duration = BODY_TIMEOUT.saturating_add(ANSWER_TIMEOUT);
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
    let limit_time = |limit: Duration| from_fn_with_state(limit, limit_time);
    let reading = api::router(Arc::clone(&registry), ledger).merge(document_route).layer(limit_time(ANSWER_TIMEOUT));
    let (api, description) = OpenApiRouter::with_openapi(api::document::common())
        .merge(reading)
        .merge(api::dead_letter_actions::router(actions).layer(limit_time(ACTION_TIMEOUT)))
        .merge(api::commands::router(control))
        .split_for_parts();
    let description = description.to_json().expect("a document is text, numbers and maps with text keys");
    document.set(description).expect("it is set once");
    let limited = pages::router(Arc::clone(&registry))
        .layer(limit_time(ANSWER_TIMEOUT))
        .merge(api)
        .layer(from_fn_with_state(Arc::new(Semaphore::new(MAX_ANSWERS)), limit_answers));
    pages::health(registry)
        .layer(limit_time(ANSWER_TIMEOUT))
        .merge(limited)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
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

async fn limit_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(limit, next.run(request)).await;
    answer.unwrap_or_else(|_| {
        error_response(StatusCode::SERVICE_UNAVAILABLE, "answer_timeout", "the answer took too long; try again")
    })
}

async fn unknown_path(uri: Uri) -> Response {
    let message = format!("there is no path {:?}: GET / lists them", uri.path());
    error_response(StatusCode::NOT_FOUND, "no_such_path", &message)
}

async fn wrong_method(method: Method) -> Response {
    let message = format!("this path does not have the method {method}: the header Allow names those it has");
    error_response(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", &message)
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use serde_json::Value;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_too_long_is_an_error_like_any_other() {
        let slow = Router::new().route("/", get(std::future::pending::<()>));
        let slow = TowerToHyperService::new(slow.layer(from_fn_with_state(ANSWER_TIMEOUT, limit_time)));
        let answer = slow.call(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 503);
        let body: Value = serde_json::from_slice(&to_bytes(answer.into_body(), 1 << 10).await.unwrap()).unwrap();
        assert_eq!(body["error"], "answer_timeout");
    }
}
