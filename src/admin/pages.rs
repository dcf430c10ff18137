//! The pages: what each path answers.
//!
//! It decides nothing about who may ask, and nothing here waits for the broker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, RawQuery, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;

use super::commands;
use super::guard::{Guard, guard};
use super::metrics;
use crate::chain::chain;
use crate::control::Control;
use crate::ledger::report;
use crate::status::ReadinessCheck;
use crate::status::StatusRegistry;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Reports that are read at a time; others wait.
const REPORTS: usize = 1;

/// What the pages are made from.
#[derive(Clone)]
pub(super) struct Pages {
    pub live: Arc<StatusRegistry>,
    /// Where the ledger is.
    pub ledger: PathBuf,
    /// The way to whoever obeys.
    pub control: Control,
    reports: Arc<Semaphore>,
}

impl Pages {
    pub(super) fn new(live: Arc<StatusRegistry>, ledger: PathBuf, control: Control) -> Self {
        Pages { live, ledger, control, reports: Arc::new(Semaphore::new(REPORTS)) }
    }

    /// All paths, guarded and bounded in time.
    pub(super) fn router(self, who: Arc<Guard>) -> Router {
        let commands = commands::router(self.control.clone());
        Router::new()
            .route("/", get(index))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_page))
            .route("/api/v1/status", get(status))
            .route("/api/v1/report", get(report_page))
            .with_state(self)
            .layer(from_fn(in_time))
            .merge(commands)
            .layer(from_fn_with_state(who, guard))
            .layer(from_fn(labelled))
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await;
    answer
        .unwrap_or_else(|_| (StatusCode::SERVICE_UNAVAILABLE, "the answer took too long; try again\n").into_response())
}

async fn labelled(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

async fn index() -> &'static str {
    concat!(
        "orderd ",
        env!("CARGO_PKG_VERSION"),
        "\n/livez\n/readyz\n/readyz?verbose\n/metrics\n/api/v1/status\n/api/v1/report?since=7d&until=now&by=day\n",
        "POST /api/v1/reload\nPOST /api/v1/consumers/<name>/pause\nPOST /api/v1/consumers/<name>/resume\n"
    )
}

/// That this is answered at all says that tasks get their turn; that nobody is stuck is the judgement that the service
/// manager's watchdog goes by.
async fn livez(State(pages): State<Pages>) -> Response {
    let stuck = pages.live.stuck();
    if stuck.is_empty() {
        return "ok\n".into_response();
    }
    let text: String = stuck.iter().map(|who| format!("{who}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn readyz(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    let checks = pages.live.snapshot().status.checks;
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::new();
    if query.is_some_and(|query| query.split('&').any(|key| key == "verbose" || key.starts_with("verbose="))) {
        let line = |ReadinessCheck { name, ok, detail }: &ReadinessCheck| {
            format!("[{}] {name}: {detail}\n", if *ok { '+' } else { '-' })
        };
        text.extend(checks.iter().map(line));
    }
    text.push_str(if ready { "ready\n" } else { "not ready\n" });
    (status, text).into_response()
}

async fn metrics_page(State(pages): State<Pages>) -> impl IntoResponse {
    (typed(metrics::CONTENT_TYPE), metrics::exposition(&pages.live))
}

async fn status(State(pages): State<Pages>) -> Response {
    as_json(StatusCode::OK, &pages.live.snapshot().status)
}

async fn report_page(State(pages): State<Pages>, query: Result<Query<report::Query>, QueryRejection>) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(wrong) => return as_json(StatusCode::BAD_REQUEST, &json!({"error": wrong.body_text()})),
    };
    let permit = pages.reports.acquire_owned().await.expect("this semaphore is never closed");
    let read = tokio::task::spawn_blocking(move || {
        // Kept until it is read, even if nobody waits for it any more.
        let _permit = permit;
        report::read(&pages.ledger, &query, Timestamp::now())
    });
    match read.await {
        Ok(Ok(report)) => as_json(StatusCode::OK, &report),
        Ok(Err(error)) => {
            let status = if error.is_question() { StatusCode::BAD_REQUEST } else { StatusCode::INTERNAL_SERVER_ERROR };
            as_json(status, &json!({"error": chain(&error)}))
        }
        Err(died) => as_json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": died.to_string()})),
    }
}

fn typed(value: &'static str) -> [(HeaderName, &'static str); 1] {
    [(CONTENT_TYPE, value)]
}

pub(super) fn as_json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("statuses and reports are text, numbers and maps with text for keys");
    (status, typed("application/json"), body).into_response()
}
