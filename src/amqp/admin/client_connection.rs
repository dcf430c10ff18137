//! Opens and closes connections of the client library, and notices when one ends.
//!
//! Never leaves one open: when a [`ClientConnection`] is dropped, the library closes it in the background.

use std::sync::Arc;
use std::time::Duration;

use amqprs::channel::Channel;
use amqprs::connection::Connection;
use tokio::time::timeout;
use tracing::warn;

use super::callbacks::ChannelWatch;
use super::relay;
use super::request::request;
use crate::amqp::connect::Connector;
use crate::amqp::connect_error::ConnectError;
use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime, REPLY_TIMEOUT};
use crate::amqp::protocol::{self, Credentials};
use crate::config::Address;
use crate::instance;

impl Connector {
    /// Opens a connection of the client library. Its name, which the management UI shows, contains `purpose`.
    pub(super) async fn open_client(&self, purpose: &str) -> Result<ClientConnection, ConnectError> {
        let opening = |address: &Address, credentials: &Credentials| {
            let (broker, address, credentials) = (Arc::clone(&self.broker), address.clone(), credentials.clone());
            let (name, learn_limits) = (instance::connection_name(purpose), self.learn_limits());
            async move {
                let connection = protocol::connect(&broker, &address, &credentials, &name, Duration::ZERO).await?;
                learn_limits(&connection);
                let opened = relay::open(connection).await;
                // The next handshake with the broker itself succeeds, and so does not show the cause.
                Ok(opened.inspect_err(|error| warn!(%error, "cannot connect the client library over loopback"))?)
            }
        };
        let ((connection, lifetime), _) = self.connect_with(opening).await?;
        Ok(ClientConnection { connection, lifetime })
    }
}

/// A connection of the client library.
pub struct ClientConnection {
    connection: Connection,
    /// Ends when the connection does, with the broker's reason.
    pub lifetime: Arc<ConnectionLifetime>,
}

impl ClientConnection {
    /// Opens a channel that has a lifetime of its own.
    ///
    /// # Errors
    /// Why the channel or, if the broker closed that, the connection ended.
    pub async fn open_channel(&self) -> Result<(Channel, Arc<ConnectionLifetime>), ConnectionEnd> {
        let lifetime = ConnectionLifetime::begin();
        let (connection, watch) = (self.connection.clone(), ChannelWatch::new(&lifetime));
        let opening = async move {
            let channel = connection.open_channel(None).await?;
            channel.register_callback(watch).await?;
            Ok(channel)
        };
        let channel = request(&lifetime, "channel.open", opening).await.map_err(|end| self.reason(end))?;
        Ok((channel, lifetime))
    }

    /// Why a request on a channel failed, given how the channel ended: the broker may have closed the whole connection.
    pub fn reason(&self, of_channel: ConnectionEnd) -> ConnectionEnd {
        match of_channel {
            ConnectionEnd::Broken if self.lifetime.has_ended() => self.lifetime.reason(),
            other => other,
        }
    }

    /// Closes the connection, whose channels are no longer used. Failures are ignored, because nothing depends on the close.
    pub async fn close(self) {
        self.lifetime.end(ConnectionEnd::ClosedByUs);
        let _ = timeout(REPLY_TIMEOUT, tokio::spawn(self.connection.close())).await;
    }
}
