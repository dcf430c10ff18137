//! What is done with stored dead letters over HTTP: replays, hold, release, discard, edit.
//!
//! It reads requests and writes answers. `LetterActions` decides and records.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::commands::reject_cross_site;
use super::document::{AnyError, ApiError};
use super::query::{Parameters, PathParameter, page_limit};
use crate::admin::access::Actor;
use crate::admin::body::read_json;
use crate::admin::guard::require_user;
use crate::admin::progress::Progress;
use crate::admin::response::{error_response, json_response};
use crate::admin::streamed_json::streamed_json;
use crate::chain::chain;
use crate::dead_letters::{
    ActionError, ChangedLetters, EditDraft, EditRequest, EditedLetter, LetterActions, LetterActionsHandle,
    LetterChangeKind, LetterRequest, ListedReplay, NewBody, ReplayLetters, ReplayPlan, ReplayReport, ReplayRequest,
};
use crate::ledger::LetterProgress;

/// Largest body of a request, in bytes: 10,000 numbers of dead letters and more.
const MAX_REQUEST: usize = 256 << 10;
/// Largest body of a request that contains a message, in bytes.
const MAX_EDIT: usize = 24 << 20;
/// Edits at a time, with the bodies that are sent to be edited.
const MAX_EDITS: usize = 2;
/// How long an edit waits for others to end.
const EDIT_WAIT: Duration = Duration::from_secs(5);

/// The routes.
pub(in crate::admin) fn router(actions: LetterActionsHandle) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(replays, start))
        .routes(routes!(replay))
        .routes(routes!(letters))
        .routes(routes!(stop))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(discard))
        .routes(routes!(edit))
        .layer(Extension(EditPermits(Arc::new(Semaphore::new(MAX_EDITS)))))
        .layer(from_fn(reject_cross_site))
        .layer(from_fn(require_user))
        .with_state(actions)
}

/// Limits the edits in progress.
#[derive(Clone)]
struct EditPermits(Arc<Semaphore>);

/// The latest replays.
#[derive(Serialize, ToSchema)]
struct ReplayList {
    /// The last one first.
    replays: Vec<ListedReplay>,
}

/// What would happen, or has begun.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ReplayAnswer {
    /// With `dry_run`.
    Plan(Box<ReplayPlan>),
    /// Without.
    Report(Box<ReplayReport>),
}

/// What can be edited, or was.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum EditAnswer {
    /// With `dry_run`.
    Draft(EditDraft),
    /// Without.
    Edited(EditedLetter),
}

/// Which letters of a replay.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct LettersQuery {
    /// Only those that are so far
    progress: Option<LetterProgress>,
    /// Only those with a higher number: `next` of the page before
    #[serde(default)]
    after: i64,
    /// How many at most, from 1 to 1000; 50 by default
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<usize>,
}

/// The errors of what reads replays.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum ReplayReadError {
    /// A parameter is wrong, in the path or the query: `query`. There is no valid Host header: `no_host`.
    #[response(status = 400)]
    Query(ApiError),
    /// A request that only reads must not have a body: `body`.
    #[response(status = 413)]
    Body(ApiError),
    /// The daemon is starting, the ledger cannot be read, too many requests are being answered, or the answer takes too long:
    /// `not_running`, `ledger`, `too_many_requests`, `answer_timeout`.
    #[response(status = 503)]
    Unavailable(ApiError),
}

/// The error of what is about one replay or dead letter.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum MissingError {
    /// There is no such replay or dead letter: `missing`.
    #[response(status = 404)]
    Missing(ApiError),
}

/// The errors of what changes something.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum ActingError {
    /// The request makes no sense: `invalid`, `body`, `body_base64`, `query` (a parameter in the path), `no_host`.
    #[response(status = 400)]
    Invalid(ApiError),
    /// The sender is a viewer, or a web page of another site: `not_operator`, `cross_site`, `foreign_origin`.
    #[response(status = 403)]
    NotOperator(ApiError),
    /// The header `Content-Type: application/json` is missing: `content_type`.
    #[response(status = 415)]
    ContentType(ApiError),
    /// The daemon is starting, the ledger cannot record or has no room left for this, too many requests are being answered, or
    /// the answer takes too long: `not_running`, `ledger`, `disk_space`, `too_many_requests`, `answer_timeout`.
    #[response(status = 503)]
    Unavailable(ApiError),
}

/// One more error of edits.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum EditError {
    /// The daemon is starting, the ledger cannot record or has no room left for this, too many requests are being answered, two
    /// other edits are in progress, or the answer takes too long: `not_running`, `ledger`, `disk_space`, `too_many_requests`,
    /// `too_many_edits`, `answer_timeout`.
    #[response(status = 503)]
    Unavailable(ApiError),
}

/// The errors of requests with a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum RequestBodyError {
    /// The body has not arrived in time: `body_timeout`.
    #[response(status = 408)]
    Late(ApiError),
    /// The body is too large: `body_too_large`.
    #[response(status = 413)]
    TooLarge(ApiError),
}

/// The error of what may contradict the present state.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum ConflictError {
    /// It has changed meanwhile, its state does not allow it, or too many replays run: `conflict`.
    #[response(status = 409)]
    Conflict(ApiError),
}

/// The latest replays
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/replays",
    responses((status = 200, description = "The latest replays", body = ReplayList), AnyError, ReplayReadError)
)]
async fn replays(State(actions): State<LetterActionsHandle>) -> Response {
    respond(async { Ok(ReplayList { replays: opened(&actions)?.replays().await.map_err(failure)? }) }).await
}

/// How far a replay is
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/replays/{id}",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, description = "The replay", body = ReplayReport), AnyError, ReplayReadError, MissingError)
)]
async fn replay(State(actions): State<LetterActionsHandle>, PathParameter(id): PathParameter<i64>) -> Response {
    respond(async { opened(&actions)?.replay(id).await.map_err(failure) }).await
}

/// The dead letters of a replay, by number, with their outcome
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/replays/{id}/letters",
    params(("id" = i64, Path, description = "Its number"), LettersQuery),
    responses((status = 200, description = "A page of its dead letters", body = ReplayLetters), AnyError, ReplayReadError, MissingError)
)]
async fn letters(
    State(actions): State<LetterActionsHandle>,
    PathParameter(id): PathParameter<i64>,
    Parameters(query): Parameters<LettersQuery>,
) -> Response {
    respond(async {
        let LettersQuery { progress, after, limit } = query;
        let limit = page_limit(limit).map_err(|error| Box::new(error.into_response()))?;
        opened(&actions)?.replay_letters(id, progress, after, limit).await.map_err(failure)
    })
    .await
}

/// Start a replay of dead letters, or say what it would do
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/replays",
    request_body = ReplayRequest,
    responses((status = 200, description = "The replay, or with `dry_run` what it would do", body = ReplayAnswer), AnyError, ActingError, RequestBodyError, ConflictError)
)]
async fn start(
    State(actions): State<LetterActionsHandle>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    respond(async {
        let (actions, request) = (opened(&actions)?, read::<ReplayRequest>(request, MAX_REQUEST).await?);
        Ok(if request.dry_run {
            ReplayAnswer::Plan(Box::new(actions.plan(&request).await.map_err(failure)?))
        } else {
            ReplayAnswer::Report(Box::new(actions.start(request, actor.name).await.map_err(failure)?))
        })
    })
    .await
}

/// Stop a replay: what is not published is open again
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/replays/{id}/stop",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, description = "The replay", body = ReplayReport), AnyError, ActingError, MissingError)
)]
async fn stop(
    State(actions): State<LetterActionsHandle>,
    PathParameter(id): PathParameter<i64>,
    Extension(actor): Extension<Actor>,
) -> Response {
    respond(async { opened(&actions)?.stop(id, actor.name).await.map_err(failure) }).await
}

/// Hold dead letters, with a note: replays leave them out
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/hold",
    request_body = LetterRequest,
    responses((status = 200, description = "What was changed, or with `dry_run` would be", body = ChangedLetters), AnyError, ActingError, RequestBodyError)
)]
async fn hold(
    State(actions): State<LetterActionsHandle>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    change(actions, actor, request, LetterChangeKind::Hold).await
}

/// Open held dead letters again
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/release",
    request_body = LetterRequest,
    responses((status = 200, description = "What was changed, or with `dry_run` would be", body = ChangedLetters), AnyError, ActingError, RequestBodyError)
)]
async fn release(
    State(actions): State<LetterActionsHandle>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    change(actions, actor, request, LetterChangeKind::Release).await
}

/// Discard dead letters that are not needed, with a note
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/discard",
    request_body = LetterRequest,
    responses((status = 200, description = "What was changed, or with `dry_run` would be", body = ChangedLetters), AnyError, ActingError, RequestBodyError)
)]
async fn discard(
    State(actions): State<LetterActionsHandle>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    change(actions, actor, request, LetterChangeKind::Discard).await
}

async fn change(actions: LetterActionsHandle, actor: Actor, request: Request, action: LetterChangeKind) -> Response {
    respond(async {
        let (actions, request) = (opened(&actions)?, read::<LetterRequest>(request, MAX_REQUEST).await?);
        actions.change_letters(action, request, actor.name).await.map_err(failure)
    })
    .await
}

/// Replace the body of a dead letter, the original is kept; or ask for the body to edit
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/{id}/edit",
    params(("id" = i64, Path, description = "Its number")),
    request_body = EditRequest,
    responses((status = 200, description = "The new revision, or with `dry_run` the body to edit", body = EditAnswer), AnyError, ActingError, EditError, RequestBodyError, MissingError, ConflictError)
)]
async fn edit(
    State(actions): State<LetterActionsHandle>,
    PathParameter(id): PathParameter<i64>,
    Extension(actor): Extension<Actor>,
    Extension(EditPermits(permits)): Extension<EditPermits>,
    request: Request,
) -> Response {
    let Ok(permit) = timeout(EDIT_WAIT, permits.acquire_owned()).await else {
        let message = format!("{MAX_EDITS} edits are in progress; try again later");
        return error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_edits", &message);
    };
    let progress = request.extensions().get::<Progress>().cloned();
    let edited = async {
        let (actions, request) = (opened(&actions)?, read::<EditRequest>(request, MAX_EDIT).await?);
        let new = match request {
            EditRequest { dry_run: true, revision: None, body_base64: None, change_order_id: false } => {
                return actions.draft(id).await.map(EditAnswer::Draft).map_err(failure);
            }
            EditRequest { dry_run: false, revision: Some(revision), body_base64: Some(body), change_order_id } => {
                let body = STANDARD.decode(body).map_err(|error| {
                    Box::new(error_response(StatusCode::BAD_REQUEST, "body_base64", &format!("is not Base64: {error}")))
                })?;
                NewBody { revision, body, change_order_id }
            }
            EditRequest { .. } => {
                let message = "an edit needs `revision` and `body_base64`, or `dry_run` alone";
                return Err(Box::new(error_response(StatusCode::BAD_REQUEST, "invalid", message)));
            }
        };
        actions.edit(id, new, actor.name).await.map(EditAnswer::Edited).map_err(failure)
    };
    match edited.await {
        Ok(answer) => streamed_json(move || answer, permit, progress),
        Err(rejected) => *rejected,
    }
}

async fn respond<T: serde::Serialize>(answer: impl Future<Output = Result<T, Box<Response>>>) -> Response {
    match answer.await {
        Ok(answer) => json_response(StatusCode::OK, &answer),
        Err(rejected) => *rejected,
    }
}

fn opened(actions: &LetterActionsHandle) -> Result<LetterActions, Box<Response>> {
    let starting =
        || Box::new(error_response(StatusCode::SERVICE_UNAVAILABLE, "not_running", "orderd is starting; try again"));
    actions.get().ok_or_else(starting)
}

async fn read<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, Box<Response>> {
    let read = read_json(request, limit).await;
    read.map(|(_, value)| value).map_err(|error| Box::new(error.into_response()))
}

fn failure(error: ActionError) -> Box<Response> {
    let (status, code) = match &error {
        ActionError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
        ActionError::Missing(_) => (StatusCode::NOT_FOUND, "missing"),
        ActionError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
        ActionError::DiskSpace => (StatusCode::SERVICE_UNAVAILABLE, "disk_space"),
        ActionError::Ledger(_) | ActionError::Read(_) => (StatusCode::SERVICE_UNAVAILABLE, "ledger"),
    };
    Box::new(error_response(status, code, &chain(&error)))
}
