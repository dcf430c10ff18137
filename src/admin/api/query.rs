//! What requests have in common: the parameters in their paths and queries, the errors of those, and pages. It reads nothing.

use std::error::Error;
use std::str::FromStr;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::admin::response::error_response;
use crate::chain::chain;
use crate::ledger::OpenError;

/// Items in a page, unless the request says how many.
const DEFAULT_LIMIT: usize = 50;
/// Most items in a page.
const MAX_LIMIT: usize = 1_000;

/// The parameters of a request, or an answer that says what is wrong with them.
pub(super) struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = QueryError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, QueryError> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Parameters(query)).map_err(|rejection| {
            // Its cause is what is wrong with the query; the rest is about how it was read.
            QueryError(rejection.source().map_or_else(|| rejection.body_text(), ToString::to_string))
        })
    }
}

/// The parameter in the path of a request, or an answer that says what is wrong with it.
pub(super) struct PathParameter<T>(pub T);

impl<T: FromStr, S: Send + Sync> FromRequestParts<S> for PathParameter<T> {
    type Rejection = QueryError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, QueryError> {
        let path: Result<Path<String>, _> = Path::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| QueryError("the path is not UTF-8".to_owned()))?;
        let value = text.parse().map_err(|_| QueryError(format!("the path must contain a number, not {text:?}")))?;
        Ok(PathParameter(value))
    }
}

/// What is wrong with a path or a query.
#[derive(Debug)]
pub(super) struct QueryError(pub String);

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        error_response(StatusCode::BAD_REQUEST, "query", &self.0)
    }
}

/// The number of items in a page.
pub(super) fn page_limit(limit: Option<usize>) -> Result<usize, QueryError> {
    limit_up_to(limit, MAX_LIMIT)
}

/// The number of items in an answer that may have more of them.
pub(super) fn limit_up_to(limit: Option<usize>, max: usize) -> Result<usize, QueryError> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if (1..=max).contains(&limit) {
        Ok(limit)
    } else {
        Err(QueryError(format!("limit: must be from 1 to {max}, is {limit}")))
    }
}

/// The answer if the ledger cannot be read.
pub(super) fn unreadable(error: &OpenError) -> Response {
    error_response(StatusCode::INTERNAL_SERVER_ERROR, "ledger", &chain(error))
}
