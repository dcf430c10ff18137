//! Finds out which permissions the user lacks, without changing anything at the broker.
//!
//! There are two kinds of checks. One is a request with a deliberate error: RabbitMQ refuses it with 403 if the user lacks the
//! permission, and with 406 for the error otherwise. The other is a request without effect: a publication in a transaction
//! that is rolled back, a passive declaration, or the removal of a binding that does not exist.

use amqprs::channel::{
    BasicConsumeArguments, BasicPublishArguments, Channel, ExchangeDeclareArguments, QueueDeclareArguments,
    QueueUnbindArguments,
};
use amqprs::{BasicProperties, FieldValue};

use super::client_connection::ClientConnection;
use super::field_table::{from_arguments, insert, with_field};
use super::request::{queue_frame, request};
use crate::amqp::connect::Connector;
use crate::amqp::connect_error::ConnectError;
use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime};
use crate::topology::{Binding, Declaration, Exchange, Queue, RequiredPermission};

const ACCESS_REFUSED: u16 = 403;
/// Checks on one connection, each on a channel of its own, which a refusal closes.
const CHECKS_PER_CONNECTION: usize = 256;
/// An argument that no broker accepts where it expects a number.
const NOT_A_NUMBER: &str = "orderd only checks";

/// A permission that the user lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedPermission {
    /// The permission.
    pub permission: RequiredPermission,
    /// The broker's reply text.
    pub reply: String,
}

/// The result of the checks on one connection: what was denied, and whether every check was answered.
struct CheckOutcome {
    denied: Vec<DeniedPermission>,
    end: Result<(), ConnectionEnd>,
}

impl Connector {
    /// Returns the required permissions that the user lacks. Incomplete if the broker stops answering after it denied one.
    ///
    /// # Errors
    /// [`ConnectError`] if the broker gives no clear answer and has denied nothing.
    pub async fn denied_permissions(
        &self,
        required: &[RequiredPermission],
    ) -> Result<Vec<DeniedPermission>, ConnectError> {
        let mut denied = Vec::new();
        let mut rest = required;
        while !rest.is_empty() {
            let connection = self.open_client("orderd check").await?;
            let (required, later) = rest.split_at(self.channels_up_to(CHECKS_PER_CONNECTION).min(rest.len()));
            rest = later;
            let checked = check_permissions(&connection, required).await;
            connection.close().await;
            denied.extend(checked.denied);
            match checked.end {
                Ok(()) => {}
                // What was denied is certain, although the rest could not be checked.
                Err(_) if !denied.is_empty() => break,
                Err(ConnectionEnd::Blocked(reason)) => return Err(ConnectError::Blocked { reason }),
                Err(end) => return Err(ConnectError::Lost(end)),
            }
        }
        Ok(denied)
    }
}

async fn check_permissions(connection: &ClientConnection, required: &[RequiredPermission]) -> CheckOutcome {
    let mut end = Ok(());
    let mut channels = Vec::with_capacity(required.len());
    // All channels first: opening one on a connection that has lost one is not safe with the library.
    for _ in required {
        if end.is_ok() {
            end = connection.open_channel().await.map(|opened| channels.push(opened));
        }
    }
    let mut denied = Vec::new();
    for (permission, (channel, lifetime)) in required.iter().zip(&channels) {
        // A broker with an alarm reads nothing more after the first publication, so the other checks would time out.
        if end.is_err() {
            break;
        }
        // Cancel-safe: a request completes in a task of its own, and both lifetimes keep their ends.
        let checked = tokio::select! {
            biased;
            checked = check(channel, lifetime, permission) => checked,
            () = connection.lifetime.ended() => connection.lifetime.reason(),
        };
        match checked {
            ConnectionEnd::ChannelClosed { code: ACCESS_REFUSED, text: reply } => {
                denied.push(DeniedPermission { permission: permission.clone(), reply });
            }
            // 406 is the expected refusal, 404 is reported elsewhere, and `ClosedByUs` means that the request succeeded.
            ConnectionEnd::ChannelClosed { .. } | ConnectionEnd::ClosedByUs => {}
            other => end = Err(connection.reason(other)),
        }
    }
    CheckOutcome { denied, end }
}

/// Checks one permission. [`ConnectionEnd::ClosedByUs`]: the request was not refused, so the user has the permission.
async fn check(channel: &Channel, lifetime: &ConnectionLifetime, permission: &RequiredPermission) -> ConnectionEnd {
    let handle = channel.clone();
    let requested = match permission.clone() {
        RequiredPermission::Publish { exchange, routing_key } => {
            publish_and_roll_back(channel, lifetime, BasicPublishArguments::new(&exchange, &routing_key)).await
        }
        RequiredPermission::FindExchange { exchange } => {
            let arguments = ExchangeDeclareArguments::new(&exchange, "topic").passive(true).finish();
            request(lifetime, "exchange.declare", async move { handle.exchange_declare(arguments).await }).await
        }
        RequiredPermission::FindQueue { queue } => {
            let arguments = QueueDeclareArguments::new(&queue).passive(true).finish();
            request(lifetime, "queue.declare", async move { handle.queue_declare(arguments).await.map(drop) }).await
        }
        RequiredPermission::Consume { queue } => {
            let arguments = BasicConsumeArguments::new(&queue, "orderd-checks")
                .arguments(with_field("x-priority", not_a_number()))
                .finish();
            request(lifetime, "basic.consume", async move { handle.basic_consume_rx(arguments).await.map(drop) }).await
        }
        RequiredPermission::Declare(Declaration::Queue(Queue { name, arguments })) => {
            // With the queue's own arguments, because its dead-letter exchange needs a permission too.
            let mut wrong = from_arguments(arguments.iter());
            insert(&mut wrong, "x-message-ttl", not_a_number());
            let arguments = QueueDeclareArguments::durable_client_named(&name).arguments(wrong).finish();
            request(lifetime, "queue.declare", async move { handle.queue_declare(arguments).await.map(drop) }).await
        }
        RequiredPermission::Declare(Declaration::Exchange(Exchange { name, kind, .. })) => {
            let arguments = ExchangeDeclareArguments::new(&name, kind.as_str())
                .durable(true)
                .arguments(with_field("alternate-exchange", FieldValue::l(0)))
                .finish();
            request(lifetime, "exchange.declare", async move { handle.exchange_declare(arguments).await }).await
        }
        // Removing a binding needs the same permissions as creating it. No binding has this argument, so the broker removes
        // nothing and reports success.
        RequiredPermission::Declare(Declaration::Binding(Binding { exchange, queue, routing_key })) => {
            let arguments = QueueUnbindArguments::new(&queue, &exchange, &routing_key)
                .arguments(with_field("x-orderd-checks", not_a_number()))
                .finish();
            request(lifetime, "queue.unbind", async move { handle.queue_unbind(arguments).await }).await
        }
    };
    requested.map_or_else(|end| end, |()| ConnectionEnd::ClosedByUs)
}

/// Publishes in a transaction and rolls it back. A publication with an error cannot be used: RabbitMQ 4.3 rejects it before
/// it checks the topic permission.
async fn publish_and_roll_back(
    channel: &Channel,
    lifetime: &ConnectionLifetime,
    arguments: BasicPublishArguments,
) -> Result<(), ConnectionEnd> {
    let handle = channel.clone();
    request(lifetime, "tx.select", async move { handle.tx_select().await }).await?;
    queue_frame(lifetime, channel.basic_publish(BasicProperties::default(), Vec::new(), arguments)).await;
    let handle = channel.clone();
    // `basic.publish` has no reply of its own: if it was refused, this request fails.
    request(lifetime, "basic.publish", async move { handle.tx_rollback().await }).await
}

fn not_a_number() -> FieldValue {
    NOT_A_NUMBER.into()
}
