//! Access control of every request: its host and origin, who sends it, and whether they may.
//!
//! Host and origin protect against browsers: a web page of any site can send requests to its reader's loopback address,
//! and with DNS rebinding even read the answer, but then the host or the origin is that site's own. The rules are the
//! same for all paths, except for the two that need no token, and those with personal data, which always need one.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Actor, Authenticator, UnknownToken};
use super::response::error_response;
use crate::config::Role;

/// Paths that need no token: health checks of container runtimes and load balancers cannot send one.
const OPEN_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// The rules for access.
pub(super) struct AccessGuard {
    /// The listener is on a loopback address, which only this machine can reach.
    pub loopback: bool,
    /// Host names that requests may use, in lower case.
    pub hosts: Vec<String>,
    pub authenticator: Authenticator,
}

/// Why a request is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AccessError {
    NoHost,
    ForeignHost,
    ForeignOrigin,
    Body,
    NoToken,
    UnknownToken,
    /// A viewer sends a command.
    NotOperator(String),
}

impl IntoResponse for AccessError {
    fn into_response(self) -> Response {
        const TOKEN: &str = "send a user's token as a bearer token. The orderd command sends the one in the file admin-token in the \
            ledger's directory if it is run as orderd's user or as root, or that of --token-file";
        let not_operator;
        let (status, code, message) = match &self {
            AccessError::NoHost => (StatusCode::BAD_REQUEST, "no_host", "the request has no valid Host header"),
            AccessError::ForeignHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "foreign_host",
                "the request is for another host; add its name to admin.hosts if orderd is to answer",
            ),
            AccessError::ForeignOrigin => {
                (StatusCode::FORBIDDEN, "foreign_origin", "web pages of other sites have no access")
            }
            AccessError::Body => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body", "a request that only reads must not have a body")
            }
            AccessError::NoToken => (StatusCode::UNAUTHORIZED, "no_token", TOKEN),
            AccessError::UnknownToken => (
                StatusCode::UNAUTHORIZED,
                "unknown_token",
                "the token belongs to no user in admin.users, and is not that in \
                    the file admin-token in the ledger's directory",
            ),
            AccessError::NotOperator(name) => {
                not_operator = format!("{name} is a viewer; commands need the role operator in admin.users");
                (StatusCode::FORBIDDEN, "not_operator", &*not_operator)
            }
        };
        let mut response = error_response(status, code, message);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Middleware that rejects requests without access, and puts the [`Actor`] into the extensions of the others, if there is one.
pub(super) async fn check_access(State(guard): State<Arc<AccessGuard>>, mut request: Request, next: Next) -> Response {
    if let Err(error) = guard.check(&request) {
        return error.into_response();
    }
    // Not with a query: `/readyz?verbose` shows the checks.
    if OPEN_PATHS.contains(&request.uri().path()) && request.uri().query().is_none() {
        return next.run(request).await;
    }
    let actor = guard.authenticator.actor(request.headers()).await;
    match guard.allow(request.method().is_safe(), actor) {
        Ok(Some(actor)) => request.extensions_mut().insert(actor),
        Ok(None) => None,
        Err(error) => return error.into_response(),
    };
    next.run(request).await
}

/// Middleware for paths with personal data: they need a token even where the status needs none.
pub(super) async fn require_user(request: Request, next: Next) -> Response {
    match request.extensions().get::<Actor>() {
        Some(_) => next.run(request).await,
        None => AccessError::NoToken.into_response(),
    }
}

impl AccessGuard {
    /// Host, origin and body.
    fn check(&self, request: &Request) -> Result<(), AccessError> {
        let host = self.host(request)?;
        if let Some(origin) = request.headers().get(ORIGIN)
            && origin.as_bytes() != format!("http://{host}").as_bytes()
        {
            return Err(AccessError::ForeignOrigin);
        }
        let has_body = !axum::body::HttpBody::is_end_stream(request.body());
        if has_body && request.method().is_safe() { Err(AccessError::Body) } else { Ok(()) }
    }

    /// Viewers read, operators send commands. Who is on this machine may read if there are no users.
    fn allow(
        &self,
        is_reading: bool,
        actor: Result<Option<Actor>, UnknownToken>,
    ) -> Result<Option<Actor>, AccessError> {
        match actor.map_err(|UnknownToken| AccessError::UnknownToken)? {
            Some(actor) if is_reading || actor.role == Role::Operator => Ok(Some(actor)),
            Some(actor) => Err(AccessError::NotOperator(actor.name)),
            None if is_reading && self.loopback && !self.authenticator.has_users() => Ok(None),
            None => Err(AccessError::NoToken),
        }
    }

    /// The host that the request is for, if orderd answers requests for that host.
    fn host(&self, request: &Request) -> Result<Authority, AccessError> {
        let header = request.headers().get(HOST).map(|host| Authority::try_from(host.as_bytes()));
        let header = header.transpose().map_err(|_| AccessError::NoHost)?;
        // The host in the request line takes precedence over the header, but both must be ours.
        let named = [request.uri().authority().cloned(), header];
        let mut named = named.into_iter().flatten().peekable();
        let first = named.peek().cloned().ok_or(AccessError::NoHost)?;
        if named.all(|authority| self.answers_for(authority.host())) {
            Ok(first)
        } else {
            Err(AccessError::ForeignHost)
        }
    }

    /// A DNS name can be made to resolve to any address, so only known names are accepted. Addresses are safe; on
    /// loopback only loopback addresses can be right.
    fn answers_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        match bare.parse::<IpAddr>() {
            Ok(address) => !self.loopback || address.is_loopback() || self.hosts.contains(&host),
            Err(_) => host == "localhost" || self.hosts.contains(&host),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::body::Body;
    use tokio::sync::watch;

    use super::super::access::tests::authenticator;
    use super::*;
    use crate::config::CommandToken;

    fn checked(guard: &AccessGuard, uri: &str, headers: &[(&str, &str)]) -> Result<(), AccessError> {
        let request = headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
        guard.check(&request.body(Body::empty()).unwrap())
    }

    fn local() -> AccessGuard {
        let (_, users) = watch::channel(Vec::new());
        let authenticator = Authenticator { users, local: CommandToken::in_directory(Path::new("/no/such/directory")) };
        AccessGuard { loopback: true, hosts: vec!["orderd.internal".to_owned()], authenticator }
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_are_accepted() {
        for host in ["localhost:9640", "LOCALHOST", "127.0.0.1:9640", "127.0.0.2", "[::1]:9640", "orderd.internal:80"] {
            assert_eq!(checked(&local(), "/metrics", &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:9640", "192.0.2.7:9640", "localhost.evil.example", "0"] {
            assert_eq!(checked(&local(), "/livez", &[("host", host)]), Err(AccessError::ForeignHost), "{host}");
        }
        let absolute = checked(&local(), "http://evil.example/metrics", &[("host", "localhost")]);
        assert_eq!(absolute, Err(AccessError::ForeignHost));
        assert_eq!(checked(&local(), "/metrics", &[]), Err(AccessError::NoHost));
        assert_eq!(checked(&local(), "/metrics", &[("host", "a b")]), Err(AccessError::NoHost));
    }

    #[test]
    fn beyond_loopback_addresses_and_known_names_are_accepted() {
        let open = AccessGuard { loopback: false, ..local() };
        assert_eq!(checked(&open, "/metrics", &[("host", "192.0.2.7:9640")]), Ok(()));
        assert_eq!(checked(&open, "/metrics", &[("host", "orderd.internal")]), Ok(()));
        assert_eq!(checked(&open, "/metrics", &[("host", "evil.example")]), Err(AccessError::ForeignHost));
    }

    #[test]
    fn pages_of_other_sites_have_no_access() {
        let accepted = |origin| checked(&local(), "/metrics", &[("host", "localhost:9640"), ("origin", origin)]);
        assert_eq!(accepted("http://localhost:9640"), Ok(()));
        for origin in
            ["http://evil.example", "null", "https://localhost:9640", "http://localhost", "http://localhost:80"]
        {
            assert_eq!(accepted(origin), Err(AccessError::ForeignOrigin), "{origin}");
        }
    }

    #[test]
    fn viewers_read_and_operators_send_commands() {
        let directory = tempfile::tempdir().unwrap();
        let with_users = AccessGuard { authenticator: authenticator(directory.path()), ..local() };
        let actor = |role| Actor { name: "ada".to_owned(), role };
        for (role, reads, commands) in
            [(Some(Role::Operator), true, true), (Some(Role::Viewer), true, false), (None, false, false)]
        {
            let allowed = |is_reading| with_users.allow(is_reading, Ok(role.map(actor))).is_ok();
            assert_eq!((allowed(true), allowed(false)), (reads, commands), "{role:?}");
        }
        assert_eq!(with_users.allow(true, Err(UnknownToken)), Err(AccessError::UnknownToken));
        let viewer = with_users.allow(false, Ok(Some(actor(Role::Viewer))));
        assert_eq!(viewer, Err(AccessError::NotOperator("ada".to_owned())));
    }

    #[test]
    fn without_users_only_this_machine_may_read_without_a_token() {
        let exposed = AccessGuard { loopback: false, ..local() };
        assert_eq!(local().allow(true, Ok(None)), Ok(None));
        assert_eq!(local().allow(false, Ok(None)), Err(AccessError::NoToken));
        assert_eq!(local().allow(true, Err(UnknownToken)), Err(AccessError::UnknownToken));
        // The users may have been removed by a reload, which does not change the address.
        assert_eq!(exposed.allow(true, Ok(None)), Err(AccessError::NoToken));
    }

    #[test]
    fn requests_that_only_read_must_not_have_a_body() {
        let with_body = |method: &str| {
            let request = Request::builder().method(method).uri("/metrics").header("host", "localhost");
            local().check(&request.body(Body::from("x")).unwrap())
        };
        assert_eq!(with_body("GET"), Err(AccessError::Body));
        assert_eq!(with_body("POST"), Ok(()));
    }
}
