//! `GET /api/v1/journal`: who did what, page by page.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;

use super::ApiDeps;
use crate::admin::response::{error_response, json_response};
use crate::chain::chain;
use crate::ledger::report::PointInTime;
use crate::ledger::{JournalFilter, JournalQuery};

/// Entries in a page, unless the request says how many.
const DEFAULT_LIMIT: usize = 50;
/// Most entries in a page.
const MAX_LIMIT: usize = 1_000;

/// The query. Every field is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct JournalParameters {
    since: Option<PointInTime>,
    until: Option<PointInTime>,
    actor: Option<String>,
    action: Option<String>,
    before: Option<i64>,
    limit: Option<usize>,
}

pub(super) async fn journal(
    State(api): State<ApiDeps>,
    query: Result<Query<JournalParameters>, QueryRejection>,
) -> Response {
    let JournalParameters { since, until, actor, action, before, limit } = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return error_response(StatusCode::BAD_REQUEST, "query", &rejection.body_text()),
    };
    let now = Timestamp::now();
    let filter = JournalFilter {
        since: since.map(|since| since.at(now)),
        until: until.map(|until| until.at(now)),
        actor,
        action,
    };
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let message = format!("limit: must be from 1 to {MAX_LIMIT}, is {limit}");
        return error_response(StatusCode::BAD_REQUEST, "query", &message);
    }
    match api.ledger.journal(JournalQuery { filter, before, limit }).await {
        Ok(page) => json_response(StatusCode::OK, &page),
        Err(error) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "ledger", &chain(&error)),
    }
}
