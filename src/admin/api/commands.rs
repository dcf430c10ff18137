//! The commands over HTTP: reload, pause a consumer, resume it.
//!
//! Owns the protection of commands against web pages of other sites: besides the checks of [`AccessGuard`], a command
//! must declare a JSON content type. Forms cannot send that, and scripts of other sites need a CORS preflight, which is
//! never granted. It never carries out a command itself: it passes the command to the daemon task, and returns the result.
//!
//! [`AccessGuard`]: crate::admin::guard::AccessGuard

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::info;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::{AnyError, CommandError, ConsumerError};
use super::query::PathParameter;
use crate::admin::access::Actor;
use crate::admin::body::without_body;
use crate::admin::caller::CallerHandle;
use crate::admin::response::{error_response, json_response};
use crate::control::{Control, ControlError, PauseReport, Permit, ReloadReport};

/// The Content-Type that a command must have, also with an empty body.
pub const COMMAND_CONTENT_TYPE: &str = "application/json";
/// The header with the time after which a command must not begin, in RFC 3339.
pub const VALID_UNTIL: &str = "orderd-valid-until";
/// How long a command may wait before it begins. Shorter than the lifetime of a connection.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(100);
/// How long the result of a command is awaited that had begun when its time was over.
const LAST_STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands whose results are awaited at a time, so that connections are left for other requests.
const MAX_COMMANDS: usize = 4;
/// The header in which browsers say which site makes a request.
const FETCH_SITE: &str = "sec-fetch-site";

/// The header of every command.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only its description is used")]
struct ValidUntil {
    /// The time after which the command must not begin; 100 s from now by default
    #[param(rename = "orderd-valid-until", value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
}

#[derive(Clone)]
struct CommandState {
    control: Control,
    permits: Arc<Semaphore>,
}

/// The routes that change something.
pub(in crate::admin) fn router(control: Control) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(reload))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .layer(from_fn(reject_cross_site))
        .with_state(CommandState { control, permits: Arc::new(Semaphore::new(MAX_COMMANDS)) })
}

/// Rejects what a browser sends for another site, and what an HTML form can send.
pub(super) async fn reject_cross_site(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        // The router answers 405.
        return next.run(request).await;
    }
    let headers = request.headers();
    let site = headers.get(FETCH_SITE).map(|site| site.as_bytes());
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return error_response(StatusCode::FORBIDDEN, "cross_site", "web pages of other sites may not send commands");
    }
    if !is_json(headers) {
        let message = format!("send commands with the header \"Content-Type: {COMMAND_CONTENT_TYPE}\"");
        return error_response(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", &message);
    }
    next.run(request).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.is_some_and(|value| value.trim().eq_ignore_ascii_case(COMMAND_CONTENT_TYPE))
}

/// Reload the configuration, and answer with what has changed
#[utoipa::path(
    post,
    path = "/api/v1/reload",
    params(ValidUntil),
    responses((status = 200, description = "What has changed", body = ReloadReport), AnyError, CommandError)
)]
async fn reload(State(state): State<CommandState>, Extension(actor): Extension<Actor>, request: Request) -> Response {
    match without_body(request) {
        Ok(parts) => answer(&state, parts, |permit| state.control.reload("admin", actor.name, permit)).await,
        Err(error) => error.into_response(),
    }
}

/// Pause a consumer until it is resumed, even across restarts
#[utoipa::path(
    post,
    path = "/api/v1/consumers/{name}/pause",
    params(("name" = String, Path, description = "The consumer's name"), ValidUntil),
    responses((status = 200, description = "Whether it is paused now", body = PauseReport), AnyError, CommandError, ConsumerError)
)]
async fn pause(
    State(state): State<CommandState>,
    PathParameter(consumer): PathParameter<String>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    set_paused(&state, consumer, true, actor, request).await
}

/// Resume a paused consumer
#[utoipa::path(
    post,
    path = "/api/v1/consumers/{name}/resume",
    params(("name" = String, Path, description = "The consumer's name"), ValidUntil),
    responses((status = 200, description = "Whether it is paused now", body = PauseReport), AnyError, CommandError, ConsumerError)
)]
async fn resume(
    State(state): State<CommandState>,
    PathParameter(consumer): PathParameter<String>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Response {
    set_paused(&state, consumer, false, actor, request).await
}

async fn set_paused(state: &CommandState, consumer: String, paused: bool, actor: Actor, request: Request) -> Response {
    match without_body(request) {
        Ok(parts) => {
            let command = |permit| state.control.set_paused(consumer, paused, actor.name, permit);
            answer(state, parts, command).await
        }
        Err(error) => error.into_response(),
    }
}

/// Sends a command and awaits its result. A command that has not begun in time, or whose client has closed the connection, is cancelled.
async fn answer<T, F>(state: &CommandState, request: Parts, command: impl FnOnce(Permit) -> F) -> Response
where
    T: serde::Serialize,
    F: Future<Output = Result<T, ControlError>>,
{
    let Some(time_left) = time_left(&request.headers) else {
        let message = format!("the header {VALID_UNTIL} must be a time such as 2026-11-22T08:00:00Z");
        return error_response(StatusCode::BAD_REQUEST, "valid_until", &message);
    };
    let Ok(_permit) = state.permits.try_acquire() else {
        let message = format!("{MAX_COMMANDS} commands are in progress; try again later");
        return error_response(StatusCode::SERVICE_UNAVAILABLE, "too_many_commands", &message);
    };
    let caller = request.extensions.get::<CallerHandle>().cloned();
    let is_waiting = move || caller.as_ref().is_none_or(CallerHandle::is_waiting);
    let permit = Permit::limited(Instant::now() + time_left, is_waiting);
    if !permit.is_valid() {
        info!(
            path = request.uri.path(),
            "command not carried out: its time limit has passed, or its client has closed the connection"
        );
        return failure(&ControlError::Expired);
    }
    // Dropping the guard cancels the command: the client has closed the connection, or gets no answer that the command was carried out.
    let permit = CancelOnDrop(permit);
    let mut command = pin!(command(permit.0.clone()));
    let result = match timeout(time_left, &mut command).await {
        Ok(result) => result,
        Err(_) if permit.0.cancel() => Err(ControlError::Expired),
        // It has begun, which takes a moment only.
        Err(_) => match timeout(LAST_STEP_TIMEOUT, command).await {
            Ok(result) => result,
            Err(_) => {
                let message =
                    "the command is being carried out and takes longer than expected; see the status for its result";
                return error_response(StatusCode::GATEWAY_TIMEOUT, "in_progress", message);
            }
        },
    };
    match result {
        Ok(result) => json_response(StatusCode::OK, &result),
        Err(error) => failure(&error),
    }
}

struct CancelOnDrop(Permit);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// How long a command may wait before it begins: at most [`COMMAND_TIMEOUT`], less if the client says so. `None` if the header
/// is not a time.
fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let Some(value) = headers.get(VALID_UNTIL) else { return Some(COMMAND_TIMEOUT) };
    let until: Timestamp = value.to_str().ok()?.parse().ok()?;
    let left = until.duration_since(Timestamp::now());
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO).min(COMMAND_TIMEOUT))
}

fn failure(error: &ControlError) -> Response {
    let mut body = serde_json::to_value(error).expect("an error is text, numbers and lists of text");
    body["message"] = Value::from(error.to_string());
    json_response(status(error), &body)
}

fn status(error: &ControlError) -> StatusCode {
    match error {
        ControlError::UnknownConsumer { .. } => StatusCode::NOT_FOUND,
        ControlError::NotPersisted { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        ControlError::Busy { .. } => StatusCode::CONFLICT,
        ControlError::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
        ControlError::Expired => StatusCode::GATEWAY_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use tokio_util::task::AbortOnDropHandle;

    use serde_json::json;

    use super::*;
    use crate::config::Role;
    use crate::control::{ControlCommand, ReloadOutcome};

    /// A fake daemon that knows the consumer `order`. It cannot persist a pause of `stuck`, and never answers for `slow`.
    fn daemon() -> (TowerToHyperService<Router>, AbortOnDropHandle<()>) {
        let (control, mut inbox) = Control::new();
        let command_loop = async move {
            let mut unanswered = Vec::new();
            while let Some(command) = inbox.recv().await {
                match command {
                    ControlCommand::Reload { by, answer, .. } => {
                        let notes = vec![by.to_owned()];
                        let (outcome, changes, problems) = (ReloadOutcome::Rejected, Vec::new(), vec!["x".to_owned()]);
                        let _ = answer.send(Ok(ReloadReport {
                            outcome,
                            generation: 7,
                            changes,
                            applied_after_ms: None,
                            problems,
                            temporary: false,
                            notes,
                        }));
                    }
                    ControlCommand::SetPaused { consumer, answer, .. } if consumer == "slow" => unanswered.push(answer),
                    ControlCommand::SetPaused { consumer, permit, answer, .. } if consumer == "begun" => {
                        permit.begin().unwrap();
                        unanswered.push(answer);
                    }
                    ControlCommand::SetPaused { consumer, paused, answer, .. } => {
                        let _ = answer.send(match consumer.as_str() {
                            "order" => Ok(PauseReport { consumer, paused, changed: true }),
                            "stuck" => Err(ControlError::NotPersisted { reason: "full".to_owned() }),
                            _ => Err(ControlError::UnknownConsumer { consumer, known: vec!["order".to_owned()] }),
                        });
                    }
                }
            }
        };
        (service(control), AbortOnDropHandle::new(tokio::spawn(command_loop)))
    }

    /// The routes, for an operator.
    fn service(control: Control) -> TowerToHyperService<Router> {
        let actor = Actor { name: "ada".to_owned(), role: Role::Operator };
        TowerToHyperService::new(Router::from(router(control)).layer(Extension(actor)))
    }

    async fn send(
        service: &TowerToHyperService<Router>,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let request = headers
            .iter()
            .fold(Request::builder().method(method).uri(path), |request, (name, value)| request.header(*name, *value));
        let answer = service.call(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[tokio::test]
    async fn commands_are_passed_on_and_their_results_returned() {
        let (daemon, _task) = daemon();
        let (status, report) = send(&daemon, "POST", "/api/v1/reload", &[JSON]).await;
        let expected = json!({"outcome": "rejected", "generation": 7, "changes": [], "applied_after_ms": null, "problems": ["x"],
            "temporary": false, "notes": ["admin"]});
        assert_eq!((status, report), (200, expected));
        for (verb, paused) in [("pause", true), ("resume", false)] {
            let path = format!("/api/v1/consumers/order/{verb}");
            let answer = send(&daemon, "POST", &path, &[("Content-Type", "application/json; charset=utf-8")]).await;
            assert_eq!(answer, (200, json!({"consumer": "order", "paused": paused, "changed": true})));
        }
    }

    #[tokio::test]
    async fn each_error_has_its_status_and_code() {
        let (daemon, task) = daemon();
        let (status, body) = send(&daemon, "POST", "/api/v1/consumers/nobody/pause", &[JSON]).await;
        assert_eq!((status, &body["error"], &body["known"]), (404, &json!("unknown_consumer"), &json!(["order"])));
        assert_eq!(body["message"], "unknown consumer \"nobody\"; known consumers: order");
        let (status, body) = send(&daemon, "POST", "/api/v1/consumers/stuck/pause", &[JSON]).await;
        assert_eq!((status, &body["error"], &body["reason"]), (500, &json!("not_persisted"), &json!("full")));
        assert_eq!(send(&daemon, "GET", "/api/v1/reload", &[]).await.0, 405);
        assert_eq!(send(&daemon, "POST", "/api/v1/consumers/order/stop", &[JSON]).await.0, 404);
        task.abort();
        let _ = task.await;
        let (status, body) = send(&daemon, "POST", "/api/v1/reload", &[JSON]).await;
        assert_eq!((status, &body["error"]), (503, &json!("not_running")));
        // A client can deserialize the body as the error, although it also contains a message.
        assert_eq!(serde_json::from_value::<ControlError>(body).unwrap(), ControlError::NotRunning);
    }

    #[tokio::test]
    async fn pages_of_other_sites_cannot_send_commands() {
        let (daemon, _task) = daemon();
        for kind in ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
        {
            let headers: &[_] = if kind.is_empty() { &[] } else { &[("content-type", kind)] };
            assert_eq!(send(&daemon, "POST", "/api/v1/reload", headers).await.0, 415, "{kind}");
        }
        for (site, expected) in [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)] {
            let answer = send(&daemon, "POST", "/api/v1/reload", &[JSON, ("sec-fetch-site", site)]).await;
            assert_eq!(answer.0, expected, "{site}");
        }
        // A CORS preflight is not granted.
        let preflight = send(&daemon, "OPTIONS", "/api/v1/reload", &[("access-control-request-method", "POST")]).await;
        assert!(preflight.0 >= 400, "{preflight:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_is_too_late_never_reaches_the_daemon() {
        let (daemon, task) = daemon();
        task.abort();
        let path = "/api/v1/consumers/order/pause";
        for (until, expected) in [("2026-11-22T08:00:00Z", (504, "expired")), ("soon", (400, "valid_until"))] {
            let (status, body) = send(&daemon, "POST", path, &[JSON, (VALID_UNTIL, until)]).await;
            assert_eq!((status, &body["error"]), (expected.0, &json!(expected.1)), "{body}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_has_begun_is_not_reported_as_refused() {
        let (daemon, _task) = daemon();
        let (status, body) = send(&daemon, "POST", "/api/v1/consumers/begun/pause", &[JSON]).await;
        assert_eq!((status, &body["error"]), (504, &json!("in_progress")));
    }

    #[tokio::test]
    async fn a_command_whose_caller_is_gone_is_cancelled() {
        let (control, mut inbox) = Control::new();
        let service = service(control);
        let waiting =
            tokio::spawn(async move { send(&service, "POST", "/api/v1/consumers/order/pause", &[JSON]).await });
        let Some(ControlCommand::SetPaused { permit, .. }) = inbox.recv().await else { panic!("no command") };
        assert!(permit.is_valid());
        waiting.abort();
        let _ = waiting.await;
        assert_eq!(permit.begin(), Err(ControlError::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_times_out_and_only_a_limited_number_is_awaited() {
        let (daemon, _task) = daemon();
        let slow = || send(&daemon, "POST", "/api/v1/consumers/slow/pause", &[JSON]);
        let late = async { tokio::join!(slow(), slow(), slow(), slow()) };
        let (late, too_many) = tokio::join!(late, async {
            tokio::task::yield_now().await;
            slow().await
        });
        assert_eq!((too_many.0, &too_many.1["error"]), (503, &json!("too_many_commands")));
        for (status, body) in [late.0, late.1, late.2, late.3] {
            assert_eq!((status, &body["error"]), (504, &json!("expired")));
        }
    }
}
