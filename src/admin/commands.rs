//! What the daemon can be told over HTTP: to reload, to pause a consumer, to resume it.
//!
//! It asks the one task that obeys and hands its answer on. Besides the guard of all pages, a command must come as
//! JSON: forms and pages of other sites cannot send that without asking the browser first, and it is never allowed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::pages::as_json;
use crate::control::{Control, ControlError};

/// What a command's Content-Type must be, though it has no content.
pub const COMMAND_TYPE: &str = "application/json";
/// How long an answer may take. Less than a connection's life.
pub const COMMAND_WITHIN: Duration = Duration::from_secs(100);
/// Commands whose answers are awaited at a time, so that there is always room for those who only ask.
const AWAITED: usize = 4;
/// What browsers tell about who makes a request.
const FETCH_SITE: &str = "sec-fetch-site";

#[derive(Clone)]
struct Commands {
    control: Control,
    awaited: Arc<Semaphore>,
}

/// The paths that change something.
pub(super) fn router(control: Control) -> Router {
    Router::new()
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/consumers/{name}/pause", post(pause))
        .route("/api/v1/consumers/{name}/resume", post(resume))
        .layer(from_fn(on_purpose))
        .with_state(Commands { control, awaited: Arc::new(Semaphore::new(AWAITED)) })
}

/// Turns away what a browser sends on behalf of another site, and what any form can send.
async fn on_purpose(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        // It is told that it is the wrong one.
        return next.run(request).await;
    }
    let headers = request.headers();
    let site = headers.get(FETCH_SITE).map(|site| site.as_bytes());
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return refusal(StatusCode::FORBIDDEN, "foreign_site", "pages of other sites may not command");
    }
    if !is_json(headers) {
        let message = format!("send commands with the header \"Content-Type: {COMMAND_TYPE}\" and without a body");
        return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", &message);
    }
    next.run(request).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(COMMAND_TYPE))
}

async fn reload(State(commands): State<Commands>) -> Response {
    answered(&commands, commands.control.reload("admin")).await
}

async fn pause(State(commands): State<Commands>, Path(consumer): Path<String>) -> Response {
    answered(&commands, commands.control.set_paused(consumer, true)).await
}

async fn resume(State(commands): State<Commands>, Path(consumer): Path<String>) -> Response {
    answered(&commands, commands.control.set_paused(consumer, false)).await
}

/// Waits for an answer, but not for ever; what was asked for goes on.
async fn answered<T: serde::Serialize>(
    commands: &Commands,
    asking: impl Future<Output = Result<T, ControlError>>,
) -> Response {
    let Ok(_permit) = commands.awaited.try_acquire() else {
        let message = format!("{AWAITED} commands are being carried out; try again later");
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too_many", &message);
    };
    match timeout(COMMAND_WITHIN, asking).await {
        Ok(Ok(answer)) => as_json(StatusCode::OK, &answer),
        Ok(Err(error)) => {
            let mut body = serde_json::to_value(&error).expect("an error is words and names");
            body["message"] = Value::from(error.to_string());
            as_json(status(&error), &body)
        }
        Err(_) => {
            let message = "it takes longer than this answer may; it goes on, and the status tells what became of it";
            refusal(StatusCode::GATEWAY_TIMEOUT, "late", message)
        }
    }
}

fn status(error: &ControlError) -> StatusCode {
    match error {
        ControlError::UnknownConsumer { .. } => StatusCode::NOT_FOUND,
        ControlError::NotPersisted { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        ControlError::Busy { .. } => StatusCode::CONFLICT,
        ControlError::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn refusal(status: StatusCode, error: &str, message: &str) -> Response {
    as_json(status, &json!({"error": error, "message": message})).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::control::{ControlCommand, PauseReport, ReloadOutcome, ReloadReport};

    /// A daemon that has consumer `order` alone, cannot remember pauses of `stuck`, and never answers about `slow`.
    fn daemon() -> (TowerToHyperService<Router>, AbortOnDropHandle<()>) {
        let (control, mut inbox) = Control::new();
        let obeying = async move {
            let mut kept = Vec::new();
            while let Some(command) = inbox.recv().await {
                match command {
                    ControlCommand::Reload { by, answer } => {
                        let notes = vec![by.to_owned()];
                        let (outcome, changes, problems) = (ReloadOutcome::Rejected, Vec::new(), vec!["x".to_owned()]);
                        let _ = answer.send(ReloadReport {
                            outcome,
                            generation: 7,
                            changes,
                            problems,
                            temporary: false,
                            notes,
                        });
                    }
                    ControlCommand::SetPaused { consumer, answer, .. } if consumer == "slow" => kept.push(answer),
                    ControlCommand::SetPaused { consumer, paused, answer } => {
                        let _ = answer.send(match consumer.as_str() {
                            "order" => Ok(PauseReport { consumer, paused, changed: true }),
                            "stuck" => Err(ControlError::NotPersisted { reason: "full".to_owned() }),
                            _ => Err(ControlError::UnknownConsumer { consumer, known: vec!["order".to_owned()] }),
                        });
                    }
                }
            }
        };
        (TowerToHyperService::new(router(control)), AbortOnDropHandle::new(tokio::spawn(obeying)))
    }

    async fn ask(
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
    async fn commands_are_handed_on_and_their_answers_back() {
        let (daemon, _task) = daemon();
        let (status, verdict) = ask(&daemon, "POST", "/api/v1/reload", &[JSON]).await;
        let expected = json!({"outcome": "rejected", "generation": 7, "changes": [], "problems": ["x"],
            "temporary": false, "notes": ["admin"]});
        assert_eq!((status, verdict), (200, expected));
        for (verb, paused) in [("pause", true), ("resume", false)] {
            let path = format!("/api/v1/consumers/order/{verb}");
            let answer = ask(&daemon, "POST", &path, &[("Content-Type", "application/json; charset=utf-8")]).await;
            assert_eq!(answer, (200, json!({"consumer": "order", "paused": paused, "changed": true})));
        }
    }

    #[tokio::test]
    async fn what_goes_wrong_has_its_code_and_says_why() {
        let (daemon, task) = daemon();
        let (status, body) = ask(&daemon, "POST", "/api/v1/consumers/nobody/pause", &[JSON]).await;
        assert_eq!((status, &body["error"], &body["known"]), (404, &json!("unknown_consumer"), &json!(["order"])));
        assert_eq!(body["message"], "unknown consumer \"nobody\"; known consumers: order");
        let (status, body) = ask(&daemon, "POST", "/api/v1/consumers/stuck/pause", &[JSON]).await;
        assert_eq!((status, &body["error"], &body["reason"]), (500, &json!("not_persisted"), &json!("full")));
        assert_eq!(ask(&daemon, "GET", "/api/v1/reload", &[]).await.0, 405);
        assert_eq!(ask(&daemon, "POST", "/api/v1/consumers/order/stop", &[JSON]).await.0, 404);
        task.abort();
        let _ = task.await;
        let (status, body) = ask(&daemon, "POST", "/api/v1/reload", &[JSON]).await;
        assert_eq!((status, &body["error"]), (503, &json!("not_running")));
        // Whoever knows the errors reads them, whatever stands beside.
        assert_eq!(serde_json::from_value::<ControlError>(body).unwrap(), ControlError::NotRunning);
    }

    #[tokio::test]
    async fn pages_of_other_sites_cannot_command() {
        let (daemon, _task) = daemon();
        for kind in ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
        {
            let headers: &[_] = if kind.is_empty() { &[] } else { &[("content-type", kind)] };
            assert_eq!(ask(&daemon, "POST", "/api/v1/reload", headers).await.0, 415, "{kind}");
        }
        for (site, expected) in [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)] {
            let answer = ask(&daemon, "POST", "/api/v1/reload", &[JSON, ("sec-fetch-site", site)]).await;
            assert_eq!(answer.0, expected, "{site}");
        }
        // What a browser asks before it sends JSON to another site is not granted.
        let asked = ask(&daemon, "OPTIONS", "/api/v1/reload", &[("access-control-request-method", "POST")]).await;
        assert!(asked.0 >= 400, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_given_up_and_only_so_many_are_awaited() {
        let (daemon, _task) = daemon();
        let slow = || ask(&daemon, "POST", "/api/v1/consumers/slow/pause", &[JSON]);
        let late = async { tokio::join!(slow(), slow(), slow(), slow()) };
        let (late, too_many) = tokio::join!(late, async {
            tokio::task::yield_now().await;
            slow().await
        });
        assert_eq!((too_many.0, &too_many.1["error"]), (503, &json!("too_many")));
        for (status, body) in [late.0, late.1, late.2, late.3] {
            assert_eq!((status, &body["error"]), (504, &json!("late")));
        }
    }
}
