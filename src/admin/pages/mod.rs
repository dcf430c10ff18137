//! The plain text paths: the index, the health checks and the metrics.
//!
//! Every answer is made from one reading of the status. Nothing here asks the broker.

mod channels;
mod dead_letters;
pub(super) mod exposition;
mod metric_writer;

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::response::content_type;
use crate::escape::escaped;
use crate::status::{ReadinessCheck, StatusRegistry};

/// The health checks, which are answered however busy the listener is.
pub(super) fn health(registry: Arc<StatusRegistry>) -> Router {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(registry)
}

/// The other routes.
pub(super) fn router(registry: Arc<StatusRegistry>) -> Router {
    Router::new().route("/", get(index)).route("/metrics", get(metrics)).with_state(registry)
}

async fn index() -> &'static str {
    concat!(
        "orderd ",
        env!("CARGO_PKG_VERSION"),
        "\n/livez\n/readyz\n/readyz?verbose\n/metrics\n/api/v1/status\n/api/v1/report?since=7d&until=now&by=day\n",
        "/api/v1/journal?since=7d\n/api/v1/dead-letters\n/api/v1/dead-letters/groups\n/api/v1/dead-letters/export\n/api/v1/dead-letters/<id>\n",
        "/api/v1/dead-letters/replays\n/api/v1/dead-letters/replays/<id>\n/api/v1/dead-letters/replays/<id>/letters\n",
        "/api/v1/orders/<id>\n/api/v1/openapi.json\n",
        "POST /api/v1/dead-letters/replays\nPOST /api/v1/dead-letters/replays/<id>/stop\nPOST /api/v1/dead-letters/hold\n",
        "POST /api/v1/dead-letters/release\nPOST /api/v1/dead-letters/discard\nPOST /api/v1/dead-letters/<id>/edit\n",
        "POST /api/v1/reload\nPOST /api/v1/consumers/<name>/pause\nPOST /api/v1/consumers/<name>/resume\n"
    )
}

/// Any answer shows that the runtime schedules tasks. The list of stuck tasks is the one that decides whether WATCHDOG=1 is
/// sent to systemd.
async fn livez(State(registry): State<Arc<StatusRegistry>>) -> Response {
    let stuck = registry.stuck();
    if stuck.is_empty() {
        return "ok\n".into_response();
    }
    let text: String = stuck.iter().map(|task| format!("{}\n", escaped(&task.to_string()))).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn readyz(State(registry): State<Arc<StatusRegistry>>, RawQuery(query): RawQuery) -> Response {
    let checks = registry.snapshot().status.checks;
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::new();
    if query.is_some_and(|query| query.split('&').any(|key| key == "verbose" || key.starts_with("verbose="))) {
        let line = |ReadinessCheck { name, ok, detail }: &ReadinessCheck| {
            format!("[{}] {}: {}\n", if *ok { '+' } else { '-' }, escaped(name), escaped(detail))
        };
        text.extend(checks.iter().map(line));
    }
    text.push_str(if ready { "ready\n" } else { "not ready\n" });
    (status, text).into_response()
}

async fn metrics(State(registry): State<Arc<StatusRegistry>>) -> impl IntoResponse {
    (content_type(exposition::CONTENT_TYPE), exposition::exposition(&registry))
}
