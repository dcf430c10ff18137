//! Declaring the topology, and finding out which of its exchanges and queues are missing.
//!
//! Uses short-lived connections. Never deletes anything, and never changes anything that exists: a mismatch is reported.

use std::collections::BTreeSet;
use std::time::Duration;

use amqprs::channel::{Channel, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use futures_util::future::{join_all, try_join_all};
use tokio::time::sleep;
use tracing::info;

use super::client_connection::ClientConnection;
use super::declare_error::{DeclareError, describe};
use super::field_table::from_arguments;
use super::request::request;
use crate::amqp::connect::Connector;
use crate::amqp::connect_error::ConnectError;
use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime};
use crate::amqp::protocol::MAX_SHORT_STRING;
use crate::topology::{Argument, Binding, Declaration, Exchange, Object, Queue};

/// A quorum queue loses confirmed messages if its broker is killed within about 1 s of the declaration (measured on RabbitMQ
/// 3.10, 4.0 and 4.3). Nothing may be published to it earlier.
const NEW_QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Passive declarations on one connection, each on a channel of its own. RabbitMQ allows 2047 channels by default.
const CHECKS_PER_CONNECTION: usize = 256;

/// The most refused declarations after which the others are still tried.
const MAX_REFUSED: usize = 16;

const NOT_FOUND: u16 = 404;

/// What declaring a plan changed.
#[derive(Debug, Default)]
pub struct Declared {
    /// Exchanges and queues that did not exist before, in the plan's order.
    pub created: Vec<Object>,
    /// Declarations that the broker refused. [`Connector::declare`] fails with the first of these instead.
    pub refused: Vec<DeclareError>,
}

impl Declared {
    /// The queues that did not exist before.
    pub fn created_queues(&self) -> Vec<&str> {
        let queues = self.created.iter().filter_map(|object| match object {
            Object::Queue(name) => Some(name.as_str()),
            Object::Exchange(_) | Object::Binding { .. } => None,
        });
        queues.collect()
    }
}

impl Connector {
    /// Declares everything in the plan. If that creates queues, waits until they are safe to use, and only then binds them,
    /// so that no message reaches a queue that a killed broker would lose it from.
    ///
    /// # Errors
    /// [`DeclareError`] for the first declaration that the broker does not accept. Those before it remain.
    pub async fn declare(&self, plan: &[Declaration]) -> Result<Declared, DeclareError> {
        let mut declared = self.declare_steps(plan, 1).await?;
        match declared.refused.pop() {
            Some(refused) => Err(refused),
            None => Ok(declared),
        }
    }

    /// Like [`Connector::declare`], but continues after a declaration that the broker refuses, up to a limit.
    ///
    /// # Errors
    /// [`DeclareError`] if the broker cannot be reached or gives no clear answer.
    pub async fn declare_possible(&self, plan: &[Declaration]) -> Result<Declared, DeclareError> {
        self.declare_steps(plan, MAX_REFUSED).await
    }

    async fn declare_steps(&self, plan: &[Declaration], max_refused: usize) -> Result<Declared, DeclareError> {
        plan.iter().try_for_each(check_names)?;
        let created = self.missing_objects(plan).await?;
        let mut declared = Declared { created, refused: Vec::new() };
        let (first, later) = split_for_new_queues(plan, &declared.created_queues());
        self.declare_each(&first, max_refused, &mut declared).await?;
        if declared.refused.len() < max_refused && !later.is_empty() {
            let queues = declared.created_queues();
            info!(?queues, wait = ?NEW_QUEUE_WAIT, "queues created; waiting until they are safe to use");
            sleep(NEW_QUEUE_WAIT).await;
            self.declare_each(&later, max_refused, &mut declared).await?;
        }
        let Declared { created, refused } = &mut declared;
        created.retain(|object| !refused.iter().any(|refused| refused.concerns(object)));
        Ok(declared)
    }

    /// Declares these, in order, until `max_refused` are refused. A refusal closes the channel, and each further
    /// declaration needs a new connection.
    async fn declare_each(
        &self,
        steps: &[&Declaration],
        max_refused: usize,
        declared: &mut Declared,
    ) -> Result<(), DeclareError> {
        let mut rest = steps.iter();
        while declared.refused.len() < max_refused && rest.len() > 0 {
            let connection = self.open_client("declare").await?;
            let (channel, lifetime) = connection.open_channel().await.map_err(ConnectError::Lost)?;
            let mut outcome = Ok(());
            while outcome.is_ok()
                && let Some(step) = rest.next()
            {
                let is_new = declared.created.contains(&Object::from(*step));
                let answer = declare(&channel, &lifetime, step, false).await;
                outcome = answer.map_err(|end| match connection.reason(end) {
                    end if is_new => DeclareError::of_new(step, end),
                    end => DeclareError::new(step, end),
                });
            }
            close_channel(channel, &lifetime).await;
            connection.close().await;
            match outcome {
                Ok(()) => {}
                Err(error) if error.concerns_one_declaration() => declared.refused.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the exchanges and queues of the plan that the broker does not have. AMQP has no request for their properties
    /// or for bindings, so those are not checked.
    ///
    /// # Errors
    /// [`DeclareError`] if the broker gives no clear answer.
    pub async fn missing_objects(&self, plan: &[Declaration]) -> Result<Vec<Object>, DeclareError> {
        plan.iter().try_for_each(check_names)?;
        let objects: Vec<_> = plan.iter().filter(|step| !matches!(step, Declaration::Binding(_))).collect();
        self.find_missing(&objects).await
    }

    /// Declares each exchange or queue passively. A "not found" closes the channel, and opening a channel on a connection
    /// that has lost one is not safe with the library, so every object gets a channel beforehand.
    async fn find_missing(&self, objects: &[&Declaration]) -> Result<Vec<Object>, DeclareError> {
        let mut missing = Vec::new();
        let mut rest = objects;
        while !rest.is_empty() {
            let connection = self.open_client("declare").await?;
            let (objects, later) = rest.split_at(self.channels_up_to(CHECKS_PER_CONNECTION).min(rest.len()));
            let found = find_missing_on(&connection, objects).await;
            connection.close().await;
            missing.extend(found?);
            rest = later;
        }
        Ok(missing)
    }
}

async fn find_missing_on(connection: &ClientConnection, objects: &[&Declaration]) -> Result<Vec<Object>, DeclareError> {
    let lost = |end| DeclareError::Connect(ConnectError::Lost(end));
    // Requests on different channels do not wait for each other. With one after the other, a busy broker takes seconds.
    let opening = objects.iter().map(|_| connection.open_channel());
    let channels = try_join_all(opening).await.map_err(lost)?;
    let declaring = objects
        .iter()
        .zip(&channels)
        .map(|(object, (channel, lifetime))| async move { (*object, declare(channel, lifetime, object, true).await) });
    let mut missing = Vec::new();
    for (object, declared) in join_all(declaring).await {
        match declared {
            Ok(()) => {}
            Err(ConnectionEnd::ChannelClosed { code: NOT_FOUND, .. }) => missing.push(Object::from(object)),
            Err(_) if connection.lifetime.has_ended() => return Err(lost(connection.lifetime.reason())),
            Err(end) => return Err(DeclareError::new(object, end)),
        }
    }
    join_all(channels.into_iter().map(|(channel, lifetime)| async move { close_channel(channel, &lifetime).await }))
        .await;
    Ok(missing)
}

async fn close_channel(channel: Channel, lifetime: &ConnectionLifetime) {
    if !lifetime.has_ended() {
        let _ = request(lifetime, "channel.close", channel.close()).await;
    }
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

/// Splits a plan into what is declared at once and the bindings of new queues, which wait until the queues are safe. The
/// queue of an alternate exchange is bound at once: without its binding, messages would be lost for certain.
fn split_for_new_queues<'p>(
    plan: &'p [Declaration],
    new_queues: &[&str],
) -> (Vec<&'p Declaration>, Vec<&'p Declaration>) {
    let alternates: BTreeSet<&str> = plan.iter().filter_map(alternate_exchange).collect();
    plan.iter().partition(|step| match step {
        Declaration::Binding(Binding { exchange, queue, .. }) => {
            alternates.contains(exchange.as_str()) || !new_queues.contains(&queue.as_str())
        }
        Declaration::Exchange(_) | Declaration::Queue(_) => true,
    })
}

fn alternate_exchange(step: &Declaration) -> Option<&str> {
    match step {
        Declaration::Exchange(exchange) => match exchange.arguments.get("alternate-exchange")? {
            Argument::Text(name) => Some(name),
            Argument::Number(_) => None,
        },
        Declaration::Queue(_) | Declaration::Binding(_) => None,
    }
}
