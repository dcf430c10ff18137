//! Connecting: addresses, timeouts, and a precise word on why it failed.
//!
//! Owns the opening and closing of connections and their one channel. Never retries: callers back off.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use amqprs::channel::Channel;
use amqprs::connection::{Connection, OpenConnectionArguments};
use tokio::time::{Instant, timeout};

use super::callbacks::{ChannelWatch, Confirms, ConnectionWatch};
use super::epoch::{ANSWER_TIMEOUT, Epoch, EpochEnd};
use super::inquire::{Verdict, inquire};
use crate::config::{Address, Broker};
use crate::instance;

/// AMQP's bound for exchange, queue and virtual host names, routing keys and other short strings, in bytes.
pub(super) const SHORT_STRING: usize = 255;

/// RabbitMQ's reply code for credentials it does not accept.
const ACCESS_REFUSED: u16 = 403;
/// RabbitMQ's reply code for a virtual host that does not exist or that the user may not use.
const NOT_ALLOWED: u16 = 530;

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
    /// The broker does not accept this user name and password.
    #[error("the broker at {address} refuses user {username:?}: {reply}")]
    Credentials {
        /// Who refused.
        address: Address,
        /// `broker.username`.
        username: String,
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
    Lost(#[source] EpochEnd),
}

impl ConnectError {
    /// Whether only a person can help, so that trying again is pointless.
    pub fn is_permanent(&self) -> bool {
        match self {
            ConnectError::Credentials { .. } | ConnectError::VirtualHost { .. } | ConnectError::Invalid { .. } => true,
            ConnectError::Unreachable { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Refused { .. }
            | ConnectError::Lost(_) => false,
        }
    }
}

/// The way to the broker: opens subscriptions, publishers and declarations. A clone shares the configuration.
#[derive(Debug, Clone)]
pub struct Link {
    pub(super) broker: Arc<Broker>,
}

impl Link {
    /// Knows the way; connects only when asked to.
    pub fn new(broker: Broker) -> Self {
        Link { broker: Arc::new(broker) }
    }

    /// Opens a connection that the broker's management pages show with its purpose and this instance: one round over
    /// all addresses, from a random one on, within `connect_timeout`.
    pub(super) async fn connect(&self, purpose: &str) -> Result<(Connection, Address), ConnectError> {
        let broker = &self.broker;
        if broker.virtual_host.len() > SHORT_STRING {
            let problem = format!("the virtual host's name is longer than {SHORT_STRING} bytes");
            return Err(ConnectError::Invalid { problem });
        }
        let deadline = Instant::now() + broker.connect_timeout;
        let count = broker.addresses.len();
        let first = fastrand::usize(..count.max(1));
        let mut failure = None;
        for turn in 0..count {
            let address = &broker.addresses[(first + turn) % count];
            // What is left is shared evenly, so that a dead address leaves time for the others.
            let share = deadline.saturating_duration_since(Instant::now()) / (count - turn) as u32;
            match self.connect_to(address, purpose, share).await {
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

    async fn connect_to(&self, address: &Address, purpose: &str, share: Duration) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + share;
        let arguments = self.arguments(address, purpose);
        let mut opening = tokio::spawn(async move { Connection::open(&arguments).await });
        // A quarter of the time is kept for asking what is wrong.
        match timeout(share * 3 / 4, &mut opening).await {
            Ok(Ok(Ok(connection))) => return Ok(connection),
            Ok(_failed_or_panicked) => {}
            // Unlike requests on an open connection, a handshake is safe to abort: until it is through, no
            // task of the library knows of it. Left alone it would wait forever for a frozen broker.
            Err(_) => opening.abort(),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        Err(self.explain(address, left).await)
    }

    /// Why a connection to `address` failed.
    async fn explain(&self, address: &Address, left: Duration) -> ConnectError {
        let address = address.clone();
        match timeout(left, inquire(&self.broker, &address)).await {
            Err(_) => ConnectError::TimedOut { address, after: self.broker.connect_timeout },
            Ok(Err(source)) => ConnectError::Unreachable { address, source },
            Ok(Ok(Verdict::Refused { code: ACCESS_REFUSED, text: reply })) => {
                ConnectError::Credentials { address, username: self.broker.username.clone(), reply }
            }
            Ok(Ok(Verdict::Refused { code: NOT_ALLOWED, text: reply })) => {
                ConnectError::VirtualHost { address, virtual_host: self.broker.virtual_host.clone(), reply }
            }
            Ok(Ok(Verdict::Refused { code, text: reply })) => ConnectError::Refused { address, code, reply },
            // It would let us in now: the first attempt met a moment of weakness.
            Ok(Ok(Verdict::Welcome)) => ConnectError::Lost(EpochEnd::Broke),
        }
    }

    fn arguments(&self, address: &Address, purpose: &str) -> OpenConnectionArguments {
        let broker = &self.broker;
        // The library joins host and port with a colon, so IPv6 needs its brackets.
        let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
        let heartbeat = u16::try_from(broker.heartbeat.as_secs()).unwrap_or(u16::MAX);
        OpenConnectionArguments::new(&host, address.port, &broker.username, broker.password.expose())
            .virtual_host(&broker.virtual_host)
            .connection_name(&instance::connection_name(purpose))
            .heartbeat(heartbeat)
            .finish()
    }
}

/// A connection with its one channel. Dropping it closes both in the background, as well as may be.
pub(super) struct Wire {
    // Dropped in this order: the channel before its connection.
    pub channel: Channel,
    connection: Connection,
    /// Where it leads.
    pub address: Address,
}

impl Wire {
    /// Connects and opens the channel, both watched for `epoch`.
    pub async fn open<C: Confirms>(
        link: &Link,
        purpose: &str,
        epoch: &Arc<Epoch>,
        confirms: C,
    ) -> Result<Wire, ConnectError> {
        let (connection, address) = link.connect(purpose).await?;
        let (watch, channel_watch) = (ConnectionWatch::new(epoch), ChannelWatch::new(epoch, confirms));
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
        Ok(Wire { channel, connection, address })
    }

    /// Closes the channel, then the connection. Whatever had to reach the broker must have been confirmed
    /// before: frames still queued are not waited for.
    pub async fn close(self, epoch: &Epoch) {
        let Wire { channel, connection, address: _ } = self;
        let alive = !epoch.is_over();
        epoch.end(EpochEnd::Closed);
        if alive {
            let _ = epoch.ask("channel.close", channel.close()).await;
        }
        close_connection(connection).await;
    }
}

/// Closes a connection whose channels are done. Its answer tells nothing that would change anything.
pub(super) async fn close_connection(connection: Connection) {
    let _ = timeout(ANSWER_TIMEOUT, tokio::spawn(connection.close())).await;
}
