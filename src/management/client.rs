//! The client of RabbitMQ's management API: GET requests with a deadline and a size limit on each answer.
//! It never changes anything on the broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use url::Url;

use super::observed::{ObservedBinding, ObservedConsumer, ObservedExchange, ObservedQueue, ObservedTopology};
use crate::config::{Management, Secret};
use crate::tls::{self, TlsError, TlsReloader};
use crate::topology::{Binding, Topology};

/// The deadline of one request, connecting included.
const DEADLINE: Duration = Duration::from_secs(10);
/// The deadline for connecting.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// The largest accepted answer, in bytes.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Requests about exchanges and queues that are under way at the same time: a busy broker answers each after some 50 ms.
const CONCURRENT_REQUESTS: usize = 8;
/// How often effective policies are requested until all are known.
const POLICY_POLL: Duration = Duration::from_millis(500);
/// An exchange that exists in every virtual host.
const BUILT_IN_EXCHANGE: &str = "amq.topic";

/// Why a request to the management API failed.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// The client cannot be built.
    #[error("cannot use the management API at {url}")]
    Setup {
        /// The API's address.
        url: String,
        /// What is wrong with the address or the certificates.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection, or no answer in time.
    #[error("cannot reach the management API at {url}")]
    Unreachable {
        /// The API's address.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// The TLS handshake failed.
    #[error(
        "cannot establish TLS with the management API at {url}: {error}; check [management.tls], or [broker.tls] where that \
         is not set"
    )]
    Tls {
        /// The API's address.
        url: String,
        /// Why the handshake failed.
        error: TlsError,
    },
    /// The API refused the user: status 401 or 403.
    #[error(
        "the management API at {url} refuses user {username:?} ({status}): its password is wrong, or it lacks the tag \
         \"monitoring\" or a permission in the virtual host"
    )]
    Refused {
        /// The API's address.
        url: String,
        /// The user name of the request.
        username: String,
        /// The status of the answer.
        status: StatusCode,
    },
    /// The virtual host does not exist, or the user has no permission to see it.
    #[error("the broker has no virtual host {virtual_host:?}")]
    NoVirtualHost {
        /// Its name.
        virtual_host: String,
    },
    /// An unexpected status.
    #[error("the management API answered {status} to GET {url}")]
    Status {
        /// The requested URL.
        url: String,
        /// The status of the answer.
        status: StatusCode,
    },
    /// The answer is larger than the limit.
    #[error("the management API answered GET {url} with more than {MAX_ANSWER_BYTES} bytes")]
    TooLong {
        /// The requested URL.
        url: String,
    },
    /// The answer does not have the documented form.
    #[error("the management API answered GET {url} in an unexpected form")]
    Malformed {
        /// The requested URL.
        url: String,
        /// How the answer differs from that form.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads from the management API of one broker, for one virtual host.
#[derive(Debug, Clone)]
pub struct ManagementClient {
    http: Arc<Mutex<Http>>,
    /// The source of the certificates; `None`: HTTP without TLS.
    tls: Option<Arc<TlsReloader>>,
    /// The API's addresses, at least one.
    bases: Arc<[Url]>,
    /// Index of the address that answered last.
    current: Arc<AtomicUsize>,
    username: String,
    password: Secret,
    pub(super) virtual_host: String,
}

/// A pool of connections with the certificates that were current when it was created.
#[derive(Debug, Clone)]
struct Http {
    client: reqwest::Client,
    /// Whether its TLS configuration has a client certificate.
    has_client_certificate: bool,
}

impl Http {
    /// Reads the certificate files if TLS is used.
    fn new(tls: Option<&TlsReloader>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let loaded = tls.map(TlsReloader::read).transpose()?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(DEADLINE)
            .tls_backend_preconfigured(
                loaded.as_ref().map_or_else(tls::without_trust, |loaded| (*loaded.config).clone()),
            )
            .build()?;
        Ok(Http { client, has_client_certificate: loaded.is_some_and(|loaded| loaded.identity.is_some()) })
    }
}

impl ManagementClient {
    /// Does not connect yet. Proxy settings of the environment are ignored.
    ///
    /// # Errors
    /// [`ManagementError::Setup`] when the address cannot be used.
    pub fn new(settings: &Management, virtual_host: &str) -> Result<Self, ManagementError> {
        let setup = |source| ManagementError::Setup { url: settings.urls.join(", "), source };
        let bases = settings.urls.iter().map(|url| Url::parse(url));
        let bases: Arc<[Url]> = bases.collect::<Result<_, _>>().map_err(|error| setup(error.into()))?;
        if bases.is_empty() {
            return Err(setup("there is no address".into()));
        }
        let is_tls = bases.iter().any(|base| base.scheme() == "https");
        let tls = is_tls.then(|| Arc::new(TlsReloader::new("management.tls", settings.tls.clone())));
        let http = Arc::new(Mutex::new(Http::new(tls.as_deref()).map_err(setup)?));
        let (username, password) = (settings.username.clone(), settings.password.clone());
        let (current, virtual_host) = (Arc::default(), virtual_host.to_owned());
        Ok(ManagementClient { http, tls, bases, current, username, password, virtual_host })
    }

    /// The address that answered last.
    fn base(&self) -> &Url {
        &self.bases[self.current.load(Ordering::Relaxed)]
    }

    /// The address that answered last.
    pub fn address(&self) -> String {
        self.base().as_str().trim_end_matches('/').to_owned()
    }

    /// Sends a GET request for a URL of the first address: to the address that answered last, then to the others in turn until
    /// one answers. A status of 500 or more is no answer: the node may be starting, or cut off from the others.
    async fn send(&self, url: &Url) -> Result<Response, ManagementError> {
        let count = self.bases.len();
        let path = &url.as_str()[self.bases[0].as_str().trim_end_matches('/').len()..];
        let mut index = self.current.load(Ordering::Relaxed);
        let mut turn = 1;
        loop {
            let url = Url::parse(&format!("{}{path}", self.bases[index].as_str().trim_end_matches('/')));
            let url = url.expect("a path appended to a base is a URL");
            match self.send_to(&self.bases[index], &url).await {
                Err(ManagementError::Unreachable { .. } | ManagementError::Tls { .. }) if turn < count => {
                    (index, turn) = ((index + 1) % count, turn + 1);
                }
                Ok(answer) if answer.status().is_server_error() && turn < count => {
                    (index, turn) = ((index + 1) % count, turn + 1);
                }
                answer => {
                    self.current.store(index, Ordering::Relaxed);
                    return answer;
                }
            }
        }
    }

    /// Sends a GET request. If it fails, the TLS files are read again, since they may have been replaced. After a TLS
    /// failure the request is retried at once; after other failures the new files are used for the next request,
    /// because a broker that refuses a certificate may just close the connection.
    async fn send_to(&self, base: &Url, url: &Url) -> Result<Response, ManagementError> {
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (failure, source) = match (self.send_by(&http, base, url).await, self.tls.clone()) {
            (Err(failure), Some(source)) => (failure, source),
            (answer, _) => return answer,
        };
        let reading = tokio::task::spawn_blocking(move || Http::new(Some(&source))).await;
        let Ok(Ok(renewed)) = reading else { return Err(failure) };
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = renewed.clone();
        match failure {
            ManagementError::Tls { .. } => self.send_by(&renewed, base, url).await,
            _ => Err(failure),
        }
    }

    async fn send_by(&self, http: &Http, base: &Url, url: &Url) -> Result<Response, ManagementError> {
        let request = http.client.get(url.clone()).basic_auth(&self.username, Some(self.password.expose()));
        request.send().await.map_err(|error| match TlsError::find_in_chain(&error, http.has_client_certificate) {
            Some(error) => ManagementError::Tls { url: base.to_string(), error },
            None => Self::unreachable(base, error),
        })
    }

    fn unreachable(base: &Url, error: reqwest::Error) -> ManagementError {
        ManagementError::Unreachable { url: base.to_string(), source: error.without_url() }
    }

    /// Reads every exchange and queue of a topology, and the queues' bindings.
    ///
    /// # Errors
    /// The first request that fails. Missing objects are not an error.
    pub async fn observe(&self, topology: &Topology) -> Result<ObservedTopology, ManagementError> {
        if self.get::<serde_json::Value>(&["exchanges", &self.virtual_host, BUILT_IN_EXCHANGE]).await?.is_none() {
            return Err(ManagementError::NoVirtualHost { virtual_host: self.virtual_host.clone() });
        }
        let mut observed = ObservedTopology::default();
        let names: Vec<String> = topology.exchanges().map(|exchange| exchange.name.clone()).collect();
        let mut exchanges = stream::iter(names).map(|name| self.exchange(name)).buffered(CONCURRENT_REQUESTS);
        while let Some((name, found)) = exchanges.try_next().await? {
            observed.exchanges.extend(found.map(|found| (name, found)));
        }
        let names: Vec<String> = topology.queues().map(|queue| queue.name.clone()).collect();
        let mut queues = stream::iter(names).map(|name| self.queue_and_bindings(name)).buffered(CONCURRENT_REQUESTS);
        while let Some((name, found, bindings)) = queues.try_next().await? {
            observed.queues.extend(found.map(|found| (name, found)));
            observed.bindings.extend(bindings);
        }
        // Not worth a failure: other programs may have more consumers than fit the largest answer.
        observed.consumer_timeouts = self.consumer_timeouts().await.unwrap_or_default();
        Ok(observed)
    }

    /// Like [`ManagementClient::observe`], but repeats the requests until the effective policies of every queue are
    /// known, for at most `max_wait`: the broker reports them only some seconds after a queue was declared.
    ///
    /// # Errors
    /// Those of [`ManagementClient::observe`]. Policies that stay unknown are not an error; they are `None` in the result.
    pub async fn observe_with_policies(
        &self,
        topology: &Topology,
        max_wait: Duration,
    ) -> Result<ObservedTopology, ManagementError> {
        let deadline = tokio::time::Instant::now() + max_wait;
        let mut observed = self.observe(topology).await?;
        loop {
            let unknown: Vec<String> = observed
                .queues
                .iter()
                .filter(|(_, queue)| queue.effective_policy.is_none())
                .map(|(name, _)| name.clone())
                .collect();
            if unknown.is_empty() || tokio::time::Instant::now() + POLICY_POLL > deadline {
                return Ok(observed);
            }
            tokio::time::sleep(POLICY_POLL).await;
            for name in unknown {
                match self.queue(&name).await? {
                    Some(found) => observed.queues.insert(name, found),
                    None => observed.queues.remove(&name),
                };
            }
        }
    }

    async fn exchange(&self, name: String) -> Result<(String, Option<ObservedExchange>), ManagementError> {
        let found = self.get(&["exchanges", &self.virtual_host, &name]).await?;
        Ok((name, found))
    }

    async fn queue_and_bindings(
        &self,
        name: String,
    ) -> Result<(String, Option<ObservedQueue>, Vec<Binding>), ManagementError> {
        let found = self.queue(&name).await?;
        let bindings = if found.is_some() { self.bindings(&name).await? } else { Vec::new() };
        Ok((name, found, bindings))
    }

    /// One queue, with effective policies that are as recent as the version allows: RabbitMQ 4.3 reports them at once in
    /// answers without statistics. Older versions report them only together with statistics, which are up to ten seconds old.
    async fn queue(&self, name: &str) -> Result<Option<ObservedQueue>, ManagementError> {
        let mut url = self.url(&["queues", &self.virtual_host, name]);
        url.set_query(Some("disable_stats=true&enable_queue_totals=true"));
        match self.get_url::<ObservedQueue>(url).await? {
            Some(queue) if queue.effective_policy.is_none() => self.get(&["queues", &self.virtual_host, name]).await,
            answer => Ok(answer),
        }
    }

    async fn consumer_timeouts(&self) -> Result<BTreeMap<String, u64>, ManagementError> {
        let consumers: Option<Vec<ObservedConsumer>> = self.get(&["consumers", &self.virtual_host]).await?;
        let mut timeouts = BTreeMap::new();
        for ObservedConsumer { queue, consumer_timeout } in consumers.unwrap_or_default() {
            if let Some(millis) = consumer_timeout.as_u64() {
                let shortest = timeouts.entry(queue.name).or_insert(millis);
                *shortest = millis.min(*shortest);
            }
        }
        Ok(timeouts)
    }

    async fn bindings(&self, queue: &str) -> Result<Vec<Binding>, ManagementError> {
        let found: Option<Vec<ObservedBinding>> = self.get(&["queues", &self.virtual_host, queue, "bindings"]).await?;
        let bindings = found.unwrap_or_default().into_iter().filter(|binding| !binding.source.is_empty());
        Ok(bindings
            .map(|binding| Binding {
                exchange: binding.source,
                queue: binding.destination,
                routing_key: binding.routing_key,
            })
            .collect())
    }

    /// The answer to `GET /api/<segments>`; `None` for 404. Segments are percent-encoded, so that the virtual
    /// host `/` is `%2F`.
    ///
    /// # Errors
    /// If there is no answer, or one with another status or in another form.
    pub async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<Option<T>, ManagementError> {
        self.get_url(self.url(segments)).await
    }

    async fn get_url<T: DeserializeOwned>(&self, url: Url) -> Result<Option<T>, ManagementError> {
        self.get_with_status(url, &[StatusCode::OK]).await
    }

    /// The answer to `GET url` if it has one of the `accepted` statuses; `None` for 404.
    pub(super) async fn get_with_status<T: DeserializeOwned>(
        &self,
        url: Url,
        accepted: &[StatusCode],
    ) -> Result<Option<T>, ManagementError> {
        let mut response = self.send(&url).await?;
        let url = response.url().clone();
        match response.status() {
            status if accepted.contains(&status) => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                let (url, username) = (self.base().to_string(), self.username.clone());
                return Err(ManagementError::Refused { url, username, status });
            }
            status => return Err(ManagementError::Status { url: url.to_string(), status }),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Self::unreachable(self.base(), error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(ManagementError::TooLong { url: url.to_string() });
            }
        }
        let malformed = |source| ManagementError::Malformed { url: url.to_string(), source };
        serde_json::from_slice(&body).map(Some).map_err(malformed)
    }

    /// A URL of the first address; [`ManagementClient::send`] replaces it by the address that answers.
    pub(super) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.bases[0].clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("api").extend(segments);
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls::TlsFiles;

    fn settings(url: &str) -> Management {
        let (username, password) = ("me".to_owned(), Secret::new("hunter2"));
        Management { urls: vec![url.to_owned()], username, password, tls: TlsFiles::default(), poll_every: None }
    }

    /// The client's result for one raw answer.
    async fn result_of(status: &str, body: Vec<u8>) -> Result<Option<serde_json::Value>, ManagementError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _request = socket.read(&mut [0; 4096]).await;
            // The client closes the connection when the answer is too long.
            let _sent = socket.write_all(&[head.into_bytes(), body].concat()).await;
        });
        let answer = ManagementClient::new(&settings(&url), "/").unwrap().get(&["overview"]).await;
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn another_address_is_asked_when_one_does_not_answer_and_is_remembered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut settings = settings("http://127.0.0.1:1/rabbit");
        settings.urls.push(format!("http://{}", listener.local_addr().unwrap()));
        let client = ManagementClient::new(&settings, "/").unwrap();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let length = socket.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /api/overview "), "the path of its own address");
                socket.write_all(b"HTTP/1.1 404 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
            }
        });
        for _ in 0..2 {
            assert!(client.get::<serde_json::Value>(&["overview"]).await.unwrap().is_none());
            assert_eq!(*client.base(), client.bases[1]);
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn each_kind_of_answer_has_its_own_error() {
        assert_eq!(result_of("200 OK", b"{\"a\":1}".to_vec()).await.unwrap().unwrap()["a"], 1);
        assert!(result_of("404 Not Found", Vec::new()).await.unwrap().is_none());
        let refused = result_of("401 Unauthorized", Vec::new()).await.unwrap_err();
        assert!(matches!(refused, ManagementError::Refused { .. }), "{refused}");
        assert!(!format!("{refused} {refused:?}").contains("hunter2"));
        let unavailable = result_of("503 Service Unavailable", Vec::new()).await;
        assert!(matches!(unavailable, Err(ManagementError::Status { .. })), "{unavailable:?}");
        let html = result_of("200 OK", b"<html>".to_vec()).await;
        assert!(matches!(html, Err(ManagementError::Malformed { .. })), "{html:?}");
        let endless = result_of("200 OK", vec![b' '; MAX_ANSWER_BYTES + 1]).await;
        assert!(matches!(endless, Err(ManagementError::TooLong { .. })), "{endless:?}");
    }

    #[test]
    fn segments_are_percent_encoded() {
        let url = |base: &str| {
            ManagementClient::new(&settings(base), "/").unwrap().url(&["queues", "/", "a b/c%"]).to_string()
        };
        assert_eq!(url("http://h:15672"), "http://h:15672/api/queues/%2F/a%20b%2Fc%25");
        assert_eq!(url("http://h/rabbit"), "http://h/rabbit/api/queues/%2F/a%20b%2Fc%25");
    }
}
