//! Access control of every request: its host and origin, its token, and that it has no body.
//!
//! Host and origin protect against browsers: a web page of any site can send requests to its reader's loopback address,
//! and with DNS rebinding even read the answer, but then the host or the origin is that site's own. The rules are the
//! same for all paths, except for the two that need no token.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION as AUTHORIZATION_HEADER, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::config::{CommandToken, Secret};

/// The header that carries the token.
pub const AUTHORIZATION: &str = "authorization";
/// Paths that need no token: health checks of container runtimes and load balancers cannot send one.
const OPEN_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// The value of [`AUTHORIZATION`] for a token.
pub fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.expose())
}

/// The token that requests must send.
pub(super) enum RequiredToken {
    /// The configured token, for everything but [`OPEN_PATHS`].
    Everywhere(Secret),
    /// None is configured: only commands need a token, the one in the ledger's directory.
    Commands(CommandToken),
}

/// The rules for access.
pub(super) struct AccessGuard {
    /// The listener is on a loopback address, which only this machine can reach.
    pub loopback: bool,
    /// Host names that requests may use, in lower case.
    pub hosts: Vec<String>,
    pub token: RequiredToken,
}

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccessError {
    NoHost,
    ForeignHost,
    ForeignOrigin,
    Body,
    Token,
    CommandToken,
}

impl IntoResponse for AccessError {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            AccessError::NoHost => (StatusCode::BAD_REQUEST, "the request has no valid Host header\n"),
            AccessError::ForeignHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "the request is for another host; add its name to admin.hosts if orderd is to answer\n",
            ),
            AccessError::ForeignOrigin => (StatusCode::FORBIDDEN, "web pages of other sites have no access\n"),
            AccessError::Body => (StatusCode::PAYLOAD_TOO_LARGE, "requests must not have a body\n"),
            AccessError::Token => (StatusCode::UNAUTHORIZED, "send the token in admin.token_file as a bearer token\n"),
            AccessError::CommandToken => (
                StatusCode::UNAUTHORIZED,
                "commands need the token in the file admin-token in the ledger's directory, as a bearer token; the orderd \
                 command reads it there if it is run as orderd's user or as root, or with --token-file\n",
            ),
        };
        let mut response = (status, text).into_response();
        if matches!(self, AccessError::Token | AccessError::CommandToken) {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Middleware that rejects requests without access.
pub(super) async fn check_access(
    State(guard): State<std::sync::Arc<AccessGuard>>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(error) = guard.check(&request) {
        return error.into_response();
    }
    if let RequiredToken::Commands(token) = &guard.token
        && !request.method().is_safe()
    {
        let token = read_command_token(token).await;
        if !token.is_some_and(|token| sends(&request, &token)) {
            return AccessError::CommandToken.into_response();
        }
    }
    next.run(request).await
}

/// The token in the ledger's directory. Commands are rare, so the file is read for each; one that was deleted is created again.
async fn read_command_token(token: &CommandToken) -> Option<Secret> {
    let token = token.clone();
    tokio::task::spawn_blocking(move || token.read_or_create()).await.ok()?.ok()
}

/// Whether a request sends this token. Digests are compared, so that timing reveals nothing about where the tokens differ.
fn sends(request: &Request, token: &Secret) -> bool {
    let given = request.headers().get(AUTHORIZATION_HEADER).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    given.is_some_and(|(_, given)| Sha256::digest(given.trim()) == Sha256::digest(token.expose()))
}

impl AccessGuard {
    /// Everything but the token of commands, which is in a file.
    fn check(&self, request: &Request) -> Result<(), AccessError> {
        let host = self.host(request)?;
        if let Some(origin) = request.headers().get(ORIGIN)
            && origin.as_bytes() != format!("http://{host}").as_bytes()
        {
            return Err(AccessError::ForeignOrigin);
        }
        if !axum::body::HttpBody::is_end_stream(request.body()) {
            return Err(AccessError::Body);
        }
        // Not with a query: `/readyz?verbose` shows the checks, which requires the token.
        let open = OPEN_PATHS.contains(&request.uri().path()) && request.uri().query().is_none();
        if open || self.has_valid_token(request) { Ok(()) } else { Err(AccessError::Token) }
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

    fn has_valid_token(&self, request: &Request) -> bool {
        match &self.token {
            RequiredToken::Everywhere(token) => sends(request, token),
            RequiredToken::Commands(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn checked(guard: &AccessGuard, uri: &str, headers: &[(&str, &str)]) -> Result<(), AccessError> {
        let request = headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
        guard.check(&request.body(Body::empty()).unwrap())
    }

    fn commands_only() -> RequiredToken {
        RequiredToken::Commands(CommandToken::in_directory(std::path::Path::new("/no/such/directory")))
    }

    fn local() -> AccessGuard {
        AccessGuard { loopback: true, hosts: vec!["orderd.internal".to_owned()], token: commands_only() }
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
    fn a_token_is_required_for_everything_but_plain_health_checks() {
        let guard = AccessGuard { token: RequiredToken::Everywhere(Secret::new("0123456789abcdef")), ..local() };
        let accepted = |uri, token: &str| checked(&guard, uri, &[("host", "localhost"), ("authorization", token)]);
        for uri in ["/metrics", "/api/v1/status", "/readyz?verbose", "/", "/livez/", "//livez", "/nothing"] {
            for wrong in
                ["", "Bearer", "Bearer ", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "0123456789abcdef"]
            {
                assert_eq!(accepted(uri, wrong), Err(AccessError::Token), "{uri} {wrong}");
            }
            assert_eq!(accepted(uri, "Bearer 0123456789abcdef"), Ok(()), "{uri}");
            assert_eq!(accepted(uri, "bearer 0123456789abcdef"), Ok(()), "{uri}");
        }
        assert_eq!(accepted("/livez", ""), Ok(()));
        assert_eq!(accepted("/readyz", ""), Ok(()));
    }

    #[tokio::test]
    async fn without_a_configured_token_a_command_needs_the_one_in_the_ledgers_directory() {
        let directory = tempfile::tempdir().unwrap();
        let token = CommandToken::in_directory(directory.path());
        let command = |value: &str| Request::post("/").header("authorization", value).body(Body::empty()).unwrap();
        let created = read_command_token(&token).await.unwrap();
        assert!(!sends(&command("Bearer 0123456789abcdef"), &created));
        assert!(sends(&command(&bearer(&created)), &created));
        let missing = CommandToken::in_directory(&directory.path().join("missing"));
        assert!(read_command_token(&missing).await.is_none());
    }

    #[test]
    fn requests_with_a_body_are_rejected() {
        let request = Request::get("/metrics").header("host", "localhost").body(Body::from("x")).unwrap();
        assert_eq!(local().check(&request), Err(AccessError::Body));
    }
}
