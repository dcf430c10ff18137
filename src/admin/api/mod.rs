//! The JSON API below `/api/v1`: the status and the reports here, the commands in [`commands`], the journal in `journal`.
//!
//! Nothing here asks the broker.

pub(super) mod commands;
pub(super) mod dead_letters;
mod journal;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::get;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::guard::require_user;
use super::response::{error_response, json_response};
use crate::chain::chain;
use crate::ledger::LedgerReader;
use crate::ledger::report::ReportQuery;
use crate::status::StatusRegistry;

/// Reports read at a time; further requests wait.
const MAX_REPORTS: usize = 1;

/// What the handlers of the API read.
#[derive(Clone)]
struct ApiDeps {
    registry: Arc<StatusRegistry>,
    ledger: Arc<dyn LedgerReader>,
    /// Limits the reports that are read at a time.
    reports: Arc<Semaphore>,
}

/// The routes that only read.
pub(super) fn router(registry: Arc<StatusRegistry>, ledger: Arc<dyn LedgerReader>) -> Router {
    let personal = Router::new().route("/api/v1/journal", get(journal::journal)).layer(from_fn(require_user));
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/report", get(report))
        .merge(personal)
        .with_state(ApiDeps { registry, ledger, reports: Arc::new(Semaphore::new(MAX_REPORTS)) })
}

async fn status(State(api): State<ApiDeps>) -> Response {
    json_response(StatusCode::OK, &api.registry.snapshot().status)
}

async fn report(State(api): State<ApiDeps>, query: Result<Query<ReportQuery>, QueryRejection>) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return error_response(StatusCode::BAD_REQUEST, "query", &rejection.body_text()),
    };
    let permit = api.reports.acquire_owned().await.expect("this semaphore is never closed");
    let read = tokio::spawn(async move {
        // Held until the report is read, even if the request was dropped.
        let _permit = permit;
        api.ledger.report(query, Timestamp::now()).await
    });
    match read.await {
        Ok(Ok(report)) => json_response(StatusCode::OK, &report),
        Ok(Err(error)) => {
            let (status, code) = match error.is_query_error() {
                true => (StatusCode::BAD_REQUEST, "query"),
                false => (StatusCode::INTERNAL_SERVER_ERROR, "ledger"),
            };
            error_response(status, code, &chain(&error))
        }
        Err(panicked) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "panicked", &panicked.to_string()),
    }
}
