//! Who may ask: the request's host and origin, its token, and that it brings no body.
//!
//! Browsers are the reason for the first two: a page of any site can ask what listens on its reader's loopback
//! address, and by rebinding its own name even read the answer, but then the host or the origin is its own.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION as AUTHORIZATION_HEADER, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::config::Secret;

/// The header that carries the token.
pub const AUTHORIZATION: &str = "authorization";
/// What anybody may ask who reaches the listener: programs that watch over processes carry no tokens.
const OPEN: [&str; 2] = ["/livez", "/readyz"];

/// The value of [`AUTHORIZATION`] for a token.
pub fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.expose())
}

/// Who may ask.
pub(super) struct Guard {
    /// Whether only this machine reaches the listener.
    pub loopback: bool,
    /// Names by which it may be asked, lower case.
    pub hosts: Vec<String>,
    /// What whoever asks must know.
    pub token: Option<Secret>,
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NoHost,
    ForeignHost,
    ForeignOrigin,
    Body,
    Token,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Refusal::NoHost => (StatusCode::BAD_REQUEST, "the request has no valid Host\n"),
            Refusal::ForeignHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "the request is for another host; admin.hosts names those that orderd answers for\n",
            ),
            Refusal::ForeignOrigin => (StatusCode::FORBIDDEN, "pages of other sites may not ask\n"),
            Refusal::Body => (StatusCode::PAYLOAD_TOO_LARGE, "requests have no body here\n"),
            Refusal::Token => (StatusCode::UNAUTHORIZED, "send the token of admin.token_file as a bearer token\n"),
        };
        let mut response = (status, text).into_response();
        if self == Refusal::Token {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Turns away what may not ask.
pub(super) async fn guard(State(guard): State<std::sync::Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.judge(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl Guard {
    fn judge(&self, request: &Request) -> Result<(), Refusal> {
        let host = self.host(request)?;
        if let Some(origin) = request.headers().get(ORIGIN)
            && origin.as_bytes() != format!("http://{host}").as_bytes()
        {
            return Err(Refusal::ForeignOrigin);
        }
        if !axum::body::HttpBody::is_end_stream(request.body()) {
            return Err(Refusal::Body);
        }
        // Which checks there are is told to those who know the token.
        let open = OPEN.contains(&request.uri().path()) && request.uri().query().is_none();
        if open || self.knows_token(request) { Ok(()) } else { Err(Refusal::Token) }
    }

    /// The host that the request is for, if orderd answers for it.
    fn host(&self, request: &Request) -> Result<Authority, Refusal> {
        let header = request.headers().get(HOST).map(|host| Authority::try_from(host.as_bytes()));
        let header = header.transpose().map_err(|_| Refusal::NoHost)?;
        // Of the two, the one in the request line rules; but neither may be another's.
        let named = [request.uri().authority().cloned(), header];
        let mut named = named.into_iter().flatten().peekable();
        let first = named.peek().cloned().ok_or(Refusal::NoHost)?;
        if named.all(|authority| self.answers_for(authority.host())) { Ok(first) } else { Err(Refusal::ForeignHost) }
    }

    /// A name can be made to lead anywhere, so names must be known. An address cannot, but on loopback nobody
    /// has reason to use another one.
    fn answers_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        match bare.parse::<IpAddr>() {
            Ok(address) => !self.loopback || address.is_loopback() || self.hosts.contains(&host),
            Err(_) => host == "localhost" || self.hosts.contains(&host),
        }
    }

    fn knows_token(&self, request: &Request) -> bool {
        let Some(token) = &self.token else { return true };
        let given = request.headers().get(AUTHORIZATION_HEADER).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.split_once(' '));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        // Digests, so that the time it takes tells nothing about where they differ.
        given.is_some_and(|(_, given)| Sha256::digest(given.trim()) == Sha256::digest(token.expose()))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn judged(guard: &Guard, uri: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let request = headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
        guard.judge(&request.body(Body::empty()).unwrap())
    }

    fn local() -> Guard {
        Guard { loopback: true, hosts: vec!["orderd.internal".to_owned()], token: None }
    }

    #[test]
    fn on_loopback_only_this_machine_is_a_host() {
        for host in ["localhost:9640", "LOCALHOST", "127.0.0.1:9640", "127.0.0.2", "[::1]:9640", "orderd.internal:80"] {
            assert_eq!(judged(&local(), "/metrics", &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:9640", "192.0.2.7:9640", "localhost.evil.example", "0"] {
            assert_eq!(judged(&local(), "/livez", &[("host", host)]), Err(Refusal::ForeignHost), "{host}");
        }
        let absolute = judged(&local(), "http://evil.example/metrics", &[("host", "localhost")]);
        assert_eq!(absolute, Err(Refusal::ForeignHost));
        assert_eq!(judged(&local(), "/metrics", &[]), Err(Refusal::NoHost));
        assert_eq!(judged(&local(), "/metrics", &[("host", "a b")]), Err(Refusal::NoHost));
    }

    #[test]
    fn beyond_loopback_addresses_and_known_names_are_hosts() {
        let open = Guard { loopback: false, ..local() };
        assert_eq!(judged(&open, "/metrics", &[("host", "192.0.2.7:9640")]), Ok(()));
        assert_eq!(judged(&open, "/metrics", &[("host", "orderd.internal")]), Ok(()));
        assert_eq!(judged(&open, "/metrics", &[("host", "evil.example")]), Err(Refusal::ForeignHost));
    }

    #[test]
    fn pages_of_other_sites_may_not_ask() {
        let asked = |origin| judged(&local(), "/metrics", &[("host", "localhost:9640"), ("origin", origin)]);
        assert_eq!(asked("http://localhost:9640"), Ok(()));
        for origin in
            ["http://evil.example", "null", "https://localhost:9640", "http://localhost", "http://localhost:80"]
        {
            assert_eq!(asked(origin), Err(Refusal::ForeignOrigin), "{origin}");
        }
    }

    #[test]
    fn a_token_is_demanded_of_all_but_plain_health_checks() {
        let guard = Guard { token: Some(Secret::new("0123456789abcdef")), ..local() };
        let asked = |uri, token: &str| judged(&guard, uri, &[("host", "localhost"), ("authorization", token)]);
        for uri in ["/metrics", "/api/v1/status", "/readyz?verbose", "/", "/livez/", "//livez", "/nothing"] {
            for wrong in
                ["", "Bearer", "Bearer ", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "0123456789abcdef"]
            {
                assert_eq!(asked(uri, wrong), Err(Refusal::Token), "{uri} {wrong}");
            }
            assert_eq!(asked(uri, "Bearer 0123456789abcdef"), Ok(()), "{uri}");
            assert_eq!(asked(uri, "bearer 0123456789abcdef"), Ok(()), "{uri}");
        }
        assert_eq!(asked("/livez", ""), Ok(()));
        assert_eq!(asked("/readyz", ""), Ok(()));
    }

    #[test]
    fn requests_with_a_body_are_turned_away() {
        let request = Request::get("/metrics").header("host", "localhost").body(Body::from("x")).unwrap();
        assert_eq!(local().judge(&request), Err(Refusal::Body));
    }
}
