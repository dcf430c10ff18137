//! Connecting: addresses, timeouts, and a precise word on why it failed.
//!
//! Owns the opening and closing of connections and their one channel. Never retries: callers back off.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amqprs::channel::Channel;
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::security::SecurityCredentials;
use amqprs::tls::TlsAdaptor;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::callbacks::{ChannelWatch, ConnectionWatch};
use super::epoch::{ANSWER_TIMEOUT, ConnectionEnd, Epoch};
use super::handshake::{self, Refusal, Session};
use crate::chain::chain;
use crate::config::{Address, Broker, Mechanism};
use crate::instance;
use crate::tls::{Identity, TlsError, TlsFileError, TlsReloader};

/// AMQP's bound for exchange, queue and virtual host names, routing keys and other short strings, in bytes.
pub(super) const SHORT_STRING: usize = 255;

/// RabbitMQ's reply code for credentials it does not accept.
const ACCESS_REFUSED: u16 = 403;
/// RabbitMQ's reply code for a virtual host that does not exist or that the user may not use.
const NOT_ALLOWED: u16 = 530;
/// How its words end where a virtual host, a user or a node has no more connections to give, under the same code.
const LIMIT_REACHED: &str = "is reached";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there, or what answers does not speak AMQP.
    #[error("cannot reach the broker at {address}")]
    Unreachable {
        /// The last address tried.
        address: Address,
        /// What the network said.
        #[source]
        source: io::Error,
    },
    /// No connection came about in time.
    #[error("the broker at {address} did not complete the handshake within {} s", .after.as_secs_f64())]
    TimedOut {
        /// The last address tried.
        address: Address,
        /// `broker.connect_timeout`.
        after: Duration,
    },
    /// There is no TLS with the broker.
    #[error("no TLS with the broker at {address} by [broker.tls]: {fault}")]
    Tls {
        /// The last address tried.
        address: Address,
        /// Why not.
        fault: TlsError,
    },
    /// The broker answers in TLS, and we do not ask in it.
    #[error("the broker at {address} speaks TLS on this port: add [broker.tls], or give the port of plain AMQP")]
    WantsTls {
        /// Who answered.
        address: Address,
    },
    /// A file with certificates or a key cannot be used.
    #[error("broker.tls.{0}")]
    File(TlsFileError),
    /// The broker does not let anybody say who they are the way we do.
    #[error(
        "the broker at {address} does not offer the mechanism {wanted} that broker.mechanism asks for, but {offered}: \
         EXTERNAL needs its plugin rabbitmq_auth_mechanism_ssl, EXTERNAL among its auth_mechanisms, and \
         ssl_options.verify = verify_peer"
    )]
    Mechanism {
        /// Who answered.
        address: Address,
        /// `PLAIN` or `EXTERNAL`.
        wanted: &'static str,
        /// What the broker offers.
        offered: String,
    },
    /// The broker does not accept this user name and password, or this certificate.
    #[error("the broker at {address} refuses {who}: {reply}")]
    Credentials {
        /// Who refused.
        address: Address,
        /// The user of `broker.username`, or the certificate.
        who: String,
        /// The broker's words.
        reply: String,
    },
    /// The virtual host does not exist, or the user may not use it.
    #[error("the broker at {address} refuses virtual host {virtual_host:?}: {reply}")]
    VirtualHost {
        /// Who refused.
        address: Address,
        /// `broker.virtual_host`.
        virtual_host: String,
        /// The broker's words.
        reply: String,
    },
    /// The broker refuses the connection for another reason, such as a connection limit.
    #[error("the broker at {address} refuses the connection: {code} {reply}")]
    Refused {
        /// Who refused.
        address: Address,
        /// AMQP reply code.
        code: u16,
        /// The broker's words.
        reply: String,
    },
    /// A configured value does not fit AMQP.
    #[error("cannot connect: {problem}")]
    Invalid {
        /// Which.
        problem: String,
    },
    /// The connection ended while it was being set up.
    #[error("the new connection to the broker was lost")]
    Lost(#[source] ConnectionEnd),
}

impl ConnectError {
    /// Whether only a person can help, so that trying again is pointless.
    pub fn is_permanent(&self) -> bool {
        match self {
            ConnectError::Tls { fault, .. } => fault.is_permanent(),
            ConnectError::WantsTls { .. }
            | ConnectError::File(_)
            | ConnectError::Mechanism { .. }
            | ConnectError::Credentials { .. }
            | ConnectError::VirtualHost { .. }
            | ConnectError::Invalid { .. } => true,
            ConnectError::Unreachable { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Refused { .. }
            | ConnectError::Lost(_) => false,
        }
    }
}

/// The way to the broker: opens subscriptions, publishers and declarations. A clone shares the configuration.
#[derive(Debug, Clone)]
pub struct Connector {
    pub(super) broker: Arc<Broker>,
    /// Certificates and key, read again for each connection.
    tls: Option<Arc<TlsReloader>>,
    /// Why the last attempt to connect failed, if it did.
    trouble: Arc<Mutex<Option<String>>>,
}

/// Who and how one attempt to connect is made.
#[derive(Clone, Default)]
pub(super) struct Credentials {
    /// By which TLS; `None`: without.
    pub connector: Option<TlsConnector>,
    /// Who we are to it.
    pub identity: Option<Identity>,
}

impl Connector {
    /// Knows the way; connects only when asked to.
    pub fn new(broker: Broker) -> Self {
        let tls = broker.tls.as_ref().map(|tls| Arc::new(TlsReloader::new("broker.tls", tls.files.clone())));
        Connector { broker: Arc::new(broker), tls, trouble: Arc::default() }
    }

    /// Why the last attempt to connect failed; `None` if it did not.
    pub fn last_connect_error(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens a connection of the client library, and remembers why there is none.
    pub(super) async fn connect(&self, purpose: &str) -> Result<Connection, ConnectError> {
        let opening = |address: &Address, credentials: &Credentials| {
            let arguments = self.arguments(address, purpose, credentials);
            async move { Connection::open(&arguments).await.ok() }
        };
        self.connect_by(opening).await.map(|(connection, _)| connection)
    }

    /// Opens a connection that orderd itself speaks on, and remembers why there is none.
    pub(super) async fn session(&self, purpose: &str) -> Result<(Session, Address), ConnectError> {
        let opening = |address: &Address, credentials: &Credentials| {
            let (broker, address, credentials) = (Arc::clone(&self.broker), address.clone(), credentials.clone());
            let name = instance::connection_name(purpose);
            async move { handshake::open(&broker, &address, &credentials, &name, Duration::ZERO).await.ok() }
        };
        self.connect_by(opening).await
    }

    async fn connect_by<C, O, F>(&self, opening: O) -> Result<(C, Address), ConnectError>
    where
        C: Send + 'static,
        O: Fn(&Address, &Credentials) -> F,
        F: Future<Output = Option<C>> + Send + 'static,
    {
        let connected = self.connect_to_any(opening).await;
        self.note(connected.as_ref().err().map(|error| chain(error)));
        connected
    }

    /// Remembers what keeps us from working, for the status.
    pub(super) fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Opens a connection that the broker's management pages show with its purpose and this instance: one round over
    /// all addresses, from a random one on, within `connect_timeout`.
    async fn connect_to_any<C, O, F>(&self, opening: O) -> Result<(C, Address), ConnectError>
    where
        C: Send + 'static,
        O: Fn(&Address, &Credentials) -> F,
        F: Future<Output = Option<C>> + Send + 'static,
    {
        let broker = &self.broker;
        if broker.virtual_host.len() > SHORT_STRING {
            let problem = format!("the virtual host's name is longer than {SHORT_STRING} bytes");
            return Err(ConnectError::Invalid { problem });
        }
        let credentials = self.credentials().await?;
        let deadline = Instant::now() + broker.connect_timeout;
        let count = broker.addresses.len();
        let first = fastrand::usize(..count.max(1));
        let mut failure = None;
        for turn in 0..count {
            let address = &broker.addresses[(first + turn) % count];
            // What is left is shared evenly, so that a dead address leaves time for the others.
            let share = deadline.saturating_duration_since(Instant::now()) / (count - turn) as u32;
            match self.connect_to(address, opening(address, &credentials), &credentials, share).await {
                Ok(connection) => return Ok((connection, address.clone())),
                // A refusal tells a person more than a dead address does.
                Err(error) if failure.as_ref().is_none_or(|known: &ConnectError| !known.is_permanent()) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or(ConnectError::Invalid { problem: "there is no broker address".into() }))
    }

    /// What the files of TLS say now. A disk may be slow, so they are read aside.
    async fn credentials(&self) -> Result<Credentials, ConnectError> {
        let Some(source) = self.tls.clone() else { return Ok(Credentials::default()) };
        let reading = tokio::task::spawn_blocking(move || source.read()).await;
        let loaded = reading.expect("reading certificates neither panics nor is it cancelled");
        let loaded = loaded.map_err(ConnectError::File)?;
        Ok(Credentials { connector: Some(TlsConnector::from(loaded.config)), identity: loaded.identity })
    }

    async fn connect_to<C: Send + 'static>(
        &self,
        address: &Address,
        opening: impl Future<Output = Option<C>> + Send + 'static,
        credentials: &Credentials,
        share: Duration,
    ) -> Result<C, ConnectError> {
        let deadline = Instant::now() + share;
        let mut opening = tokio::spawn(opening);
        // A quarter of the time is kept for asking what is wrong.
        match timeout(share * 3 / 4, &mut opening).await {
            Ok(Ok(Some(connection))) => return Ok(connection),
            Ok(_failed_or_panicked) => {}
            // Unlike requests on an open connection, a handshake is safe to abort: until it is through, no
            // task of the library knows of it. Left alone it would wait forever for a frozen broker.
            Err(_) => opening.abort(),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        Err(self.explain(address, credentials, left).await)
    }

    /// Why a connection to `address` failed.
    async fn explain(&self, address: &Address, credentials: &Credentials, left: Duration) -> ConnectError {
        let name = instance::connection_name("inquire");
        let asked = timeout(left, handshake::open(&self.broker, address, credentials, &name, left)).await;
        let address = address.clone();
        match asked {
            Err(_) => ConnectError::TimedOut { address, after: self.broker.connect_timeout },
            Ok(Err(Refusal::Io(source))) => ConnectError::Unreachable { address, source },
            Ok(Err(Refusal::Tls(fault))) => ConnectError::Tls { address, fault },
            Ok(Err(Refusal::WantsTls)) => ConnectError::WantsTls { address },
            Ok(Err(Refusal::NotOffered { wanted, offered })) => ConnectError::Mechanism { address, wanted, offered },
            Ok(Err(Refusal::Refused { code: ACCESS_REFUSED, text: reply })) => {
                let who = match (self.broker.mechanism, &credentials.identity) {
                    (Mechanism::External, Some(identity)) => format!("the certificate of {identity}"),
                    (Mechanism::External, None) | (Mechanism::Plain, _) => format!("user {:?}", self.broker.username),
                };
                ConnectError::Credentials { address, who, reply }
            }
            // The broker has one code for both, and only its words tell them apart. Connections end, and then there is room.
            Ok(Err(Refusal::Refused { code: NOT_ALLOWED, text: reply })) if reply.ends_with(LIMIT_REACHED) => {
                ConnectError::Refused { address, code: NOT_ALLOWED, reply }
            }
            Ok(Err(Refusal::Refused { code: NOT_ALLOWED, text: reply })) => {
                ConnectError::VirtualHost { address, virtual_host: self.broker.virtual_host.clone(), reply }
            }
            Ok(Err(Refusal::Refused { code, text: reply })) => ConnectError::Refused { address, code, reply },
            // It lets us in now: the first attempt met a moment of weakness.
            Ok(Ok(session)) => {
                session.hang_up().await;
                ConnectError::Lost(ConnectionEnd::Broke)
            }
        }
    }

    fn arguments(&self, address: &Address, purpose: &str, credentials: &Credentials) -> OpenConnectionArguments {
        let broker = &self.broker;
        // The library joins host and port with a colon, so IPv6 needs its brackets.
        let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
        let heartbeat = u16::try_from(broker.heartbeat.as_secs()).unwrap_or(u16::MAX);
        let mut arguments =
            OpenConnectionArguments::new(&host, address.port, &broker.username, broker.password.expose());
        arguments
            .virtual_host(&broker.virtual_host)
            .connection_name(&instance::connection_name(purpose))
            .heartbeat(heartbeat);
        if broker.mechanism == Mechanism::External {
            arguments.credentials(SecurityCredentials::new_external());
        }
        if let Some(connector) = credentials.connector.clone() {
            arguments.tls_adaptor(TlsAdaptor::new(connector, server_name(broker, address).to_owned()));
        }
        arguments.finish()
    }
}

/// The name that the broker's certificate must have.
pub(super) fn server_name<'a>(broker: &'a Broker, address: &'a Address) -> &'a str {
    broker.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).unwrap_or(&address.host)
}

/// A connection of the client library with its one channel. Dropping it closes both in the background, as well as may be.
pub(super) struct Wire {
    // Dropped in this order: the channel before its connection.
    pub channel: Channel,
    connection: Connection,
}

impl Wire {
    /// Connects and opens the channel, both watched for `epoch`.
    pub async fn open(link: &Connector, purpose: &str, epoch: &Arc<Epoch>) -> Result<Wire, ConnectError> {
        let connection = link.connect(purpose).await?;
        let (watch, channel_watch) = (ConnectionWatch::new(epoch), ChannelWatch::new(epoch));
        let opening = {
            let connection = connection.clone();
            async move {
                connection.register_callback(watch).await?;
                let channel = connection.open_channel(None).await?;
                channel.register_callback(channel_watch).await?;
                Ok(channel)
            }
        };
        let channel = epoch.ask("channel.open", opening).await.map_err(ConnectError::Lost)?;
        Ok(Wire { channel, connection })
    }

    /// Closes the channel, then the connection.
    pub async fn close(self, epoch: &Epoch) {
        let Wire { channel, connection } = self;
        let alive = !epoch.is_over();
        epoch.end(ConnectionEnd::Closed);
        if alive {
            let _ = epoch.ask("channel.close", channel.close()).await;
        }
        close_connection(connection).await;
    }
}

/// Opens one more channel, watched for an epoch of its own.
pub(super) async fn open_channel(connection: &Connection) -> Result<(Channel, Arc<Epoch>), ConnectionEnd> {
    let epoch = Epoch::begin();
    let (connection, watch) = (connection.clone(), ChannelWatch::new(&epoch));
    let opening = async move {
        let channel = connection.open_channel(None).await?;
        channel.register_callback(watch).await?;
        Ok(channel)
    };
    let channel = epoch.ask("channel.open", opening).await?;
    Ok((channel, epoch))
}

/// Closes a connection whose channels are done. Its answer tells nothing that would change anything.
pub(super) async fn close_connection(connection: Connection) {
    let _ = timeout(ANSWER_TIMEOUT, tokio::spawn(connection.close())).await;
}
