//! Notifications: delivered to a channel, then recorded.
//!
//! Delivered before recorded: a crash between the two tells a customer twice, which beats not at all. Two copies of
//! one message at the same moment tell once: the second waits, and then finds it recorded. Not so in two instances, whose
//! ledger may be the same: both may tell, and one records.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::debug;

use super::claim::Claims;
use super::event_log::event_line;
use super::{EventLog, HandlerDeps, HandlerFactory, ledger_failure};
use crate::chain::chain;
use crate::config::{MessageKind, Section};
use crate::domain::OrderId;
use crate::ledger::{Ledger, LedgerEntry, NewNotification, Recorded};
use crate::metrics::HandlerOutcome;
use crate::pipeline::{Handler, HandlerInput, HandlerOutput};
use crate::recovery::{Failure, FailureKind};

/// Tells a customer.
pub trait Channel: Send + Sync + 'static {
    /// Delivers one notification.
    ///
    /// # Errors
    /// A [`Failure`] whose kind says whether a retry can help.
    fn deliver<'a>(&'a self, notice: Notice<'a>) -> BoxFuture<'a, Result<(), Failure>>;
}

/// One notification to deliver.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    /// The message's identity.
    pub id: &'a str,
    /// The last word of the routing key: `email`, `sms`, …
    pub channel: &'a str,
    /// The order it is about, where the message says so.
    pub order_id: Option<&'a str>,
    /// The customer's address, where the message has one.
    pub email: Option<&'a str>,
    /// The message's body: a JSON object.
    pub body: &'a str,
}

/// Delivers by a line in the notifications' file. Not in orderd's own log: a line names the customer.
#[derive(Debug, Clone)]
pub struct LogChannel {
    /// The notifications' file.
    pub log: EventLog,
}

impl Channel for LogChannel {
    fn deliver<'a>(&'a self, notice: Notice<'a>) -> BoxFuture<'a, Result<(), Failure>> {
        debug!(id = notice.id, channel = notice.channel, order = notice.order_id, "Notification");
        let line = event_line(notice.id, notice.channel, Timestamp::now(), notice.body.as_bytes());
        Box::pin(async {
            let written = self.log.append(line).await;
            written.map_err(|error| Failure::new(FailureKind::Transient, "channel_unavailable", chain(&error)))
        })
    }
}

/// `handler = "notification"`
pub(super) struct NotificationFactory;

impl HandlerFactory for NotificationFactory {
    type Settings = ();

    const NAME: &'static str = "notification";

    const MESSAGES: MessageKind = MessageKind::Notification;

    fn read(_section: &mut Section<'_>) {}

    fn build(_consumer: &str, (): &(), deps: &HandlerDeps) -> Arc<dyn Handler> {
        Arc::new(NotificationHandler {
            ledger: Arc::clone(&deps.ledger),
            channel: Arc::clone(&deps.channel),
            claims: Claims::default(),
        })
    }
}

struct NotificationHandler {
    ledger: Arc<dyn Ledger>,
    channel: Arc<dyn Channel>,
    claims: Claims,
}

/// What is read of an event's body; everything else is the channel's to use. Other producers may mean something
/// else by these names, and what is not understood is not used.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    order_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    email: Option<&'a RawValue>,
}

fn no_object(why: impl fmt::Display) -> Failure {
    Failure::new(FailureKind::Malformed, "invalid_event", format!("not a JSON object: {why}"))
}

/// The text of what may be a JSON object, and is nothing else.
pub(super) fn object(body: &[u8]) -> Result<&str, Failure> {
    // Serde would read an array as an object's fields in order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(no_object("it does not begin with a brace"));
    }
    std::str::from_utf8(body).map_err(no_object)
}

/// Reads the order id and the address of a JSON object that may have them.
pub(super) fn order_id(object: &str) -> Result<(Option<String>, Option<String>), Failure> {
    let body: Body<'_> = serde_json::from_str(object).map_err(no_object)?;
    let id = |raw: &RawValue| serde_json::from_str::<OrderId>(raw.get()).ok().map(|id| id.as_str().to_owned());
    let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
    Ok((body.order_id.and_then(id), body.email.and_then(text)))
}

impl NotificationHandler {
    async fn notify(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, Failure> {
        let body = object(&input.delivery.message.body)?;
        let (order_id, email) = order_id(body)?;
        let id = input.delivery.identity();
        let _claim = self.claims.claim(&id).await;
        let known = self.ledger.record(LedgerEntry::LookUpNotification { id: id.clone() }).await;
        if known.map_err(|error| ledger_failure(&error))? == Recorded::Duplicate {
            return Ok(HandlerOutput::finished(HandlerOutcome::Duplicate));
        }
        let channel = channel_of(input);
        let notice = Notice { id: &id, channel, order_id: order_id.as_deref(), email: email.as_deref(), body };
        self.channel.deliver(notice).await?;
        let (id, channel) = (id.clone(), channel.to_owned());
        let entry =
            LedgerEntry::Notification(Box::new(NewNotification { id, order_id, channel, at: Timestamp::now() }));
        self.ledger.record(entry).await.map_err(|error| ledger_failure(&error))?;
        Ok(HandlerOutput::finished(HandlerOutcome::Completed))
    }
}

impl Handler for NotificationHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
        Box::pin(self.notify(input))
    }
}

/// The last word of the key it was first published with: a retried one has its queue's name for a key.
pub(super) fn channel_of(input: HandlerInput<'_>) -> &str {
    let key = input.delivery.first_routing_key();
    key.rsplit_once('.').map_or(key, |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tempfile::TempDir;

    use super::*;
    use crate::ledger::SqliteLedger;
    use crate::message::{Delivery, DeliveryId, Message, Properties};

    /// Counts what it delivers, after everybody else had a turn.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Channel for Counting {
        fn deliver<'a>(&'a self, _: Notice<'a>) -> BoxFuture<'a, Result<(), Failure>> {
            Box::pin(async {
                tokio::task::yield_now().await;
                self.0.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        }
    }

    fn delivery(body: &'static [u8]) -> Delivery {
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders".to_owned(),
            routing_key: "order.notification.email".to_owned(),
            redelivered: false,
            message: Message {
                properties: Properties { message_id: Some("ord-1/x".to_owned()), ..Properties::default() },
                body: body.into(),
                ..Message::default()
            },
        }
    }

    struct Stage {
        _directory: TempDir,
        ledger: Arc<SqliteLedger>,
        channel: Arc<Counting>,
        handler: NotificationHandler,
    }

    fn stage() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
        let channel = Arc::new(Counting::default());
        let handler = NotificationHandler {
            ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
            channel: Arc::clone(&channel) as Arc<dyn Channel>,
            claims: Claims::default(),
        };
        Stage { _directory: directory, ledger, channel, handler }
    }

    #[tokio::test]
    async fn what_is_not_utf_8_is_malformed_even_where_it_is_not_read() {
        let Stage { _directory, ledger, channel, handler } = stage();
        let delivery = delivery(b"{\"note\":\"\xff\"}");
        let input = HandlerInput { delivery: &delivery, consumer: &"notification".into(), retries: 0 };
        let failure = handler.handle(input).await.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Malformed, "invalid_event"));
        assert_eq!(channel.0.load(Ordering::SeqCst), 0);
        ledger.close().await;
    }

    #[tokio::test]
    async fn two_copies_at_the_same_moment_tell_the_customer_once() {
        let Stage { _directory, ledger, channel, handler } = stage();
        let delivery = delivery(b"{}");
        let input = HandlerInput { delivery: &delivery, consumer: &"notification".into(), retries: 0 };
        let (first, second) = tokio::join!(handler.handle(input), handler.handle(input));
        let mut outcomes = [first.unwrap().outcome, second.unwrap().outcome];
        outcomes.sort_by_key(|outcome| *outcome == HandlerOutcome::Duplicate);
        assert_eq!(outcomes, [HandlerOutcome::Completed, HandlerOutcome::Duplicate]);
        assert_eq!(channel.0.load(Ordering::SeqCst), 1);
        ledger.close().await;
    }
}
