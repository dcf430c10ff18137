//! Reads the body of a command: bounded in size and time, and checked.
//!
//! It is called after the access of the request was checked, so nobody else can make orderd hold a body.

use std::time::Duration;

use axum::body::{HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::response::error_response;

/// How long the client may take to send it.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command is refused because of its body.
#[derive(Debug)]
pub(in crate::admin) enum BodyError {
    /// It has more bytes than this.
    TooLarge(usize),
    Late,
    Invalid(serde_json::Error),
    /// The command has none.
    NotEmpty,
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            BodyError::TooLarge(max) => {
                let message = format!("the body must have at most {max} bytes");
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
            }
            BodyError::Late => {
                let message = format!("the body has not arrived within {} s", BODY_TIMEOUT.as_secs());
                (StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
            }
            BodyError::Invalid(error) => {
                (StatusCode::BAD_REQUEST, "body", format!("the body is not what is expected: {error}"))
            }
            BodyError::NotEmpty => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "this command has no body".to_owned())
            }
        };
        error_response(status, code, &message)
    }
}

/// The request's JSON of at most `max` bytes.
pub(in crate::admin) async fn read_json<T: DeserializeOwned>(
    request: Request,
    max: usize,
) -> Result<(Parts, T), BodyError> {
    let (parts, body) = request.into_parts();
    if body.size_hint().lower() > max as u64 {
        return Err(BodyError::TooLarge(max));
    }
    let bytes = match timeout(BODY_TIMEOUT, to_bytes(body, max)).await {
        Ok(Ok(bytes)) => bytes,
        // Too large, or the client has closed the connection and gets no answer.
        Ok(Err(_)) => return Err(BodyError::TooLarge(max)),
        Err(_) => return Err(BodyError::Late),
    };
    Ok((parts, serde_json::from_slice(&bytes).map_err(BodyError::Invalid)?))
}

/// The request without its body, which must be empty.
pub(in crate::admin) fn without_body(request: Request) -> Result<Parts, BodyError> {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() { Ok(parts) } else { Err(BodyError::NotEmpty) }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use serde_json::{Value, json};

    use super::*;

    async fn read(body: Body) -> Result<Value, u16> {
        let request = Request::post("/").body(body).unwrap();
        read_json(request, 16).await.map(|(_, value)| value).map_err(|error| error.into_response().status().as_u16())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_bounded_in_size_and_time() {
        assert_eq!(read(Body::from("{\"a\": 1}")).await, Ok(json!({ "a": 1 })));
        assert_eq!(read(Body::from("")).await, Err(400));
        assert_eq!(read(Body::from("{\"a\": ")).await, Err(400));
        assert_eq!(read(Body::from(" ".repeat(17))).await, Err(413));
        let chunks = [Bytes::from(" ".repeat(10)), Bytes::from(" ".repeat(10))].map(Ok::<_, std::io::Error>);
        assert_eq!(
            read(Body::from_stream(futures_util::stream::iter(chunks))).await,
            Err(413),
            "its size is not known before"
        );
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        assert_eq!(read(Body::from_stream(never)).await, Err(408));
    }
}
