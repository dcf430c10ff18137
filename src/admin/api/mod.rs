//! The JSON API below `/api/v1`: the status and the reports here, the commands in [`commands`], everything else in a file of its own.
//!
//! A route that is added with `routes!` is in the OpenAPI document. Nothing here asks the broker.

pub(super) mod commands;
pub(super) mod dead_letter_actions;
mod dead_letters;
pub(super) mod document;
mod journal;
mod orders;
mod query;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::document::{AnyError, NoBody, ReadError};
use self::query::{Parameters, QueryError, unreadable};
use super::guard::require_user;
use super::response::{error_response, json_response};
use crate::ledger::LedgerReader;
use crate::ledger::report::{Report, ReportError, ReportQuery};
use crate::status::{Status, StatusRegistry};

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
pub(super) fn router(registry: Arc<StatusRegistry>, ledger: Arc<dyn LedgerReader>) -> OpenApiRouter {
    let personal = journal::router(Arc::clone(&ledger))
        .merge(dead_letters::router(Arc::clone(&ledger)))
        .merge(orders::router(Arc::clone(&ledger)))
        .layer(from_fn(require_user));
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(report))
        .with_state(ApiDeps { registry, ledger, reports: Arc::new(Semaphore::new(MAX_REPORTS)) })
        .merge(personal)
}

/// The status of the daemon, and of the broker as it was last reported
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, description = "The status", body = Status), AnyError, NoBody))]
async fn status(State(api): State<ApiDeps>) -> Response {
    json_response(StatusCode::OK, &api.registry.snapshot().status)
}

/// Orders and revenue over time
#[utoipa::path(
    get,
    path = "/api/v1/report",
    params(ReportQuery),
    responses((status = 200, description = "The report", body = Report), AnyError, ReadError)
)]
async fn report(State(api): State<ApiDeps>, Parameters(query): Parameters<ReportQuery>) -> Response {
    let permit = api.reports.acquire_owned().await.expect("this semaphore is never closed");
    let read = tokio::spawn(async move {
        // Held until the report is read, even if the request was dropped.
        let _permit = permit;
        api.ledger.report(query, Timestamp::now()).await
    });
    match read.await {
        Ok(Ok(report)) => json_response(StatusCode::OK, &report),
        Ok(Err(ReportError::Ledger(error))) => unreadable(&error),
        Ok(Err(error)) => QueryError(error.to_string()).into_response(),
        Err(panicked) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "panicked", &panicked.to_string()),
    }
}
