//! `GET /api/v1/journal`: who did what, page by page.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::{AnyError, ReadError};
use super::query::{Parameters, QueryError, page_limit, unreadable};
use crate::admin::response::json_response;
use crate::ledger::report::PointInTime;
use crate::ledger::{JournalAction, JournalFilter, JournalPage, JournalQuery, LedgerReader};

/// The routes.
pub(super) fn router(ledger: Arc<dyn LedgerReader>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(journal)).with_state(ledger)
}

/// Which entries. Every parameter is optional.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct JournalParameters {
    /// Only entries at this time or later: an age such as 24h or 7d, a date, or a time
    #[param(value_type = Option<String>)]
    since: Option<PointInTime>,
    /// Only entries before this time
    #[param(value_type = Option<String>)]
    until: Option<PointInTime>,
    /// Only entries with exactly this actor
    actor: Option<String>,
    /// Only entries with exactly this action
    #[param(schema_with = action_schema)]
    action: Option<String>,
    /// Only entries with a lower number: `next` of the page before
    before: Option<i64>,
    /// How many at most, up to 1000; 50 by default
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<usize>,
}

fn action_schema() -> impl Into<RefOr<Schema>> {
    let actions = JournalAction::ALL.iter().map(|action| action.as_str());
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(actions))
}

/// A page of the journal, the latest entries first
#[utoipa::path(
    get,
    path = "/api/v1/journal",
    params(JournalParameters),
    responses((status = 200, description = "A page of entries", body = JournalPage), AnyError, ReadError)
)]
async fn journal(
    State(ledger): State<Arc<dyn LedgerReader>>,
    Parameters(parameters): Parameters<JournalParameters>,
) -> Result<Response, QueryError> {
    let JournalParameters { since, until, actor, action, before, limit } = parameters;
    let is_known = |action: &String| JournalAction::ALL.iter().any(|known| known.as_str() == action);
    if let Some(unknown) = action.as_ref().filter(|action| !is_known(action)) {
        let known: Vec<&str> = JournalAction::ALL.iter().map(|action| action.as_str()).collect();
        return Err(QueryError(format!("action: unknown action {unknown:?}; actions: {}", known.join(", "))));
    }
    let now = Timestamp::now();
    let filter = JournalFilter {
        since: since.map(|since| since.at(now)),
        until: until.map(|until| until.at(now)),
        actor,
        action,
    };
    Ok(match ledger.journal(JournalQuery { filter, before, limit: page_limit(limit)? }).await {
        Ok(page) => json_response(StatusCode::OK, &page),
        Err(error) => unreadable(&error),
    })
}
