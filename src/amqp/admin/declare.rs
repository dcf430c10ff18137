//! Declaring the topology, and finding out which of its exchanges and queues are missing.
//!
//! Uses short-lived connections. Never deletes anything, and never changes anything that exists: a mismatch is reported.

use std::fmt;
use std::time::Duration;

use amqprs::channel::{Channel, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use amqprs::connection::Connection;
use tokio::time::sleep;
use tracing::info;

use super::client_connection::{self, ClientConnection};
use super::declare_error::{DeclareError, describe};
use super::field_table::from_arguments;
use super::request::request;
use crate::amqp::connect::Connector;
use crate::amqp::connect_error::ConnectError;
use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime};
use crate::amqp::protocol::MAX_SHORT_STRING;
use crate::topology::{Binding, Declaration, Exchange, Queue};

/// A quorum queue loses confirmed messages if its broker is killed within about 1 s of the declaration (measured on RabbitMQ
/// 3.10, 4.0 and 4.3). Nothing may be published to it earlier.
const NEW_QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Passive declarations on one connection, each on a channel of its own. RabbitMQ allows 2047 channels by default.
const CHECKS_PER_CONNECTION: usize = 256;

const NOT_FOUND: u16 = 404;

/// An exchange or queue that the broker does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissingObject {
    /// An exchange of this name.
    Exchange(String),
    /// A queue of this name.
    Queue(String),
}

impl fmt::Display for MissingObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MissingObject::Exchange(name) => write!(f, "exchange {name:?}"),
            MissingObject::Queue(name) => write!(f, "queue {name:?}"),
        }
    }
}

/// What declaring a plan changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// Queues that did not exist before, in the plan's order.
    pub created: Vec<String>,
}

impl Connector {
    /// Declares everything in the plan, in order. If that creates queues, waits after the last of them until they are safe
    /// to use, and only then creates the remaining bindings, so that no producer's message reaches a queue that a killed
    /// broker would lose it from.
    ///
    /// # Errors
    /// [`DeclareError`] for the first declaration that the broker does not accept. Those before it remain.
    pub async fn declare(&self, plan: &[Declaration]) -> Result<Declared, DeclareError> {
        plan.iter().try_for_each(check_names)?;
        let queues: Vec<_> = plan.iter().filter(|step| matches!(step, Declaration::Queue(_))).collect();
        let missing = self.find_missing(&queues).await?;
        let created: Vec<_> = missing.into_iter().filter_map(queue_name).collect();
        let lifetime = ConnectionLifetime::begin();
        let client = ClientConnection::open(self, "declare", &lifetime).await?;
        let last_queue = plan.iter().rposition(|step| matches!(step, Declaration::Queue(_)));
        let (before, after) = plan.split_at(last_queue.map_or(0, |last| last + 1));
        let mut outcome = declare_all(&client.channel, &lifetime, before).await;
        if outcome.is_ok() && !created.is_empty() {
            info!(queues = ?created, wait = ?NEW_QUEUE_WAIT, "queues created; waiting until they are safe to use");
            sleep(NEW_QUEUE_WAIT).await;
        }
        if outcome.is_ok() {
            outcome = declare_all(&client.channel, &lifetime, after).await;
        }
        client.close(&lifetime).await;
        outcome?;
        Ok(Declared { created })
    }

    /// Returns the exchanges and queues of the plan that the broker does not have. AMQP has no request for their properties
    /// or for bindings, so those are not checked.
    ///
    /// # Errors
    /// [`DeclareError`] if the broker gives no clear answer.
    pub async fn missing_objects(&self, plan: &[Declaration]) -> Result<Vec<MissingObject>, DeclareError> {
        plan.iter().try_for_each(check_names)?;
        let objects: Vec<_> = plan.iter().filter(|step| !matches!(step, Declaration::Binding(_))).collect();
        self.find_missing(&objects).await
    }

    /// Declares each exchange or queue passively. A "not found" closes the channel, and opening a channel on a connection
    /// that has lost one is not safe with the library, so every object gets a channel beforehand.
    async fn find_missing(&self, objects: &[&Declaration]) -> Result<Vec<MissingObject>, DeclareError> {
        let mut missing = Vec::new();
        for objects in objects.chunks(CHECKS_PER_CONNECTION) {
            let connection = self.open_client("declare").await?;
            let found = find_missing_on(&connection, objects).await;
            client_connection::close(connection).await;
            missing.extend(found?);
        }
        Ok(missing)
    }
}

async fn find_missing_on(
    connection: &Connection,
    objects: &[&Declaration],
) -> Result<Vec<MissingObject>, DeclareError> {
    let lost = |end| DeclareError::Connect(ConnectError::Lost(end));
    let lifetime = ConnectionLifetime::begin();
    client_connection::watch(connection, &lifetime).await.map_err(lost)?;
    let mut channels = Vec::with_capacity(objects.len());
    for object in objects {
        let opened = client_connection::open_channel(connection).await;
        channels.push(opened.map_err(|end| DeclareError::new(object, end))?);
    }
    let mut missing = Vec::new();
    for (object, (channel, channel_lifetime)) in objects.iter().zip(&channels) {
        match declare(channel, channel_lifetime, object, true).await {
            Ok(()) => {}
            Err(ConnectionEnd::ChannelClosed { code: NOT_FOUND, .. }) => missing.extend(missing_object(object)),
            Err(_) if lifetime.has_ended() => return Err(lost(lifetime.reason())),
            Err(end) => return Err(DeclareError::new(object, end)),
        }
    }
    for (channel, lifetime) in channels {
        if !lifetime.has_ended() {
            let _ = request(&lifetime, "channel.close", channel.close()).await;
        }
    }
    Ok(missing)
}

async fn declare_all(
    channel: &Channel,
    lifetime: &ConnectionLifetime,
    plan: &[Declaration],
) -> Result<(), DeclareError> {
    for step in plan {
        declare(channel, lifetime, step, false).await.map_err(|end| DeclareError::new(step, end))?;
    }
    Ok(())
}

async fn declare(
    channel: &Channel,
    lifetime: &ConnectionLifetime,
    step: &Declaration,
    passive: bool,
) -> Result<(), ConnectionEnd> {
    let channel = channel.clone();
    match step {
        Declaration::Exchange(Exchange { name, kind, arguments }) => {
            let arguments = ExchangeDeclareArguments::new(name, kind.as_str())
                .passive(passive)
                .durable(true)
                .arguments(from_arguments(arguments.iter()))
                .finish();
            request(lifetime, "exchange.declare", async move { channel.exchange_declare(arguments).await }).await
        }
        Declaration::Queue(Queue { name, arguments }) => {
            let arguments = QueueDeclareArguments::durable_client_named(name)
                .passive(passive)
                .arguments(from_arguments(arguments.iter()))
                .finish();
            request(lifetime, "queue.declare", async move { channel.queue_declare(arguments).await }).await.map(|_| ())
        }
        Declaration::Binding(Binding { exchange, queue, routing_key }) => {
            let arguments = QueueBindArguments::new(queue, exchange, routing_key);
            request(lifetime, "queue.bind", async move { channel.queue_bind(arguments).await }).await
        }
    }
}

/// The library panics on names over 255 bytes.
fn check_names(step: &Declaration) -> Result<(), DeclareError> {
    let longest = match step {
        Declaration::Exchange(Exchange { name, .. }) | Declaration::Queue(Queue { name, .. }) => name.len(),
        Declaration::Binding(Binding { exchange, queue, routing_key }) => {
            exchange.len().max(queue.len()).max(routing_key.len())
        }
    };
    if longest > MAX_SHORT_STRING { Err(DeclareError::TooLong { declaration: describe(step) }) } else { Ok(()) }
}

fn missing_object(step: &Declaration) -> Option<MissingObject> {
    match step {
        Declaration::Exchange(Exchange { name, .. }) => Some(MissingObject::Exchange(name.clone())),
        Declaration::Queue(Queue { name, .. }) => Some(MissingObject::Queue(name.clone())),
        Declaration::Binding(_) => None,
    }
}

fn queue_name(missing: MissingObject) -> Option<String> {
    match missing {
        MissingObject::Queue(name) => Some(name),
        MissingObject::Exchange(_) => None,
    }
}
