//! Carrying out a topology plan, and finding out what is missing.
//!
//! Owns short-lived connections only. Never deletes and never changes anything that exists: a mismatch is
//! reported for a person to resolve.

use std::fmt;
use std::time::Duration;

use amqprs::FieldTable;
use amqprs::channel::{Channel, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use amqprs::connection::Connection;
use tokio::time::sleep;
use tracing::info;

use super::callbacks::ConnectionWatch;
use super::connect::{ConnectError, Connector, SHORT_STRING, Wire, close_connection, open_channel};
use super::convert::insert;
use super::epoch::{ConnectionEnd, Epoch};
use crate::topology::{Argument, Binding, Declaration, Exchange, Queue};

/// A quorum queue loses confirmed messages if its broker is killed within about 1 s of the declaration
/// (measured on RabbitMQ 3.10, 4.0 and 4.3). Nothing may be published before.
const NEW_QUEUE_REST: Duration = Duration::from_secs(2);
/// Questions asked on one connection, each on a channel of its own. RabbitMQ allows 2047 channels by default.
const QUESTIONS: usize = 256;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

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

/// What carrying out a plan has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// Queues that were not there before, in the plan's order.
    pub created: Vec<String>,
}

/// Why a plan was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// It exists with other properties (406). The broker names the argument, what it has and what was asked.
    #[error("{declaration} exists with other properties: {reply}")]
    Mismatch {
        /// What was to be declared.
        declaration: String,
        /// The broker's words.
        reply: String,
    },
    /// The user lacks a permission (403).
    #[error(
        "the broker does not let us declare {declaration}: {reply}; `orderd check --permissions` prints the commands that \
         grant what is needed"
    )]
    AccessRefused {
        /// What was to be declared.
        declaration: String,
        /// The broker's words.
        reply: String,
    },
    /// Something that it builds on does not exist, or its node is down (404).
    #[error("cannot declare {declaration}: {reply}")]
    NotFound {
        /// What was to be declared.
        declaration: String,
        /// The broker's words.
        reply: String,
    },
    /// There is no connection.
    #[error("cannot declare the topology")]
    Connect(#[from] ConnectError),
    /// A name that does not fit AMQP.
    #[error("{declaration} has a name or key of more than {SHORT_STRING} bytes")]
    TooLong {
        /// What was to be declared.
        declaration: String,
    },
    /// The broker refused it for another reason, or the connection was lost on the way.
    #[error("cannot declare {declaration}")]
    Other {
        /// What was to be declared.
        declaration: String,
        /// Why not.
        #[source]
        source: ConnectionEnd,
    },
}

impl DeclareError {
    /// Whether trying again cannot help: a person must change the broker or the configuration.
    pub fn is_permanent(&self) -> bool {
        match self {
            DeclareError::Mismatch { .. } | DeclareError::AccessRefused { .. } | DeclareError::TooLong { .. } => true,
            // A queue whose node is down is "not found" until the node is back.
            DeclareError::NotFound { .. } => false,
            DeclareError::Connect(error) => error.is_permanent(),
            DeclareError::Other { source, .. } => matches!(source, ConnectionEnd::ChannelClosed { .. }),
        }
    }

    fn new(declaration: &Declaration, end: ConnectionEnd) -> Self {
        let declaration = describe(declaration);
        match end {
            ConnectionEnd::ChannelClosed { code: PRECONDITION_FAILED, text: reply } => {
                DeclareError::Mismatch { declaration, reply }
            }
            ConnectionEnd::ChannelClosed { code: ACCESS_REFUSED, text: reply } => {
                DeclareError::AccessRefused { declaration, reply }
            }
            ConnectionEnd::ChannelClosed { code: NOT_FOUND, text: reply } => {
                DeclareError::NotFound { declaration, reply }
            }
            source => DeclareError::Other { declaration, source },
        }
    }
}

impl Connector {
    /// Declares everything in the plan, in order. If that creates queues, waits after the last of them until
    /// they are safe to use, and only then makes the bindings that remain: a producer's message must not get
    /// into a queue that a killed broker would forget.
    ///
    /// # Errors
    /// [`DeclareError`] at the first declaration that the broker does not accept; those before it stand.
    pub async fn declare(&self, plan: &[Declaration]) -> Result<Declared, DeclareError> {
        plan.iter().try_for_each(check_names)?;
        let queues: Vec<_> = plan.iter().filter(|step| matches!(step, Declaration::Queue(_))).collect();
        let missing = self.missing(&queues).await?;
        let created: Vec<_> = missing.into_iter().filter_map(name_of_queue).collect();
        let epoch = Epoch::begin();
        let wire = Wire::open(self, "declare", &epoch).await?;
        let last_queue = plan.iter().rposition(|step| matches!(step, Declaration::Queue(_)));
        let (before, after) = plan.split_at(last_queue.map_or(0, |last| last + 1));
        let mut outcome = carry_out(&wire.channel, &epoch, before).await;
        if outcome.is_ok() && !created.is_empty() {
            info!(queues = ?created, "queues created; resting until they are safe to use");
            sleep(NEW_QUEUE_REST).await;
        }
        if outcome.is_ok() {
            outcome = carry_out(&wire.channel, &epoch, after).await;
        }
        wire.close(&epoch).await;
        outcome?;
        Ok(Declared { created })
    }

    /// Which of the plan's exchanges and queues the broker does not have. Their properties and the bindings
    /// cannot be asked for in AMQP, so they are not looked at.
    ///
    /// # Errors
    /// [`DeclareError`] if the broker gives no clear answer.
    pub async fn missing_objects(&self, plan: &[Declaration]) -> Result<Vec<MissingObject>, DeclareError> {
        plan.iter().try_for_each(check_names)?;
        let questions: Vec<_> = plan.iter().filter(|step| !matches!(step, Declaration::Binding(_))).collect();
        self.missing(&questions).await
    }

    /// Asks for each exchange or queue whether it exists. A "no" closes the channel it was asked on, and a new
    /// channel on a connection that has lost one is not safe, so every question gets its channel beforehand.
    async fn missing(&self, questions: &[&Declaration]) -> Result<Vec<MissingObject>, DeclareError> {
        let mut missing = Vec::new();
        for questions in questions.chunks(QUESTIONS) {
            let connection = self.connect("declare").await?;
            let answers = ask_all(&connection, questions).await;
            close_connection(connection).await;
            missing.extend(answers?);
        }
        Ok(missing)
    }
}

async fn ask_all(connection: &Connection, questions: &[&Declaration]) -> Result<Vec<MissingObject>, DeclareError> {
    let life = Epoch::begin();
    let (watching, watch) = (connection.clone(), ConnectionWatch::new(&life));
    life.ask("connection", async move { watching.register_callback(watch).await })
        .await
        .map_err(|end| DeclareError::Connect(ConnectError::Lost(end)))?;
    let mut channels = Vec::with_capacity(questions.len());
    for question in questions {
        channels.push(open_channel(connection).await.map_err(|end| DeclareError::new(question, end))?);
    }
    let mut missing = Vec::new();
    for (question, (channel, epoch)) in questions.iter().zip(&channels) {
        match declare(channel, epoch, question, true).await {
            Ok(()) => {}
            Err(ConnectionEnd::ChannelClosed { code: NOT_FOUND, .. }) => missing.extend(name_of(question)),
            Err(_) if life.is_over() => return Err(DeclareError::Connect(ConnectError::Lost(life.reason()))),
            Err(end) => return Err(DeclareError::new(question, end)),
        }
    }
    for (channel, epoch) in channels {
        if !epoch.is_over() {
            let _ = epoch.ask("channel.close", channel.close()).await;
        }
    }
    Ok(missing)
}

async fn carry_out(channel: &Channel, epoch: &Epoch, plan: &[Declaration]) -> Result<(), DeclareError> {
    for step in plan {
        declare(channel, epoch, step, false).await.map_err(|end| DeclareError::new(step, end))?;
    }
    Ok(())
}

async fn declare(channel: &Channel, epoch: &Epoch, step: &Declaration, passive: bool) -> Result<(), ConnectionEnd> {
    let channel = channel.clone();
    match step {
        Declaration::Exchange(Exchange { name, kind, arguments }) => {
            let arguments = ExchangeDeclareArguments::new(name, kind.as_str())
                .passive(passive)
                .durable(true)
                .arguments(to_table(arguments.iter()))
                .finish();
            epoch.ask("exchange.declare", async move { channel.exchange_declare(arguments).await }).await
        }
        Declaration::Queue(Queue { name, arguments }) => {
            let arguments = QueueDeclareArguments::durable_client_named(name)
                .passive(passive)
                .arguments(to_table(arguments.iter()))
                .finish();
            epoch.ask("queue.declare", async move { channel.queue_declare(arguments).await }).await.map(|_| ())
        }
        Declaration::Binding(Binding { exchange, queue, routing_key }) => {
            let arguments = QueueBindArguments::new(queue, exchange, routing_key);
            epoch.ask("queue.bind", async move { channel.queue_bind(arguments).await }).await
        }
    }
}

pub(super) fn to_table<'a>(arguments: impl Iterator<Item = (&'a &'static str, &'a Argument)>) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => text.as_str().into(),
            Argument::Number(number) => amqprs::FieldValue::l(*number),
        };
        insert(&mut table, name, value);
    }
    table
}

/// The library panics on names over 255 bytes.
fn check_names(step: &Declaration) -> Result<(), DeclareError> {
    let longest = match step {
        Declaration::Exchange(Exchange { name, .. }) | Declaration::Queue(Queue { name, .. }) => name.len(),
        Declaration::Binding(Binding { exchange, queue, routing_key }) => {
            exchange.len().max(queue.len()).max(routing_key.len())
        }
    };
    if longest > SHORT_STRING { Err(DeclareError::TooLong { declaration: describe(step) }) } else { Ok(()) }
}

fn describe(step: &Declaration) -> String {
    match step {
        Declaration::Exchange(Exchange { name, .. }) => format!("exchange {name:?}"),
        Declaration::Queue(Queue { name, .. }) => format!("queue {name:?}"),
        Declaration::Binding(Binding { exchange, queue, routing_key }) => {
            format!("the binding of queue {queue:?} to exchange {exchange:?} with key {routing_key:?}")
        }
    }
}

fn name_of(step: &Declaration) -> Option<MissingObject> {
    match step {
        Declaration::Exchange(Exchange { name, .. }) => Some(MissingObject::Exchange(name.clone())),
        Declaration::Queue(Queue { name, .. }) => Some(MissingObject::Queue(name.clone())),
        Declaration::Binding(_) => None,
    }
}

fn name_of_queue(missing: MissingObject) -> Option<String> {
    match missing {
        MissingObject::Queue(name) => Some(name),
        MissingObject::Exchange(_) => None,
    }
}
