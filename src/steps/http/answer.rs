//! What an HTTP answer means for a step. Reads no more of it than it keeps.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::super::service::{FailureCause, MAX_ANSWER_BYTES, StepAnswer, StepFailure};
use crate::chain::chain;
use crate::escape::escaped;
use crate::recovery::{Failure, FailureKind};

/// How much is shown of an answer that is no result, in bytes.
const MAX_SHOWN_BYTES: usize = 1024;

/// Reads an answer.
///
/// # Errors
/// See the table in the parent module.
pub(super) async fn read(response: Response, url: &str) -> Result<StepAnswer, StepFailure> {
    let status = response.status();
    let invalid = |why: String| {
        let reason = format!("POST {url}: {status}, and the answer {why}");
        let failure = Failure::new(FailureKind::Transient, "invalid_answer", reason);
        Err(StepFailure::new(failure, FailureCause::Unanswered))
    };
    if !status.is_success() {
        return Err(failure(response, url, meaning(status)).await);
    }
    match body(response, MAX_ANSWER_BYTES).await {
        // One byte more than allowed may have been read, which says that the answer is too long.
        Ok(answer) => StepAnswer::read(&answer).or_else(invalid),
        Err(error) => {
            let reason =
                format!("POST {url}: {status}, and then the connection was lost: {}", chain(&error.without_url()));
            let failure = Failure::new(FailureKind::Transient, "connection_lost", reason);
            Err(StepFailure::new(failure, FailureCause::Unanswered))
        }
    }
}

/// Reads no more of an answer than its status, unless it is a failure.
///
/// # Errors
/// See the table in the parent module, and [`is_about_endpoint`].
pub(super) async fn check_status(response: Response, url: &str) -> Result<(), StepFailure> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let meaning = match is_about_endpoint(status) {
        true => (FailureKind::Transient, FailureCause::NotReached),
        false => meaning(status),
    };
    Err(failure(response, url, meaning).await)
}

/// Whether a status says something about the endpoint or the account, and so about whatever is sent to it: a revoked token, no
/// credit, a URL that does not exist.
fn is_about_endpoint(status: StatusCode) -> bool {
    [
        StatusCode::UNAUTHORIZED,
        StatusCode::PAYMENT_REQUIRED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::GONE,
    ]
    .contains(&status)
}

async fn failure(response: Response, url: &str, meaning: (FailureKind, FailureCause)) -> StepFailure {
    let status = response.status();
    let (kind, cause) = meaning;
    let retry_after = match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => true,
        status => status.is_server_error(),
    };
    let retry_after = retry_after.then(|| wanted_delay(response.headers(), Timestamp::now())).flatten();
    // Only a text for people: what is missing of it does not matter.
    let shown = body(response, MAX_SHOWN_BYTES).await.unwrap_or_default();
    let shown = escaped(String::from_utf8_lossy(&shown).trim());
    let reason = match shown.as_str() {
        "" => format!("POST {url}: {status}"),
        text if kind == FailureKind::Permanent => text.to_owned(),
        text => format!("POST {url}: {status}: {text}"),
    };
    let failure = Failure::new(kind, format!("http_{}", status.as_u16()), reason);
    StepFailure { failure, retry_after, cause }
}

fn meaning(status: StatusCode) -> (FailureKind, FailureCause) {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            (FailureKind::Transient, FailureCause::Refused)
        }
        status if status.is_client_error() => (FailureKind::Permanent, FailureCause::Refused),
        // A redirect may be the answer after the work is done.
        _ => (FailureKind::Transient, FailureCause::Unanswered),
    }
}

/// At most one byte more than `max`.
async fn body(mut response: Response, max: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut read = Vec::new();
    while read.len() <= max
        && let Some(chunk) = response.chunk().await?
    {
        read.extend_from_slice(&chunk[..chunk.len().min(max + 1 - read.len())]);
    }
    Ok(read)
}

/// `Retry-After`: seconds, or a date.
fn wanted_delay(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_delay_is_in_seconds_or_a_date() {
        let now = "2026-03-01T00:00:00Z".parse().unwrap();
        let delay = |value: &'static str| {
            wanted_delay(&[(RETRY_AFTER, value.parse().unwrap())].into_iter().collect(), now)
                .map(|delay| delay.as_secs())
        };
        assert_eq!(delay("30"), Some(30));
        assert_eq!(delay("Sun, 01 Mar 2026 00:01:00 GMT"), Some(60));
        assert_eq!(delay("Sun, 01 Mar 2026 00:00:00 GMT"), Some(0));
        assert_eq!(delay("Sat, 28 Feb 2026 00:00:00 GMT"), Some(0), "a date in the past");
        assert_eq!((delay("soon"), delay("-1")), (None, None));
        assert_eq!(wanted_delay(&HeaderMap::new(), now), None);
    }
}
