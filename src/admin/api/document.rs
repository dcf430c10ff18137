//! The OpenAPI document: what all routes have in common. Each route describes itself, where it is handled.

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::response::content_type;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "orderd",
        description = "The admin listener of an orderd: its status, what its ledger has recorded, and commands. Text that others have sent is \
            escaped. Fields may be added, but are not renamed or removed. Each error is an `ApiError`, also for a path that is not \
            here (404, `no_such_path`) and for another method (405, `wrong_method`)."
    ),
    modifiers(&Token),
    security(("token" = []))
)]
struct Common;

/// The bearer token.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// An empty document, to which routes are added.
pub(in crate::admin) fn common() -> Document {
    Common::openapi()
}

/// An error. Some commands add fields.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct ApiError {
    /// A stable code.
    error: String,
    /// For people.
    message: String,
}

/// The errors of every route.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(in crate::admin) enum AnyError {
    /// The request has no valid Host header: `no_host`.
    #[response(status = 400)]
    NoHost(ApiError),
    /// There is no token, or nobody has this one: `no_token`, `unknown_token`.
    #[response(status = 401)]
    Unauthorized(ApiError),
    /// A web page of another site has sent the request: `foreign_origin`.
    #[response(status = 403)]
    Forbidden(ApiError),
    /// The request is for another host: `foreign_host`.
    #[response(status = 421)]
    Misdirected(ApiError),
    /// Too many requests are being answered, or the answer takes too long: `too_many_requests`, `answer_timeout`.
    #[response(status = 503)]
    Unavailable(ApiError),
}

/// The error of routes that only read.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(in crate::admin) enum NoBody {
    /// A request that only reads must not have a body: `body`.
    #[response(status = 413)]
    Body(ApiError),
}

/// The errors of routes that read the ledger.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(in crate::admin) enum ReadError {
    /// A parameter is wrong, in the path or the query: `query`. There is no valid Host header: `no_host`.
    #[response(status = 400)]
    Query(ApiError),
    /// A request that only reads must not have a body: `body`.
    #[response(status = 413)]
    Body(ApiError),
    /// The ledger cannot be read: `ledger`. A bug: `panicked`.
    #[response(status = 500)]
    Ledger(ApiError),
}

/// The errors of commands, besides those of a single one.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(in crate::admin) enum CommandError {
    /// A header is wrong: `valid_until`, `no_host`.
    #[response(status = 400)]
    Request(ApiError),
    /// The sender is a viewer, or a web page of another site: `not_operator`, `cross_site`, `foreign_origin`.
    #[response(status = 403)]
    NotOperator(ApiError),
    /// There must be no body: `body_too_large`.
    #[response(status = 413)]
    Body(ApiError),
    /// The header `Content-Type: application/json` is missing: `content_type`.
    #[response(status = 415)]
    ContentType(ApiError),
    /// The daemon is starting or stopping, or too many commands are in progress: `not_running`, `too_many_commands`,
    /// `too_many_requests`.
    #[response(status = 503)]
    NotRunning(ApiError),
    /// It has not begun in time, or is still in progress: `expired`, `in_progress`.
    #[response(status = 504)]
    Late(ApiError),
}

/// The errors of commands to one consumer, besides those of every command.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(in crate::admin) enum ConsumerError {
    /// A header or the consumer's name is wrong: `valid_until`, `query`, `no_host`.
    #[response(status = 400)]
    Request(ApiError),
    /// There is no such consumer: `unknown_consumer`.
    #[response(status = 404)]
    Unknown(ApiError),
    /// It cannot be done now: `busy`.
    #[response(status = 409)]
    Conflict(ApiError),
    /// It could not be written to disk: `not_persisted`.
    #[response(status = 500)]
    NotPersisted(ApiError),
}

/// The document as JSON, once all routes are known.
type SharedDocument = Arc<OnceLock<String>>;

/// The route that serves the document, and where to put it.
pub(in crate::admin) fn router() -> (OpenApiRouter, SharedDocument) {
    let document = SharedDocument::default();
    (OpenApiRouter::new().routes(routes!(openapi)).with_state(Arc::clone(&document)), document)
}

/// This document
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, description = "The document", body = Object), AnyError, NoBody))]
async fn openapi(State(document): State<SharedDocument>) -> Response {
    let document = document.get().cloned().unwrap_or_default();
    (StatusCode::OK, content_type("application/json"), document).into_response()
}
