//! What is done with stored dead letters over HTTP: replays, hold, release, discard, edit.
//!
//! It reads requests and writes answers. The desk decides and records.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::commands::reject_cross_site;
use super::document::{AnyError, ApiError};
use crate::admin::access::Actor;
use crate::admin::body::read_json;
use crate::admin::guard::require_user;
use crate::admin::response::{error_response, json_response};
use crate::chain::chain;
use crate::dead_letters::{
    ChangedLetters, Desk, DeskError, DeskHandle, EditRequest, LetterRequest, ReplayPlan, ReplayReport, ReplayRequest,
};
use crate::ledger::{LetterChange, Replay};

/// Largest body of a request, in bytes: 10,000 numbers of dead letters and more.
const MAX_REQUEST: usize = 256 << 10;
/// Largest body of a request that contains a message, in bytes.
const MAX_EDIT: usize = 24 << 20;

/// The routes.
pub(in crate::admin) fn router(desk: DeskHandle) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(replays, start))
        .routes(routes!(replay))
        .routes(routes!(stop))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(discard))
        .routes(routes!(edit))
        .layer(from_fn(reject_cross_site))
        .layer(from_fn(require_user))
        .with_state(desk)
}

/// The latest replays.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ReplayList {
    /// The last one first.
    replays: Vec<Replay>,
}

/// What would happen, or has begun.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ReplayAnswer {
    /// With `dry_run`.
    Plan(ReplayPlan),
    /// Without.
    Report(Box<ReplayReport>),
}

/// An edited dead letter.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct EditedLetter {
    /// Its number.
    id: i64,
    /// The revision that is valid now.
    revision: i64,
}

/// The errors of the desk.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum DeskRefusal {
    /// The request makes no sense: `invalid`, `body`, `body_base64`.
    #[response(status = 400)]
    Invalid(ApiError),
    /// The sender is a viewer, or a web page of another site: `not_operator`, `cross_site`, `foreign_origin`.
    #[response(status = 403)]
    NotOperator(ApiError),
    /// There is no such replay or dead letter: `missing`.
    #[response(status = 404)]
    Missing(ApiError),
    /// What it is about has changed, or does not allow it: `conflict`.
    #[response(status = 409)]
    Conflict(ApiError),
    /// The body has not arrived in time: `body_timeout`.
    #[response(status = 408)]
    Late(ApiError),
    /// The body is too large: `body_too_large`.
    #[response(status = 413)]
    TooLarge(ApiError),
    /// The header `Content-Type: application/json` is missing: `content_type`.
    #[response(status = 415)]
    ContentType(ApiError),
}

/// The latest replays
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/replays",
    responses((status = 200, body = ReplayList), AnyError, DeskRefusal)
)]
async fn replays(State(desk): State<DeskHandle>) -> Response {
    respond(async { Ok(json!({"replays": opened(&desk)?.replays().await.map_err(failure)?})) }).await
}

/// How far a replay is
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/replays/{id}",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, body = ReplayReport), AnyError, DeskRefusal)
)]
async fn replay(State(desk): State<DeskHandle>, Path(id): Path<i64>) -> Response {
    respond(async { opened(&desk)?.replay(id).await.map_err(failure) }).await
}

/// Start a replay of dead letters, or say what it would do
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/replays",
    request_body = ReplayRequest,
    responses((status = 200, body = ReplayAnswer), AnyError, DeskRefusal)
)]
async fn start(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    let answer = async {
        let (desk, request) = (opened(&desk)?, read::<ReplayRequest>(request, MAX_REQUEST).await?);
        if request.dry_run {
            let plan = desk.plan(&request).await.map_err(failure)?;
            return Ok(json_response(StatusCode::OK, &plan));
        }
        let report = desk.start(request, actor.name).await.map_err(failure)?;
        Ok(json_response(StatusCode::OK, &report))
    };
    answer.await.unwrap_or_else(|rejected: Box<Response>| *rejected)
}

/// Stop a replay: what is not published is open again
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/replays/{id}/stop",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, body = ReplayReport), AnyError, DeskRefusal)
)]
async fn stop(State(desk): State<DeskHandle>, Path(id): Path<i64>, Extension(actor): Extension<Actor>) -> Response {
    respond(async { opened(&desk)?.stop(id, actor.name).await.map_err(failure) }).await
}

/// Put dead letters aside with a note: no replay takes them
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/hold",
    request_body = LetterRequest,
    responses((status = 200, body = ChangedLetters), AnyError, DeskRefusal)
)]
async fn hold(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    change(desk, actor, request, |note| LetterChange::Hold { note }).await
}

/// Open dead letters again that were put aside
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/release",
    request_body = LetterRequest,
    responses((status = 200, body = ChangedLetters), AnyError, DeskRefusal)
)]
async fn release(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    change(desk, actor, request, |_| LetterChange::Release).await
}

/// Close dead letters that are not needed, with a reason
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/discard",
    request_body = LetterRequest,
    responses((status = 200, body = ChangedLetters), AnyError, DeskRefusal)
)]
async fn discard(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    change(desk, actor, request, |reason| LetterChange::Discard { reason }).await
}

async fn change(
    desk: DeskHandle,
    actor: Actor,
    request: Request,
    change: impl FnOnce(String) -> LetterChange,
) -> Response {
    respond(async {
        let (desk, request) = (opened(&desk)?, read::<LetterRequest>(request, MAX_REQUEST).await?);
        let LetterRequest { selection, note } = request;
        desk.change_letters(selection, change(note), actor.name).await.map_err(failure)
    })
    .await
}

/// Replace the body of a dead letter; the original is kept
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/{id}/edit",
    params(("id" = i64, Path, description = "Its number")),
    request_body = EditRequest,
    responses((status = 200, body = EditedLetter), AnyError, DeskRefusal)
)]
async fn edit(
    State(desk): State<DeskHandle>,
    Path(id): Path<i64>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    respond(async {
        let (desk, request) = (opened(&desk)?, read::<EditRequest>(request, MAX_EDIT).await?);
        let EditRequest { revision, body_base64 } = request;
        let body = STANDARD.decode(body_base64).map_err(|error| {
            Box::new(error_response(StatusCode::BAD_REQUEST, "body_base64", &format!("is not Base64: {error}")))
        })?;
        desk.edit(id, revision, body, actor.name).await.map_err(failure)?;
        Ok(json!({"id": id, "revision": revision + 1}))
    })
    .await
}

async fn respond<T: serde::Serialize>(answer: impl Future<Output = Result<T, Box<Response>>>) -> Response {
    match answer.await {
        Ok(answer) => json_response(StatusCode::OK, &answer),
        Err(rejected) => *rejected,
    }
}

fn opened(desk: &DeskHandle) -> Result<Desk, Box<Response>> {
    let starting =
        || Box::new(error_response(StatusCode::SERVICE_UNAVAILABLE, "not_running", "orderd is starting; try again"));
    desk.get().ok_or_else(starting)
}

async fn read<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, Box<Response>> {
    let read = read_json(request, limit).await;
    read.map(|(_, value)| value).map_err(|error| Box::new(error.into_response()))
}

fn failure(error: DeskError) -> Box<Response> {
    let (status, code) = match &error {
        DeskError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
        DeskError::Missing(_) => (StatusCode::NOT_FOUND, "missing"),
        DeskError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
        DeskError::DiskSpace => (StatusCode::SERVICE_UNAVAILABLE, "disk_space"),
        DeskError::Ledger(_) | DeskError::Read(_) => (StatusCode::SERVICE_UNAVAILABLE, "ledger"),
    };
    Box::new(error_response(status, code, &chain(&error)))
}
