//! `GET /api/v1/dead-letters…`: the store of dead letters, by pages, groups, one by one, and as a whole.
//!
//! An export is read page by page while it is sent, so it takes little memory however many dead letters there are.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{StreamExt, iter, unfold};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::{AnyError, ApiError, ReadError};
use super::query::{Parameters, PathParameter, QueryError, limit_up_to, page_limit, unreadable};
use crate::admin::content_budget::ContentBudget;
use crate::admin::progress::Progress;
use crate::admin::response::{content_type, error_response, json_response};
use crate::admin::streamed_json::streamed_json;
use crate::dead_letters::WholeLetter;
use crate::domain::ExactSum;
use crate::escape::json_escaped;
use crate::ledger::report::PointInTime;
use crate::ledger::{
    DeadLetter, DeadLetterFilter, DeadLetterGroups, DeadLetterQuery, LedgerReader, LetterSource, LetterState,
    OpenError, WholeDeadLetters,
};

/// Most groups in an answer: as many as the ledger keeps apart.
const MAX_GROUPS: usize = 10_000;
/// Exports at a time.
const MAX_EXPORTS: usize = 2;
/// Dead letters of an export that are read at a time.
const EXPORT_PAGE: usize = 500;
/// The bytes that their bodies take at most, and those of one more.
const MAX_EXPORT_BYTES: usize = 4 << 20;
/// The largest part of an export that is sent at once; a client has some seconds to receive each.
const MAX_PART: usize = 64 << 10;

#[derive(Clone)]
struct LetterApi {
    ledger: Arc<dyn LedgerReader>,
    exports: Arc<Semaphore>,
    /// Limits the bodies of single letters that are being sent.
    budget: ContentBudget,
}

/// The routes.
pub(super) fn router(ledger: Arc<dyn LedgerReader>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(groups))
        .routes(routes!(export))
        .routes(routes!(show))
        .with_state(LetterApi {
            ledger,
            exports: Arc::new(Semaphore::new(MAX_EXPORTS)),
            budget: ContentBudget::default(),
        })
}

/// Which dead letters. Every parameter is optional.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct LetterParameters {
    /// Only those in this state, or in `any`; `open` by default
    #[param(schema_with = state_schema)]
    state: Option<String>,
    /// Only those taken from this queue
    source: Option<LetterSource>,
    /// Only those with this reason
    reason: Option<String>,
    /// Only those with this failure code
    code: Option<String>,
    /// Only those that failed in this consumer
    consumer: Option<String>,
    /// Only orders with a line for this product
    product: Option<String>,
    /// Only orders of the customer with this id
    customer: Option<String>,
    /// Only the order with this id, and what is about it
    order: Option<String>,
    /// Only those that failed at this time or later: an age such as 24h or 7d, a date, or a time
    #[param(value_type = Option<String>)]
    since: Option<PointInTime>,
    /// Only those that failed before this time
    #[param(value_type = Option<String>)]
    until: Option<PointInTime>,
    /// Only those that contain this text
    text: Option<String>,
    /// Only those that failed after at least this many delayed retries
    min_retries: Option<u32>,
    /// Only orders in this currency, such as EUR
    currency: Option<String>,
    /// Only orders that cost this much or more, in whatever currency unless one is given
    #[param(value_type = Option<String>)]
    min_total: Option<ExactSum>,
    /// Only those that were last published with this routing key
    routing_key: Option<String>,
    /// Only letters of this replay; `state` is `any` then by default
    replay: Option<i64>,
    /// Only those with a lower number: `next` of the page before. Only for a list
    before: Option<i64>,
    /// Only those with a higher number, the oldest first: `next` of the page before. Only for a list; 0 begins with the first
    after: Option<i64>,
    /// How many at most, 50 by default: up to 1000 dead letters, or 10000 groups. Not for an export
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
}

fn state_schema() -> impl Into<RefOr<Schema>> {
    let states = LetterState::ALL.iter().map(|state| state.as_str()).chain(["any"]);
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(states))
}

impl LetterParameters {
    fn filter(&self, now: Timestamp) -> Result<DeadLetterFilter, QueryError> {
        let default = if self.replay.is_some() { "any" } else { LetterState::Open.as_str() };
        let state = self.state.as_deref().unwrap_or(default);
        let states = match (state, LetterState::parse(state)) {
            (_, Some(state)) => vec![state],
            ("any", None) => Vec::new(),
            (_, None) => return Err(QueryError(format!("state: unknown state {state:?}"))),
        };
        let LetterParameters { reason, code, consumer, product, customer, order, text, currency, routing_key, .. } =
            self;
        Ok(DeadLetterFilter {
            states,
            source: self.source,
            reason: reason.clone(),
            code: code.clone(),
            consumer: consumer.clone(),
            product: product.clone(),
            customer: customer.clone(),
            order: order.clone(),
            since: self.since.map(|since| since.at(now)),
            until: self.until.map(|until| until.at(now)),
            text: text.clone(),
            min_retries: self.min_retries,
            currency: currency.clone(),
            min_total: self.min_total,
            routing_key: routing_key.clone(),
            replay: self.replay,
        })
    }
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
struct LetterList {
    /// The dead letters, the latest first (with `after`: the oldest first), without their contents.
    dead_letters: Vec<DeadLetter>,
    /// `before` of the next page, or `after` if that was given; null if this is the last.
    next: Option<i64>,
}

/// A page of the stored dead letters, the latest first
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters",
    params(LetterParameters),
    responses((status = 200, description = "A page of dead letters", body = LetterList), AnyError, ReadError)
)]
async fn list(
    State(api): State<LetterApi>,
    Parameters(parameters): Parameters<LetterParameters>,
) -> Result<Response, QueryError> {
    let (filter, limit) = (parameters.filter(Timestamp::now())?, page_limit(parameters.limit)?);
    let (before, after) = (parameters.before, parameters.after);
    if before.is_some() && after.is_some() {
        return Err(QueryError("before, after: only one of them can be given".to_owned()));
    }
    let query = DeadLetterQuery { filter, before, after, limit };
    Ok(match api.ledger.dead_letters(query).await {
        Ok(page) => {
            let next = page.letters.last().map(|letter| letter.id).filter(|_| page.more);
            json_response(StatusCode::OK, &LetterList { dead_letters: page.letters, next })
        }
        Err(error) => unreadable(&error),
    })
}

/// The stored dead letters by cause: count, oldest and newest, money at stake, one example
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/groups",
    params(LetterParameters),
    responses((status = 200, description = "The groups, the largest first", body = DeadLetterGroups), AnyError, ReadError)
)]
async fn groups(
    State(api): State<LetterApi>,
    Parameters(parameters): Parameters<LetterParameters>,
) -> Result<Response, QueryError> {
    let filter = parameters.filter(Timestamp::now())?;
    let limit = limit_up_to(parameters.limit, MAX_GROUPS)?;
    Ok(match api.ledger.dead_letter_groups(filter).await {
        Ok(mut found) => {
            found.shorten(limit);
            json_response(StatusCode::OK, &found)
        }
        Err(error) => unreadable(&error),
    })
}

/// Which content.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct RevisionParameters {
    /// The content in this revision, 0: as it came; the last one by default
    revision: Option<i64>,
}

/// One dead letter: body, headers, and each attempt and step
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/{id}",
    params(("id" = i64, Path, description = "Its number"), RevisionParameters),
    responses(
        (status = 200, description = "The dead letter", body = WholeLetter),
        (status = 404, body = ApiError, description = "There is none with this number, or no such revision: `unknown_dead_letter`"),
        AnyError,
        ReadError
    )
)]
async fn show(
    State(api): State<LetterApi>,
    PathParameter(id): PathParameter<i64>,
    Parameters(RevisionParameters { revision }): Parameters<RevisionParameters>,
    request: Request,
) -> Response {
    let unknown = || {
        let which = revision.map_or_else(String::new, |revision| format!(" with revision {revision}"));
        error_response(StatusCode::NOT_FOUND, "unknown_dead_letter", &format!("there is no dead letter {id}{which}"))
    };
    let bytes = match api.ledger.dead_letter_bytes(id, revision).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return unknown(),
        Err(error) => return unreadable(&error),
    };
    let Some(held) = api.budget.hold(bytes).await else {
        let message = "other large dead letters are being sent; try again later";
        return error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_large_answers", message);
    };
    // The budget is held until the letter is read, even if the request was dropped.
    let read = tokio::spawn(async move { (api.ledger.dead_letter_revision(id, revision).await, held) });
    let progress = request.extensions().get::<Progress>().cloned();
    match read.await {
        Ok((Ok(Some(detail)), held)) => streamed_json(move || WholeLetter::from(detail), held, progress),
        Ok((Ok(None), _)) => unknown(),
        Ok((Err(error), _)) => unreadable(&error),
        Err(panicked) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "panicked", &panicked.to_string()),
    }
}

/// Whole dead letters, the oldest first, one JSON object per line
///
/// If the ledger cannot be read any more while they are sent, the connection is closed before the end of the answer.
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/export",
    params(LetterParameters),
    responses(
        (status = 200, description = "The dead letters", body = WholeLetter, content_type = "application/x-ndjson"),
        AnyError,
        ReadError,
        (
            status = 503,
            body = ApiError,
            description = "Two exports are being sent, too many requests are being answered, or the answer takes too long to begin: \
                `too_many_exports`, `too_many_requests`, `answer_timeout`"
        )
    )
)]
async fn export(
    State(api): State<LetterApi>,
    Parameters(parameters): Parameters<LetterParameters>,
    request: Request,
) -> Result<Response, QueryError> {
    let filter = parameters.filter(Timestamp::now())?;
    let Ok(permit) = api.exports.try_acquire_owned() else {
        let message = format!("{MAX_EXPORTS} exports are in progress; try again later");
        return Ok(error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_exports", &message));
    };
    let mut export = Export { ledger: api.ledger, filter, after: Some(0), _permit: permit };
    // An error at the beginning is one that the client can read.
    let first = match export.next_page().await {
        Ok(first) => first,
        Err(error) => return Ok(unreadable(&error)),
    };
    let rest = unfold(export, |mut export| async {
        export.after?;
        Some((export.next_page().await, export))
    });
    let progress = request.extensions().get::<Progress>().cloned();
    let parts = iter([Ok(first)]).chain(rest).flat_map(|page| match page {
        Ok(page) => iter(parts(page).into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => iter(vec![Err(error)]),
    });
    let parts = parts.inspect(move |_| progress.iter().for_each(Progress::advanced));
    Ok((StatusCode::OK, content_type("application/x-ndjson"), Body::from_stream(parts)).into_response())
}

/// A page in parts that a slow client can receive.
fn parts(mut page: Bytes) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(page.len() / MAX_PART + 1);
    while !page.is_empty() {
        parts.push(page.split_to(MAX_PART.min(page.len())));
    }
    parts
}

/// An export that is being sent.
struct Export {
    ledger: Arc<dyn LedgerReader>,
    filter: DeadLetterFilter,
    /// The number after which the next page begins; `None` after the last page.
    after: Option<i64>,
    _permit: OwnedSemaphorePermit,
}

impl Export {
    /// The lines of the next page.
    async fn next_page(&mut self) -> Result<Bytes, OpenError> {
        let query =
            DeadLetterQuery { filter: self.filter.clone(), before: None, after: self.after, limit: EXPORT_PAGE };
        let WholeDeadLetters { letters, more } = self.ledger.whole_dead_letters(query, MAX_EXPORT_BYTES).await?;
        self.after = letters.last().map(|detail| detail.letter.id).filter(|_| more);
        let mut lines = String::new();
        for detail in letters {
            let line = serde_json::to_string(&WholeLetter::from(detail));
            lines.push_str(&json_escaped(&line.expect("a dead letter is text, numbers and maps with text keys")));
            lines.push('\n');
        }
        Ok(Bytes::from(lines))
    }
}
