//! Opens and closes connections of the client library, and notices when one ends.
//!
//! Never leaves one open: when a [`ClientConnection`] is dropped, the library closes it in the background.

use std::sync::Arc;
use std::time::Duration;

use amqprs::channel::Channel;
use amqprs::connection::Connection;
use tokio::time::timeout;
use tracing::warn;

use super::callbacks::{ChannelWatch, ConnectionWatch};
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
    pub(super) async fn open_client(&self, purpose: &str) -> Result<Connection, ConnectError> {
        let opening = |address: &Address, credentials: &Credentials| {
            let (broker, address, credentials) = (Arc::clone(&self.broker), address.clone(), credentials.clone());
            let (name, learn_limits) = (instance::connection_name(purpose), self.learn_limits());
            async move {
                let connection =
                    protocol::connect(&broker, &address, &credentials, &name, Duration::ZERO).await.ok()?;
                learn_limits(&connection);
                let opened = relay::open(connection).await;
                // The next handshake with the broker itself succeeds, and so does not show the cause.
                opened.inspect_err(|error| warn!(%error, "cannot connect the client library over loopback")).ok()
            }
        };
        self.connect_with(opening).await.map(|(connection, _)| connection)
    }
}

/// A connection of the client library with one channel.
pub struct ClientConnection {
    // Dropped in this order: the channel before its connection.
    pub channel: Channel,
    connection: Connection,
}

impl ClientConnection {
    /// Connects and opens the channel. The end of either ends `lifetime`.
    pub async fn open(
        connector: &Connector,
        purpose: &str,
        lifetime: &Arc<ConnectionLifetime>,
    ) -> Result<ClientConnection, ConnectError> {
        let connection = connector.open_client(purpose).await?;
        let (watch, channel_watch) = (ConnectionWatch::new(lifetime), ChannelWatch::new(lifetime));
        let opening = {
            let connection = connection.clone();
            async move {
                connection.register_callback(watch).await?;
                let channel = connection.open_channel(None).await?;
                channel.register_callback(channel_watch).await?;
                Ok(channel)
            }
        };
        let channel = request(lifetime, "channel.open", opening).await.map_err(ConnectError::Lost)?;
        Ok(ClientConnection { channel, connection })
    }

    /// Closes the channel, then the connection.
    pub async fn close(self, lifetime: &ConnectionLifetime) {
        let ClientConnection { channel, connection } = self;
        let usable = !lifetime.has_ended();
        lifetime.end(ConnectionEnd::ClosedByUs);
        if usable {
            let _ = request(lifetime, "channel.close", channel.close()).await;
        }
        close(connection).await;
    }
}

/// Makes `lifetime` end when the connection ends.
pub async fn watch(connection: &Connection, lifetime: &Arc<ConnectionLifetime>) -> Result<(), ConnectionEnd> {
    let (connection, watch) = (connection.clone(), ConnectionWatch::new(lifetime));
    request(lifetime, "connection", async move { connection.register_callback(watch).await }).await
}

/// Opens a channel that has a lifetime of its own.
pub async fn open_channel(connection: &Connection) -> Result<(Channel, Arc<ConnectionLifetime>), ConnectionEnd> {
    let lifetime = ConnectionLifetime::begin();
    let (connection, watch) = (connection.clone(), ChannelWatch::new(&lifetime));
    let opening = async move {
        let channel = connection.open_channel(None).await?;
        channel.register_callback(watch).await?;
        Ok(channel)
    };
    let channel = request(&lifetime, "channel.open", opening).await?;
    Ok((channel, lifetime))
}

/// Closes a connection whose channels are no longer used. Failures are ignored, because nothing depends on the close.
pub async fn close(connection: Connection) {
    let _ = timeout(REPLY_TIMEOUT, tokio::spawn(connection.close())).await;
}
