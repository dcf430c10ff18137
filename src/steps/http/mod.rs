//! Steps performed by an HTTP server: one `POST` for each call, and what its answer means.
//!
//! ```text
//! 2xx                          done; the body is the result
//! 408, 425, 429                not now: transient; `Retry-After` says when
//! 5xx                          transient, and the call may have had its effect
//! other 4xx                    permanent; the first KiB of the body is the reason
//! 3xx                          transient, and the call may have had its effect: redirects are not followed
//! no connection, no TLS        transient, and the call had no effect
//! connection lost, no JSON, an answer that is too long    transient, and the call may have had its effect
//! ```
//! The engine limits the time of a call. A service never retries. A request that the server has certainly not processed (the
//! connection was closed before it was sent, or HTTP/2 says so) is sent again on another connection; both count as one call. The
//! query of a URL may contain a secret and is never shown.

mod answer;
mod settings;
mod signature;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};
use tracing::error;
use url::Url;

use super::service::{FailureCause, StepAnswer, StepCall, StepFailure, StepService};
use crate::chain::chain;
use crate::recovery::{Failure, FailureKind};
use crate::telemetry::RepeatedLog;
use crate::tls::{self, TlsError, TlsReloader};

pub use settings::HttpSettings;

/// The longest that connecting may take; less for a step with a short timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept. Shorter than what servers do by default (Node.js: 5 s), so that a request is not sent
/// while the server closes the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How often an HTTP/2 connection that is used is asked whether it still works, and how long the answer may take. Without that, one on
/// which nothing comes back would be used for ever.
const PING: Duration = Duration::from_secs(5);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const SIGNATURE: HeaderName = HeaderName::from_static("orderd-signature");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Services whose client cannot be set up.
static SETUP: RepeatedLog = RepeatedLog::new();

/// A step's HTTP server.
pub struct HttpService {
    settings: HttpSettings,
    /// The whole URL, which must not be shown.
    called_url: Url,
    headers: HeaderMap,
    setup: Setup,
    /// `None`: it could not be set up, and is with the next call.
    http: Mutex<Option<HttpClient>>,
}

/// A pool of connections with the certificates that were current when it was created.
#[derive(Clone)]
struct HttpClient {
    client: Client,
    has_client_certificate: bool,
}

/// What is needed to set up a client.
#[derive(Clone)]
struct Setup {
    tls: Option<Arc<TlsReloader>>,
    connect_timeout: Duration,
    max_idle: usize,
    ping: Duration,
}

impl Setup {
    /// Reads the certificate files if TLS is used: blocks on the disk.
    fn http(&self) -> Result<HttpClient, Box<dyn std::error::Error + Send + Sync>> {
        let loaded = self.tls.as_deref().map(TlsReloader::read).transpose()?;
        let mut config = loaded.as_ref().map_or_else(tls::without_trust, |loaded| (*loaded.config).clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.max_idle)
            .http2_keep_alive_interval(self.ping)
            .http2_keep_alive_timeout(self.ping)
            .user_agent(concat!("orderd/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(config)
            .build()?;
        Ok(HttpClient { client, has_client_certificate: loaded.is_some_and(|loaded| loaded.identity.is_some()) })
    }
}

impl HttpService {
    /// `timeout` is that of the step, and `max_concurrent` how many connections may be needed at the same time. Reads the files
    /// for TLS, and connects with the first call.
    pub fn new(settings: HttpSettings, timeout: Duration, max_concurrent: usize) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("checked when it was read");
            headers.insert(name, sensitive(value.expose()));
        }
        if let Some(token) = &settings.bearer {
            headers.insert(AUTHORIZATION, sensitive(&format!("Bearer {}", token.expose())));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let tls = (settings.url.scheme() == "https")
            .then(|| Arc::new(TlsReloader::new(&*settings.section, settings.tls.clone())));
        let connect_timeout = CONNECT_TIMEOUT.min(timeout * 3 / 4);
        let setup = Setup { tls, connect_timeout, max_idle: max_concurrent, ping: PING };
        let called_url = settings.called_url();
        let service = HttpService { settings, called_url, headers, setup, http: Mutex::new(None) };
        service.set(service.setup.http().map_err(|error| service.log_setup(&*error)).ok());
        service
    }

    fn shown_url(&self) -> &str {
        self.settings.url.as_str()
    }

    fn log_setup(&self, error: &(dyn std::error::Error + 'static)) {
        if let Some(due) = SETUP.occurred(self.shown_url()) {
            let (url, error, repeated) = (self.shown_url(), chain(error), due.repeated);
            let section = &*self.settings.section;
            error!(section, url, error, repeated, "cannot set up an HTTP client");
        }
    }

    fn set(&self, http: Option<HttpClient>) {
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = http;
    }

    /// The client. If it could not be set up before, this tries again.
    async fn http(&self) -> Result<HttpClient, StepFailure> {
        let known = self.http.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(http) => Ok(http),
            None => self.renew().await,
        }
    }

    /// Sets up a new client, because the certificate files may have been replaced.
    async fn renew(&self) -> Result<HttpClient, StepFailure> {
        let setup = self.setup.clone();
        let http = tokio::task::spawn_blocking(move || setup.http()).await;
        match http.expect("setting up a client neither panics nor is cancelled") {
            Ok(http) => {
                self.set(Some(http.clone()));
                Ok(http)
            }
            Err(error) => {
                self.log_setup(&*error);
                Err(self.failure("tls_failed", &chain(&*error), FailureCause::NotReached))
            }
        }
    }

    /// Makes a call whose answer is of no interest: any 2xx will do.
    ///
    /// # Errors
    /// As for a step's call, but an answer about the endpoint or the account, such as 401, is transient and counts for the circuit
    /// breaker: no notification would be accepted.
    pub async fn notify(&self, call: StepCall<'_>) -> Result<(), StepFailure> {
        answer::check_status(self.send(call).await?, self.shown_url()).await
    }

    async fn post(&self, call: StepCall<'_>) -> Result<StepAnswer, StepFailure> {
        answer::read(self.send(call).await?, self.shown_url()).await
    }

    async fn send(&self, call: StepCall<'_>) -> Result<Response, StepFailure> {
        let http = self.http().await?;
        // The runtime notices meanwhile which connections the server has closed.
        tokio::task::yield_now().await;
        match self.request(&http.client, call).send().await {
            Ok(response) => Ok(response),
            Err(error) => {
                let failure = self.no_answer(&error.without_url(), http.has_client_certificate);
                if failure.failure.code == "tls_failed" {
                    // For the next call. What is wrong with the files is logged.
                    let _ = self.renew().await;
                }
                Err(failure)
            }
        }
    }

    fn request(&self, client: &Client, call: StepCall<'_>) -> RequestBuilder {
        let mut headers = self.headers.clone();
        let mut insert = |name, value: &str| {
            // Only a trace context can be unfit for HTTP; the call does not need it.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        insert(IDEMPOTENCY_KEY, call.idempotency_key);
        for (name, value) in [(TRACEPARENT, call.trace.traceparent), (TRACESTATE, call.trace.tracestate)] {
            if let Some(value) = value {
                insert(name, value);
            }
        }
        if let Some(key) = &self.settings.hmac_key {
            let now = Timestamp::now().as_second();
            insert(SIGNATURE, &signature::sign(key.expose(), now, call.idempotency_key, call.body));
        }
        client.post(self.called_url.clone()).headers(headers).body(call.body.clone())
    }

    /// Why there is no answer. `error` must not have the URL, which may contain a secret. A TLS error of an established connection may
    /// have come after the request was read.
    fn no_answer(&self, error: &reqwest::Error, has_client_certificate: bool) -> StepFailure {
        let tls = TlsError::find_in_chain(error, has_client_certificate);
        match tls.filter(|tls| error.is_connect() || tls.is_about_certificate()) {
            Some(tls) => self.failure("tls_failed", &chain(&tls), FailureCause::NotReached),
            None if error.is_connect() => self.failure("unreachable", &chain(error), FailureCause::NotReached),
            None => self.failure("connection_lost", &chain(error), FailureCause::Unanswered),
        }
    }

    fn failure(&self, code: &str, why: &str, cause: FailureCause) -> StepFailure {
        let reason = format!("POST {}: {why}", self.shown_url());
        StepFailure::new(Failure::new(FailureKind::Transient, code, reason), cause)
    }
}

fn sensitive(value: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(value).expect("checked when it was read");
    value.set_sensitive(true);
    value
}

impl StepService for HttpService {
    fn call<'a>(&'a self, call: StepCall<'a>) -> BoxFuture<'a, Result<StepAnswer, StepFailure>> {
        self.post(call).boxed()
    }
}
