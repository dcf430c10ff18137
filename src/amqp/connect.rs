//! Connects to the broker: tries its addresses in turn within a timeout, and finds out precisely why connecting failed.
//!
//! Owns the settings and certificates that every connection uses. Never retries: callers back off.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::addresses::Addresses;
use super::connect_error::ConnectError;
use super::lifetime::ConnectionEnd;
use super::protocol::{self, Channel, Connection, Credentials, HandshakeError, MAX_SHORT_STRING, ReceiveLimits};
use super::redeclaration::Redeclaration;
use crate::chain::chain;
use crate::config::{Address, Broker, Mechanism};
use crate::instance;
use crate::message::TrustedUsers;
use crate::tls::TlsReloader;

/// RabbitMQ's reply code for credentials it does not accept.
const ACCESS_REFUSED: u16 = 403;
/// RabbitMQ's reply code for a virtual host that does not exist or that the user may not access.
const NOT_ALLOWED: u16 = 530;
/// What RabbitMQ's reply text contains, under the same code, when the connection limit of a virtual host, a user or a node is
/// reached, or when RabbitMQ 4.3 could not find it out in time.
const CONNECTION_LIMIT: &str = "connection limit";

/// Connects to the broker: opens subscriptions and publishers, declares the topology, and checks permissions. Clones share
/// the configuration.
#[derive(Debug, Clone)]
pub struct Connector {
    pub(super) broker: Arc<Broker>,
    /// Certificates and key, read again for each connection.
    tls: Option<Arc<TlsReloader>>,
    last_error: Arc<Mutex<Option<String>>>,
    /// When the broker refused a connection because of a limit, the last time.
    limit_reached: Arc<Mutex<Option<Instant>>>,
    addresses: Arc<Addresses>,
    /// An address that is tried last.
    pub(super) avoid: Option<Address>,
    redeclaration: Redeclaration,
    /// How many channels the broker allows on a connection, as far as it is known.
    channel_limit: Arc<AtomicUsize>,
    /// The users whose messages count as orderd's own.
    users: Arc<TrustedUsers>,
}

impl Connector {
    /// Does not connect yet.
    pub fn new(broker: Broker) -> Self {
        let tls = broker.tls.as_ref().map(|tls| Arc::new(TlsReloader::new("broker.tls", tls.files.clone())));
        let addresses = Arc::new(Addresses::new(&broker.addresses));
        let (broker, redeclaration) = (Arc::new(broker), Redeclaration::default());
        let users = Arc::new(TrustedUsers::new(&broker.username, &broker.trusted_users));
        Connector {
            broker,
            tls,
            last_error: Arc::default(),
            limit_reached: Arc::default(),
            addresses,
            avoid: None,
            redeclaration,
            channel_limit: Arc::new(AtomicUsize::new(usize::MAX)),
            users,
        }
    }

    /// The broker users whose messages count as orderd's own.
    pub fn users(&self) -> &Arc<TrustedUsers> {
        &self.users
    }

    /// A clone that records its own errors in [`Connector::last_connect_error`].
    pub(super) fn with_own_errors(&self) -> Self {
        Connector { last_error: Arc::default(), ..self.clone() }
    }

    /// A clone for connections that others do not depend on: its errors and refusals are its own.
    pub fn for_optional_connections(&self) -> Self {
        Connector { limit_reached: Arc::default(), ..self.with_own_errors() }
    }

    /// Whether the broker has refused a connection during this time because a limit was reached.
    pub fn was_refused_by_limit(&self, during: Duration) -> bool {
        let reached = *self.limit_reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.is_some_and(|at| at.elapsed() < during)
    }

    /// Why the last attempt to connect failed; `None` if it succeeded.
    pub fn last_connect_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests to declare the topology again, for example because a new session has begun.
    pub fn redeclaration(&self) -> &Redeclaration {
        &self.redeclaration
    }

    /// Sets [`Connector::last_connect_error`].
    pub(super) fn record_error(&self, error: Option<String>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// How many channels the broker allowed on the latest connection (`channel_max`), and at most `limit`.
    pub(super) fn channels_up_to(&self, limit: usize) -> usize {
        limit.min(self.channel_limit.load(Ordering::Relaxed))
    }

    /// What remembers the limits of a new connection.
    pub(super) fn learn_limits(&self) -> impl Fn(&Connection) + Clone + Send + use<> {
        let channel_limit = Arc::clone(&self.channel_limit);
        move |connection| {
            let limit = match connection.channel_max {
                0 => usize::MAX,
                limit => usize::from(limit),
            };
            channel_limit.store(limit, Ordering::Relaxed);
        }
    }

    fn receive_limits(&self) -> ReceiveLimits {
        ReceiveLimits { max_body: self.broker.max_body, max_held: self.broker.max_unsettled_bytes }
    }

    /// Opens a connection with its one channel, to publish or consume on.
    pub(super) async fn open_channel(&self, purpose: &str) -> Result<Channel, ConnectError> {
        let opening = |address: &Address, credentials: &Credentials| {
            let (broker, address, credentials) = (Arc::clone(&self.broker), address.clone(), credentials.clone());
            let name = instance::connection_name(purpose);
            async move { protocol::connect(&broker, &address, &credentials, &name, Duration::ZERO).await }
        };
        let (connection, address) = self.connect_with(opening).await?;
        let in_use = self.addresses.position(&address).map(|index| self.addresses.occupy(index));
        let mut channel =
            Channel::open(connection, address, self.receive_limits()).await.map_err(ConnectError::Lost)?;
        channel.in_use = in_use;
        self.redeclaration.session_began();
        Ok(channel)
    }

    /// Connects with `open`, which opens a connection to one address. Records the error if that fails.
    pub(super) async fn connect_with<C, O, F>(&self, open: O) -> Result<(C, Address), ConnectError>
    where
        C: Send + 'static,
        O: Fn(&Address, &Credentials) -> F,
        F: Future<Output = Result<C, HandshakeError>> + Send + 'static,
    {
        let connected = self.connect_to_any(open).await;
        if let Err(ConnectError::Limit { .. }) = &connected {
            *self.limit_reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.record_error(connected.as_ref().err().map(|error| chain(error)));
        connected
    }

    /// The node at this address accepts connections and does not serve them, such as one that is cut off from its cluster. It is
    /// tried after the others for a while.
    pub(super) fn record_unusable(&self, address: &Address) {
        if let Some(index) = self.addresses.position(address) {
            self.addresses.record(index, false, Instant::now());
        }
    }

    pub(super) fn has_several_addresses(&self) -> bool {
        self.addresses.len() > 1
    }

    /// Whether the broker accepts connections at this address. Takes as long as a connection attempt at most.
    pub async fn is_reachable(&self, address: &Address) -> bool {
        let Some(index) = self.addresses.position(address) else { return false };
        let name = instance::connection_name("probe");
        let probing = async {
            let credentials = self.credentials().await.ok()?;
            let connection =
                protocol::connect(&self.broker, address, &credentials, &name, Duration::ZERO).await.ok()?;
            Connection::close(connection).await;
            Some(())
        };
        let reachable = matches!(timeout(self.broker.connect_timeout, probing).await, Ok(Some(())));
        self.addresses.record(index, reachable, Instant::now());
        reachable
    }

    /// Tries each address once within `connect_timeout`.
    async fn connect_to_any<C, O, F>(&self, open: O) -> Result<(C, Address), ConnectError>
    where
        C: Send + 'static,
        O: Fn(&Address, &Credentials) -> F,
        F: Future<Output = Result<C, HandshakeError>> + Send + 'static,
    {
        let broker = &self.broker;
        if broker.virtual_host.len() > MAX_SHORT_STRING {
            let problem = format!("the virtual host's name is longer than {MAX_SHORT_STRING} bytes");
            return Err(ConnectError::Invalid { problem });
        }
        let credentials = self.credentials().await?;
        let deadline = Instant::now() + broker.connect_timeout;
        let addresses = &self.addresses;
        let mut failure = None;
        for (turn, index) in addresses.order(self.avoid.as_ref(), Instant::now()).into_iter().enumerate() {
            let address = addresses.get(index);
            // Counts as a connection already, so that connections opened at the same time are spread too.
            let _opening = addresses.occupy(index);
            // The remaining time is divided evenly, so that a dead address leaves time for the others.
            let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - turn) as u32;
            let connected = self.connect_to(address, open(address, &credentials), &credentials, share).await;
            addresses.record(index, connected.is_ok(), Instant::now());
            match connected {
                Ok(connection) => return Ok((connection, address.clone())),
                // A permanent error, such as a refusal, explains more than an address that does not answer.
                Err(error) if failure.as_ref().is_none_or(|known: &ConnectError| !known.is_permanent()) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or(ConnectError::Invalid { problem: "there is no broker address".into() }))
    }

    /// Reads the TLS files. A disk may be slow, so they are read on a blocking thread.
    async fn credentials(&self) -> Result<Credentials, ConnectError> {
        let Some(source) = self.tls.clone() else { return Ok(Credentials::default()) };
        let reading = tokio::task::spawn_blocking(move || source.read()).await;
        let loaded = reading.expect("reading certificates does not panic and is not cancelled");
        let loaded = loaded.map_err(ConnectError::File)?;
        Ok(Credentials { connector: Some(TlsConnector::from(loaded.config)), identity: loaded.identity })
    }

    async fn connect_to<C: Send + 'static>(
        &self,
        address: &Address,
        opening: impl Future<Output = Result<C, HandshakeError>> + Send + 'static,
        credentials: &Credentials,
        share: Duration,
    ) -> Result<C, ConnectError> {
        let deadline = Instant::now() + share;
        let mut opening = tokio::spawn(opening);
        // A quarter of the time is kept for `diagnose`.
        match timeout(share * 3 / 4, &mut opening).await {
            Ok(Ok(Ok(connection))) => return Ok(connection),
            // The broker says why. It may accept the next connection, if a limit was reached.
            Ok(Ok(Err(refused @ (HandshakeError::Refused { .. } | HandshakeError::Dropped { .. })))) => {
                return Err(self.explain(refused, address.clone(), credentials));
            }
            Ok(_failed_or_panicked) => {}
            // Unlike requests on an open connection, a handshake is safe to abort: until it is complete, no task of the
            // client library depends on it. Without the abort, it would wait forever for a frozen broker.
            Err(_) => opening.abort(),
        }
        let time_left = deadline.saturating_duration_since(Instant::now());
        Err(self.diagnose(address, credentials, time_left).await)
    }

    /// Finds out why a connection to `address` failed, by trying the handshake once more.
    async fn diagnose(&self, address: &Address, credentials: &Credentials, time_left: Duration) -> ConnectError {
        let name = instance::connection_name("diagnose");
        let handshake = protocol::connect(&self.broker, address, credentials, &name, time_left);
        let address = address.clone();
        match timeout(time_left, handshake).await {
            Err(_) => ConnectError::TimedOut { address, after: self.broker.connect_timeout },
            Ok(Err(error)) => self.explain(error, address, credentials),
            // It succeeds now, so the cause of the first failure was temporary.
            Ok(Ok(connection)) => {
                Connection::close(connection).await;
                ConnectError::Lost(ConnectionEnd::Broken)
            }
        }
    }

    fn explain(&self, error: HandshakeError, address: Address, credentials: &Credentials) -> ConnectError {
        match error {
            HandshakeError::Io(source) => ConnectError::Unreachable { address, source },
            HandshakeError::Dropped { sent, source } => ConnectError::Dropped { address, sent, source },
            HandshakeError::Tls(error) => ConnectError::Tls { address, error },
            HandshakeError::ExpectsTls => ConnectError::ExpectsTls { address },
            HandshakeError::MechanismNotOffered { wanted, offered } => {
                ConnectError::Mechanism { address, wanted, offered }
            }
            HandshakeError::Refused { code: ACCESS_REFUSED, text: reply } => {
                let who = match (self.broker.mechanism, &credentials.identity) {
                    (Mechanism::External, Some(identity)) => format!("the certificate of {identity}"),
                    (Mechanism::External, None) | (Mechanism::Plain, _) => format!("user {:?}", self.broker.username),
                };
                ConnectError::Credentials { address, who, reply }
            }
            // The broker uses the same code when a connection limit is reached, which is temporary. Only the text differs.
            HandshakeError::Refused { code: NOT_ALLOWED, text: reply } if !reply.contains(CONNECTION_LIMIT) => {
                ConnectError::VirtualHost { address, virtual_host: self.broker.virtual_host.clone(), reply }
            }
            HandshakeError::Refused { code: NOT_ALLOWED, text: reply } => ConnectError::Limit { address, reply },
            HandshakeError::Refused { code, text: reply } => ConnectError::Refused { address, code, reply },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::fake_broker::FakeBroker;
    use crate::amqp::protocol::Method;
    use crate::config::Secret;

    async fn dropped(broker: &FakeBroker, methods: &[Method<'_>]) -> String {
        let connector = broker.connector();
        let (error, ()) = tokio::join!(connector.open_channel("test"), broker.drop_next(methods));
        match error.err() {
            Some(error @ ConnectError::Dropped { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_broker_that_drops_the_connection_without_a_reason_is_shown_with_what_it_was_sent() {
        let mut broker = FakeBroker::new(&[]).await;
        let start = Method::ConnectionStart { server_properties: &[], mechanisms: "PLAIN".into() };
        let tune = |frame_max| Method::ConnectionTune { channel_max: 7, frame_max, heartbeat: 0 };
        let error = dropped(&broker, &[start.clone(), tune(4096)]).await;
        assert!(error.contains("frame_max 4096, channel_max 7, heartbeat 300") && error.contains("8192"), "{error}");
        let error = dropped(&broker, &[start.clone(), tune(131_072)]).await;
        assert!(error.contains("frame_max 131072") && !error.contains("8192"), "{error}");
        let error = dropped(&broker, std::slice::from_ref(&start)).await;
        assert!(error.contains("credentials") && !error.contains("bytes"), "{error}");
        broker.config.password = Secret::new("x".repeat(5_000));
        let error = dropped(&broker, &[start]).await;
        assert!(error.contains("bytes") && error.contains("initial_frame_max") && !error.contains("xxx"), "{error}");
    }
}
