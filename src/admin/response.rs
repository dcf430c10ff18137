//! Response bodies and their content types.
//!
//! It never decides what is answered.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::escape::json_escaped;

/// A `Content-Type` header.
pub(super) fn content_type(value: &'static str) -> [(HeaderName, &'static str); 1] {
    [(CONTENT_TYPE, value)]
}

/// A JSON response.
pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_string(value).expect("answers are text, numbers and maps with text keys");
    (status, content_type("application/json"), json_escaped(&body)).into_response()
}

/// `{"error": code, "message": …}`.
pub(super) fn error_response(status: StatusCode, code: &str, message: &str) -> Response {
    json_response(status, &json!({"error": code, "message": message}))
}
