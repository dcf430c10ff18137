//! `GET /api/v1/dead-letters…`: the store of dead letters, by pages, groups, one by one, and as a whole.
//!
//! An export is read page by page while it is sent, so it takes little memory however many dead letters there are, and however large.

use std::future::ready;
use std::io::{self, Write};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream::{StreamExt, once, unfold};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::openapi::RefOr;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::{AnyError, ApiError, ReadError};
use super::query::{Parameters, PathParameter, QueryError, limit_up_to, page_limit, unreadable};
use crate::admin::content_budget::{ContentBudget, HeldBudget};
use crate::admin::progress::Progress;
use crate::admin::response::{error_response, json_response};
use crate::admin::streamed_json::{PartWriter, answer_in_parts, streamed_json, written_parts};
use crate::dead_letters::WholeLetter;
use crate::domain::ExactSum;
use crate::ledger::report::PointInTime;
use crate::ledger::{
    DeadLetter, DeadLetterDetail, DeadLetterFilter, DeadLetterGroups, DeadLetterQuery, LedgerReader, LetterSource,
    LetterState, OpenError,
};

/// Most groups in an answer: as many as the ledger keeps apart.
const MAX_GROUPS: usize = 10_000;
/// Exports at a time.
const MAX_EXPORTS: usize = 2;
/// Dead letters of an export that are read at a time.
const EXPORT_PAGE: usize = 500;
/// The bytes that their bodies take at most. A larger one is read alone.
const MAX_EXPORT_BYTES: usize = 4 << 20;
/// The parameters that only a list has.
const NOT_OF_GROUPS: &[&str] = &["before", "after"];
/// And those that an export does not have.
const NOT_OF_EXPORTS: &[&str] = &["before", "after", "limit"];

#[derive(Clone)]
struct LetterApi {
    ledger: Arc<dyn LedgerReader>,
    exports: Arc<Semaphore>,
    /// Limits the bodies that are being sent.
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
    /// Only those that contain this text, in any case: in ids, products, codes, the failure's text and the beginning of the body, 2,000
    /// bytes together
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
    /// Only those with a lower number: `next` of the page before
    before: Option<i64>,
    /// Only those with a higher number, the oldest first: `next` of the page before. 0 begins with the first
    after: Option<i64>,
    /// How many at most, 50 by default: up to 1000 dead letters, or 10000 groups
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
}

fn state_schema() -> impl Into<RefOr<Schema>> {
    let states = LetterState::ALL.iter().map(|state| state.as_str()).chain(["any"]);
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(states))
}

/// The parameters of groups.
struct GroupParameters;

impl IntoParams for GroupParameters {
    fn into_params(place: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        without(LetterParameters::into_params(place), NOT_OF_GROUPS)
    }
}

/// The parameters of an export.
struct ExportParameters;

impl IntoParams for ExportParameters {
    fn into_params(place: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        without(LetterParameters::into_params(place), NOT_OF_EXPORTS)
    }
}

fn without(mut parameters: Vec<Parameter>, names: &[&str]) -> Vec<Parameter> {
    parameters.retain(|parameter| !names.contains(&&*parameter.name));
    parameters
}

impl LetterParameters {
    /// Refuses parameters that this request does not have.
    fn refuse(&self, names: &[&str]) -> Result<(), QueryError> {
        let given =
            [("before", self.before.is_some()), ("after", self.after.is_some()), ("limit", self.limit.is_some())];
        match given.iter().find(|(name, is_given)| *is_given && names.contains(name)) {
            Some((name, _)) => Err(QueryError(format!("{name}: this request does not have this parameter"))),
            None => Ok(()),
        }
    }

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
    params(GroupParameters),
    responses((status = 200, description = "The groups, the largest first", body = DeadLetterGroups), AnyError, ReadError)
)]
async fn groups(
    State(api): State<LetterApi>,
    Parameters(parameters): Parameters<LetterParameters>,
) -> Result<Response, QueryError> {
    parameters.refuse(NOT_OF_GROUPS)?;
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

/// One more error of what sends a dead letter.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum LargeAnswerError {
    /// Too many requests are being answered, other large dead letters are being sent, or the answer takes too long:
    /// `too_many_requests`, `too_many_large_answers`, `answer_timeout`.
    #[response(status = 503)]
    Unavailable(ApiError),
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
        ReadError,
        LargeAnswerError
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
    let Some(held) = api.budget.hold(bytes).await else { return no_room() };
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

fn no_room() -> Response {
    let message = "other large dead letters are being sent; try again later";
    error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_large_answers", message)
}

/// Whole dead letters, the oldest first, one JSON object per line
///
/// If the ledger cannot be read any more while they are sent, or other large dead letters leave no room for one of a megabyte or more within a
/// minute, the connection is closed before the end of the answer.
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/export",
    params(ExportParameters),
    responses(
        (status = 200, description = "The dead letters", body = WholeLetter, content_type = "application/x-ndjson"),
        AnyError,
        ReadError,
        (
            status = 503,
            body = ApiError,
            description = "Two exports are being sent, too many requests are being answered, other large dead letters are being sent, or the \
                answer takes too long to begin: `too_many_exports`, `too_many_requests`, `too_many_large_answers`, `answer_timeout`"
        )
    )
)]
async fn export(
    State(api): State<LetterApi>,
    Parameters(parameters): Parameters<LetterParameters>,
    request: Request,
) -> Result<Response, QueryError> {
    parameters.refuse(NOT_OF_EXPORTS)?;
    let filter = parameters.filter(Timestamp::now())?;
    let Ok(permit) = api.exports.try_acquire_owned() else {
        let message = format!("{MAX_EXPORTS} exports are in progress; try again later");
        return Ok(error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_exports", &message));
    };
    let mut export = Export { ledger: api.ledger, budget: api.budget.clone(), filter, after: Some(0), _permit: permit };
    // An error at the beginning is one that the client can read.
    let first = match export.next_bytes().await {
        Ok(None) => ExportPage::default(),
        Ok(Some(bytes)) => {
            let Some(held) = api.budget.hold(bytes).await else { return Ok(no_room()) };
            match export.read_page(held).await {
                Ok(first) => first,
                Err(error) => return Ok(unreadable(&error)),
            }
        }
        Err(error) => return Ok(unreadable(&error)),
    };
    let rest = unfold(export, |mut export| async {
        export.after?;
        Some((export.next_page().await, export))
    });
    let parts = once(ready(Ok(first))).chain(rest).flat_map(|page| match page {
        Ok(page) => written_parts(move |writer| page.write(writer)).left_stream(),
        Err(error) => once(ready(Err(io::Error::other(error)))).right_stream(),
    });
    let progress = request.extensions().get::<Progress>().cloned();
    Ok(answer_in_parts("application/x-ndjson", parts, progress))
}

/// An export that is being sent.
struct Export {
    ledger: Arc<dyn LedgerReader>,
    budget: ContentBudget,
    filter: DeadLetterFilter,
    /// The number after which the next page begins; `None` after the last page.
    after: Option<i64>,
    _permit: OwnedSemaphorePermit,
}

/// A page of an export.
#[derive(Default)]
struct ExportPage {
    letters: Vec<DeadLetterDetail>,
    /// Held until all of it is written.
    held: Option<HeldBudget>,
}

impl ExportPage {
    /// Writes its lines. A letter that is written is dropped.
    fn write(self, writer: &mut PartWriter) -> io::Result<()> {
        for detail in self.letters {
            serde_json::to_writer(&mut *writer, &WholeLetter::from(detail))?;
            writer.write_all(b"\n")?;
        }
        drop(self.held);
        Ok(())
    }
}

impl Export {
    fn query(&self, limit: usize) -> DeadLetterQuery {
        DeadLetterQuery { filter: self.filter.clone(), before: None, after: self.after, limit }
    }

    /// How many bytes the body has with which the next page begins. `None`: there are no more.
    async fn next_bytes(&mut self) -> Result<Option<u64>, OpenError> {
        let next = self.ledger.dead_letters(self.query(1)).await?.letters.pop();
        // The page need not search for it again.
        self.after = next.as_ref().map(|letter| letter.id - 1);
        Ok(next.map(|letter| letter.bytes))
    }

    /// Reads the next page. `held` is for the body with which it begins.
    async fn read_page(&mut self, held: HeldBudget) -> Result<ExportPage, OpenError> {
        let page = self.ledger.whole_dead_letters(self.query(EXPORT_PAGE), MAX_EXPORT_BYTES).await?;
        self.after = page.letters.last().map(|detail| detail.letter.id).filter(|_| page.more);
        Ok(ExportPage { letters: page.letters, held: Some(held) })
    }

    /// The next page, once there is room for it.
    async fn next_page(&mut self) -> Result<ExportPage, OpenError> {
        let Some(bytes) = self.next_bytes().await? else { return Ok(ExportPage::default()) };
        let held = self.budget.wait(bytes).await;
        self.read_page(held).await
    }
}
