//! What is done with stored dead letters over HTTP: replays, hold, release, discard, edit.
//!
//! It reads requests and writes answers. The desk decides and records.

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::commands::reject_cross_site;
use crate::admin::access::Actor;
use crate::admin::response::{error_response, json_response};
use crate::chain::chain;
use crate::dead_letters::{Desk, DeskError, DeskHandle, EditRequest, LetterRequest, ReplayRequest};
use crate::ledger::LetterChange;

/// Largest body of a request, in bytes: 10,000 numbers of dead letters and more.
const MAX_REQUEST: usize = 256 << 10;
/// Largest body of a request that contains a message, in bytes.
const MAX_EDIT: usize = 24 << 20;

/// The routes.
pub(in crate::admin) fn router(desk: DeskHandle) -> Router {
    Router::new()
        .route("/api/v1/dead-letters/replays", get(replays).post(start))
        .route("/api/v1/dead-letters/replays/{id}", get(replay))
        .route("/api/v1/dead-letters/replays/{id}/stop", post(stop))
        .route("/api/v1/dead-letters/hold", post(hold))
        .route("/api/v1/dead-letters/release", post(release))
        .route("/api/v1/dead-letters/discard", post(discard))
        .route("/api/v1/dead-letters/{id}/edit", post(edit))
        .layer(from_fn(reject_cross_site))
        .with_state(desk)
}

async fn replays(State(desk): State<DeskHandle>) -> Response {
    respond(async { Ok(json!({"replays": opened(&desk)?.replays().await.map_err(failure)?})) }).await
}

async fn replay(State(desk): State<DeskHandle>, Path(id): Path<i64>) -> Response {
    respond(async { opened(&desk)?.replay(id).await.map_err(failure) }).await
}

async fn start(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    let body = request.into_body();
    let answer = async {
        let (desk, request) = (opened(&desk)?, read::<ReplayRequest>(body, MAX_REQUEST).await?);
        if request.dry_run {
            let plan = desk.plan(&request).await.map_err(failure)?;
            return Ok(json_response(StatusCode::OK, &plan));
        }
        let report = desk.start(request, actor.name).await.map_err(failure)?;
        Ok(json_response(StatusCode::OK, &report))
    };
    answer.await.unwrap_or_else(|rejected: Box<Response>| *rejected)
}

async fn stop(State(desk): State<DeskHandle>, Path(id): Path<i64>, Extension(actor): Extension<Actor>) -> Response {
    respond(async { opened(&desk)?.stop(id, actor.name).await.map_err(failure) }).await
}

async fn hold(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    change(desk, actor, request, |note| LetterChange::Hold { note }).await
}

async fn release(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    change(desk, actor, request, |_| LetterChange::Release).await
}

async fn discard(State(desk): State<DeskHandle>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    change(desk, actor, request, |reason| LetterChange::Discard { reason }).await
}

async fn change(
    desk: DeskHandle,
    actor: Actor,
    request: Request,
    change: impl FnOnce(String) -> LetterChange,
) -> Response {
    let body = request.into_body();
    respond(async {
        let (desk, request) = (opened(&desk)?, read::<LetterRequest>(body, MAX_REQUEST).await?);
        let LetterRequest { selection, note } = request;
        desk.change_letters(selection, change(note), actor.name).await.map_err(failure)
    })
    .await
}

async fn edit(
    State(desk): State<DeskHandle>,
    Path(id): Path<i64>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    let body = request.into_body();
    respond(async {
        let (desk, request) = (opened(&desk)?, read::<EditRequest>(body, MAX_EDIT).await?);
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

async fn read<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, Box<Response>> {
    let bytes = to_bytes(body, limit).await.map_err(|_| {
        let message = format!("the request's body must have at most {limit} bytes");
        Box::new(error_response(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &message))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Box::new(error_response(StatusCode::BAD_REQUEST, "request", &format!("cannot read the request: {error}")))
    })
}

fn failure(error: DeskError) -> Box<Response> {
    let (status, code) = match &error {
        DeskError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
        DeskError::Missing(_) => (StatusCode::NOT_FOUND, "missing"),
        DeskError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
        DeskError::Ledger(_) | DeskError::Read(_) => (StatusCode::SERVICE_UNAVAILABLE, "ledger"),
    };
    Box::new(error_response(status, code, &chain(&error)))
}
