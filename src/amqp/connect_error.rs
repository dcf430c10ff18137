//! Why there is no connection to the broker.
//!
//! Owns the error type and which of its variants are permanent. Never decides what to do about them.

use std::io;
use std::time::Duration;

use super::lifetime::ConnectionEnd;
use super::protocol::LastSent;
use crate::config::Address;
use crate::tls::{TlsError, TlsFileError};

/// RabbitMQ's reply code for a queue or exchange that does not exist.
const NOT_FOUND: u16 = 404;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there, or what answers does not speak AMQP.
    #[error("cannot reach the broker at {address}")]
    Unreachable {
        /// The last address tried.
        address: Address,
        /// The network error.
        #[source]
        source: io::Error,
    },
    /// The broker ended the connection during the handshake, without a reason.
    #[error("the broker at {address} gave no reason, but ended the connection when it was sent {sent}")]
    Dropped {
        /// The broker's address.
        address: Address,
        /// What it may not accept.
        sent: LastSent,
        /// The network error.
        #[source]
        source: io::Error,
    },
    /// The handshake did not finish in time.
    #[error("the broker at {address} did not complete the handshake within {} s", .after.as_secs_f64())]
    TimedOut {
        /// The last address tried.
        address: Address,
        /// `broker.connect_timeout`.
        after: Duration,
    },
    /// TLS failed.
    #[error("cannot establish TLS with the broker at {address}: {error}; check [broker.tls]")]
    Tls {
        /// The last address tried.
        address: Address,
        /// Why.
        error: TlsError,
    },
    /// The broker expects TLS on this port, and orderd is not configured for it.
    #[error("the broker at {address} speaks TLS on this port: add [broker.tls], or use the port for AMQP without TLS")]
    ExpectsTls {
        /// The broker's address.
        address: Address,
    },
    /// A file with certificates or a key cannot be used.
    #[error("broker.tls.{0}")]
    File(TlsFileError),
    /// The broker does not offer the configured authentication mechanism.
    #[error(
        "the broker at {address} does not offer the mechanism {wanted} set by broker.mechanism, but only {offered}: \
         EXTERNAL needs the plugin rabbitmq_auth_mechanism_ssl, EXTERNAL in auth_mechanisms, and \
         ssl_options.verify = verify_peer"
    )]
    Mechanism {
        /// The broker's address.
        address: Address,
        /// `PLAIN` or `EXTERNAL`.
        wanted: &'static str,
        /// What the broker offers.
        offered: String,
    },
    /// The broker does not accept this user name and password, or this certificate.
    #[error("the broker at {address} refuses {who}: {reply}")]
    Credentials {
        /// The broker's address.
        address: Address,
        /// The user of `broker.username`, or the certificate.
        who: String,
        /// The broker's reply text.
        reply: String,
    },
    /// The virtual host does not exist, or the user may not access it.
    #[error("the broker at {address} refuses virtual host {virtual_host:?}: {reply}")]
    VirtualHost {
        /// The broker's address.
        address: Address,
        /// `broker.virtual_host`.
        virtual_host: String,
        /// The broker's reply text.
        reply: String,
    },
    /// A limit of the broker on connections is reached.
    #[error(
        "the broker at {address} refuses the connection: {reply}; raise the limit of the virtual host, the user or the node: \
         orderd needs one connection for each consumer, two for dead letters, one for publishing, and for a moment one more \
         to declare"
    )]
    Limit {
        /// The broker's address.
        address: Address,
        /// The broker's reply text, which has the limit.
        reply: String,
    },
    /// The broker refuses the connection for another reason.
    #[error("the broker at {address} refuses the connection: {code} {reply}")]
    Refused {
        /// The broker's address.
        address: Address,
        /// AMQP reply code.
        code: u16,
        /// The broker's reply text.
        reply: String,
    },
    /// A configured value exceeds a limit of AMQP.
    #[error("cannot connect: {problem}")]
    Invalid {
        /// Which value, and why.
        problem: String,
    },
    /// The broker has an alarm, so that it answers nothing on a connection that has published.
    #[error(
        "the broker has blocked publishing: it has an alarm ({reason}); it continues once it has memory and disk space again, \
         see `rabbitmq-diagnostics alarms`"
    )]
    Blocked {
        /// The broker's reason, such as `low on memory`.
        reason: String,
    },
    /// The connection ended while it was being set up.
    #[error("the new connection to the broker was lost")]
    Lost(#[source] ConnectionEnd),
}

impl ConnectError {
    /// Whether the broker closed the channel because the queue or exchange does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ConnectError::Lost(ConnectionEnd::ChannelClosed { code: NOT_FOUND, .. }))
    }

    /// Whether trying again is pointless until someone changes the configuration or the broker.
    pub fn is_permanent(&self) -> bool {
        match self {
            ConnectError::Tls { error, .. } => error.is_permanent(),
            ConnectError::ExpectsTls { .. }
            | ConnectError::File(_)
            | ConnectError::Mechanism { .. }
            | ConnectError::Credentials { .. }
            | ConnectError::VirtualHost { .. }
            | ConnectError::Invalid { .. } => true,
            ConnectError::Unreachable { .. }
            | ConnectError::Dropped { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Refused { .. }
            | ConnectError::Limit { .. }
            | ConnectError::Blocked { .. }
            | ConnectError::Lost(_) => false,
        }
    }
}
