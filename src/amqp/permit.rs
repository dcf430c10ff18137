//! Asks the broker what our user may do, without doing it: each question is a request that RabbitMQ refuses in any
//! case, for the lack of a permission (403) or, where that is there, for what is wrong with the request (406); or one
//! that changes nothing: a publication in a transaction that is rolled back, a look for a queue.
//!
//! It never changes anything: what is not refused is undone, or was only a look.

use amqprs::channel::{
    BasicConsumeArguments, BasicPublishArguments, Channel, ExchangeDeclareArguments, QueueDeclareArguments,
    QueueUnbindArguments,
};
use amqprs::{BasicProperties, FieldTable, FieldValue};

use super::callbacks::ConnectionWatch;
use super::connect::{ConnectError, Connector, close_connection, open_channel};
use super::convert::insert;
use super::declare::to_table;
use super::epoch::{ConnectionEnd, Epoch};
use crate::topology::{Binding, Declaration, Exchange, Queue, RequiredPermission};

const ACCESS_REFUSED: u16 = 403;
/// Questions on one connection, each on a channel of its own, which a refusal closes.
const QUESTIONS: usize = 256;
/// What no broker takes for a number.
const NO_NUMBER: &str = "orderd only asks";

/// Something that the broker does not let our user do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedPermission {
    /// What.
    pub permission: RequiredPermission,
    /// The broker's words.
    pub reply: String,
}

impl Connector {
    /// Which needs the broker would not serve for lack of a permission; some of them, if it answered no more after them.
    ///
    /// # Errors
    /// [`ConnectError`] if it gives no clear answer and has denied nothing.
    pub async fn denied_permissions(
        &self,
        needs: &[RequiredPermission],
    ) -> Result<Vec<DeniedPermission>, ConnectError> {
        let mut denied = Vec::new();
        for needs in needs.chunks(QUESTIONS) {
            let connection = self.connect("orderd check").await?;
            let life = Epoch::begin();
            let (watched, watch) = (connection.clone(), ConnectionWatch::new(&life));
            let watching = async move { watched.register_callback(watch).await };
            let mut answer = life.ask("connection", watching).await;
            let mut asked = Vec::with_capacity(needs.len());
            // All channels first: a connection that has lost one is not safe to open another on.
            for _ in needs {
                if answer.is_ok() {
                    answer = open_channel(&connection).await.map(|opened| asked.push(opened));
                }
            }
            for (need, (channel, epoch)) in needs.iter().zip(&asked) {
                // A broker with an alarm reads nothing more after the first message: the others would wait in vain.
                if answer.is_err() {
                    break;
                }
                match ask(channel, epoch, need).await {
                    ConnectionEnd::ChannelClosed { code: ACCESS_REFUSED, text: reply } => {
                        denied.push(DeniedPermission { permission: need.clone(), reply });
                    }
                    // 406, as expected; 404: what is not there yet is others' to tell; closed by us: it was done.
                    ConnectionEnd::ChannelClosed { .. } | ConnectionEnd::Closed => {}
                    end => answer = Err(end),
                }
            }
            close_connection(connection).await;
            match answer {
                Ok(()) => {}
                // What was denied stays denied, though the rest could not be asked.
                Err(_) if !denied.is_empty() => break,
                Err(end) => return Err(ConnectError::Lost(end)),
            }
        }
        Ok(denied)
    }
}

/// Asks, and waits for the answer. [`ConnectionEnd::Closed`]: it was not refused, so the permission is there.
async fn ask(channel: &Channel, epoch: &Epoch, need: &RequiredPermission) -> ConnectionEnd {
    let on = channel.clone();
    let answered = match need.clone() {
        RequiredPermission::Publish { exchange, routing_key } => {
            publish_nothing(channel, epoch, BasicPublishArguments::new(&exchange, &routing_key)).await
        }
        RequiredPermission::FindExchange { exchange } => {
            let arguments = ExchangeDeclareArguments::new(&exchange, "topic").passive(true).finish();
            epoch.ask("exchange.declare", async move { on.exchange_declare(arguments).await }).await
        }
        RequiredPermission::FindQueue { queue } => {
            let arguments = QueueDeclareArguments::new(&queue).passive(true).finish();
            epoch.ask("queue.declare", async move { on.queue_declare(arguments).await.map(drop) }).await
        }
        RequiredPermission::Consume { queue } => {
            let arguments =
                BasicConsumeArguments::new(&queue, "orderd-asks").arguments(table("x-priority", text())).finish();
            epoch.ask("basic.consume", async move { on.basic_consume_rx(arguments).await.map(drop) }).await
        }
        RequiredPermission::Declare(Declaration::Queue(Queue { name, arguments })) => {
            // With its own arguments, for a dead-letter exchange has its price too.
            let mut wrong = to_table(arguments.iter());
            insert(&mut wrong, "x-message-ttl", text());
            let arguments = QueueDeclareArguments::durable_client_named(&name).arguments(wrong).finish();
            epoch.ask("queue.declare", async move { on.queue_declare(arguments).await.map(drop) }).await
        }
        RequiredPermission::Declare(Declaration::Exchange(Exchange { name, kind, .. })) => {
            let arguments = ExchangeDeclareArguments::new(&name, kind.as_str())
                .durable(true)
                .arguments(table("alternate-exchange", FieldValue::l(0)))
                .finish();
            epoch.ask("exchange.declare", async move { on.exchange_declare(arguments).await }).await
        }
        // Taking a binding away asks for the same permissions as making it. There is none with such an argument, so
        // that the broker takes nothing away and says that it is done.
        RequiredPermission::Declare(Declaration::Binding(Binding { exchange, queue, routing_key })) => {
            let arguments = QueueUnbindArguments::new(&queue, &exchange, &routing_key)
                .arguments(table("x-orderd-asks", text()))
                .finish();
            epoch.ask("queue.unbind", async move { on.queue_unbind(arguments).await }).await
        }
    };
    answered.map_or_else(|end| end, |()| ConnectionEnd::Closed)
}

/// Publishes in a transaction and rolls it back. A publication with something wrong in it would not do: RabbitMQ 4.3 finds
/// that before it looks at the key.
async fn publish_nothing(
    channel: &Channel,
    epoch: &Epoch,
    arguments: BasicPublishArguments,
) -> Result<(), ConnectionEnd> {
    let on = channel.clone();
    epoch.ask("tx.select", async move { on.tx_select().await }).await?;
    epoch.queue(channel.basic_publish(BasicProperties::default(), Vec::new(), arguments)).await;
    let on = channel.clone();
    // Its answer is the publication's.
    epoch.ask("basic.publish", async move { on.tx_rollback().await }).await
}

fn text() -> FieldValue {
    NO_NUMBER.into()
}

fn table(name: &'static str, value: FieldValue) -> FieldTable {
    let mut table = FieldTable::new();
    insert(&mut table, name, value);
    table
}
