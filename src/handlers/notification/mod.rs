//! Notifications: delivered to the customer through a channel, then recorded.
//!
//! Delivery comes first: a crash between the two then notifies the customer twice, which is better than never. Of two copies
//! of a message that arrive at the same time, the second waits and then finds the first one recorded, in another instance too:
//! a notification is claimed in the ledger before a server gets it. Only the file of notifications needs no claim.
//!
//! Once a server may be called, attempts and record are a task that a lost connection to the broker does not end: the server may accept
//! what it has got. A copy that is delivered again waits for it.

mod task;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use self::task::{NotificationTask, OwnedNotice, release};
use super::claim::Claims;
use super::event_line::event_line;
use super::step_run::{services, trace};
use super::{EventLog, HandlerConsumer, HandlerDeps, HandlerFactory, append_line, body_failure};
use crate::alerts::AlertSettings;
use crate::config::{HandlerSettings, MessageKind, Section, Value, value_parser};
use crate::domain::{DEFAULT_NOTIFY, OrderId, OtherFields, is_channel, object_fields, text};
use crate::files::FileState;
use crate::ledger::{LedgerEntry, NotificationDelivery, Recorded};
use crate::message::{Delivery, Provenance, Sender};
use crate::metrics::HandlerOutcome;
use crate::notify::{Channel, Channels, Deliveries, Lease, Notice, NotifySettings};
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, IntakeGate, Interruption};
use crate::recovery::{Failure, FailureKind};
use crate::steps::TraceContext;
use crate::topology::pattern;

/// Longest name of a channel, in bytes.
const MAX_CHANNEL_BYTES: usize = 32;
/// Why a notification is recorded that was not delivered.
const NO_ADDRESS: &str = "no_address";

/// Writes each notification to a file of its own, not to orderd's log, because a notification names the customer.
#[derive(Debug, Clone)]
pub struct LogChannel {
    /// The file for notifications.
    pub log: EventLog,
}

impl Channel for LogChannel {
    fn write<'a>(&'a self, notice: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
        debug!(id = notice.id, channel = notice.channel, order = notice.order_id, "Notification");
        let line = event_line(notice.id, notice.channel, Timestamp::now(), notice.body);
        Box::pin(append_line(&self.log, line))
    }

    fn event_file(&self) -> Option<watch::Receiver<FileState>> {
        Some(self.log.state())
    }
}

/// `handler = "notification"`
pub(super) struct NotificationFactory;

impl HandlerFactory for NotificationFactory {
    type Settings = NotificationSettings;

    const NAME: &'static str = "notification";

    const MESSAGES: MessageKind = MessageKind::Notification;

    fn read(section: &mut Section<'_>) -> NotificationSettings {
        let channel = |value: &Value| {
            let name = value_parser::text(MAX_CHANNEL_BYTES)(value)?;
            let problem = || format!("must be letters, digits, \"_\" and \"-\", is {value}");
            is_channel(&name).then_some(name).ok_or_else(problem)
        };
        let default = NotificationSettings::default();
        NotificationSettings {
            default_channel: section.optional_or("default_channel", default.default_channel, &channel),
        }
    }

    fn read_notify(section: Section<'_>) -> Option<HandlerSettings> {
        Some(NotifySettings::read(section))
    }

    fn read_alerts(section: Section<'_>, notify: &HandlerSettings) -> Option<(HandlerSettings, HandlerSettings)> {
        let none = NotifySettings::default();
        Some(AlertSettings::read(section, notify.constructor::<NotifySettings>().unwrap_or(&none)))
    }

    fn check(delivery: &Delivery, _: Provenance<'_>, max_body: usize) -> Result<(), Failure> {
        decode(delivery, max_body).map(drop)
    }

    fn build(consumer: HandlerConsumer<'_>, _: &NotificationSettings, deps: &HandlerDeps) -> Arc<dyn Handler> {
        let none = NotifySettings::default();
        let settings = deps.notify.constructor::<NotifySettings>().unwrap_or(&none);
        let log = Arc::clone(&deps.notification_log);
        Arc::new(NotificationHandler {
            channels: Arc::new(Channels::new(consumer.name, settings, log, &deps.steps.breakers)),
            claims: Arc::clone(&deps.claims),
            deliveries: deps.deliveries.clone(),
            max_body: deps.max_body,
        })
    }
}

/// The handler's own keys.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NotificationSettings {
    /// The channel of an order that asks for none; default `email`.
    default_channel: String,
}

impl Default for NotificationSettings {
    fn default() -> Self {
        NotificationSettings { default_channel: DEFAULT_NOTIFY.to_owned() }
    }
}

struct NotificationHandler {
    channels: Arc<Channels>,
    claims: Arc<Claims>,
    deliveries: Deliveries,
    max_body: usize,
}

/// The order id and the email address in a JSON object, if it has them. Other producers may use these names with another
/// meaning, so values of the wrong type are ignored.
pub(super) fn order_id_and_email(object: &str) -> Result<(Option<String>, Option<String>), Failure> {
    let fields = object_fields(object, &["order_id", "email"], OtherFields::NONE)
        .map_err(|error| Failure::new(FailureKind::Malformed, "invalid_event", error.to_string()))?;
    let [order_id, email] = fields.named.map(|field| field.map(RawValue::get));
    let id = |raw| serde_json::from_str::<OrderId>(raw).ok().map(|id| id.as_str().to_owned());
    Ok((order_id.and_then(id), email.and_then(text).map(|email| email.into_owned())))
}

/// The body, and the order that it is about.
fn decode(delivery: &Delivery, max_body: usize) -> Result<(Cow<'_, str>, Option<String>), Failure> {
    let body = delivery.message.document(max_body).map_err(|error| body_failure(&error))?;
    let (order_id, _) = order_id_and_email(&body)?;
    Ok((body, order_id))
}

impl NotificationHandler {
    async fn notify(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        check_sender(input)?;
        let (body, order_id) = decode(input.delivery, self.max_body)?;
        let TraceContext { traceparent, tracestate } = trace(&input.delivery.message);
        let notice = OwnedNotice {
            id: input.identity(),
            channel: last_word_of_routing_key(input.delivery).to_owned(),
            order_id,
            body: body.into_owned(),
            traceparent: traceparent.map(str::to_owned),
            tracestate: tracestate.map(str::to_owned),
        };
        // What follows has limits of its own.
        let _suspended = input.ledger.suspend_deadline();
        let outcome = match self.channels.is_file(&notice.channel) {
            true => self.write(notice, input).await?,
            false => self.deliver(notice, input).await?,
        };
        Ok(HandlerOutput::finished(outcome))
    }

    /// Without channels.
    async fn write(&self, notice: OwnedNotice, input: HandlerInput<'_>) -> Result<HandlerOutcome, HandlerError> {
        // The first copy may have to wait for the ledger.
        let _claim = self.claims.claim(MessageKind::Notification, &notice.id).await;
        let look_up = LedgerEntry::LookUpNotification { id: notice.id.clone() };
        if input.ledger.record(look_up).await? == Recorded::Duplicate {
            return Ok(HandlerOutcome::Duplicate);
        }
        self.channels.write_to_file(notice.notice()).await?;
        input.ledger.record(notice.notified(NotificationDelivery::default())).await?;
        Ok(HandlerOutcome::Completed)
    }

    /// Through a channel.
    async fn deliver(&self, notice: OwnedNotice, input: HandlerInput<'_>) -> Result<HandlerOutcome, HandlerError> {
        let time = self.channels.lease_time(&notice.channel)?;
        if self.channels.is_held(&notice.channel) {
            // The intake stops before the broker delivers it again.
            return Err(HandlerError::Interrupted(Interruption::Held));
        }
        let services = services(input)?;
        let begun = Instant::now();
        // The first copy may have been sent already, and its server may take minutes to answer.
        let claimed = self.claims.claim_owned(MessageKind::Notification, &notice.id);
        let claim = timeout_at(begun + services.max_hold(), claimed).await;
        let claim = claim.map_err(|_| HandlerError::Interrupted(Interruption::TakenOver))?;
        let mut lease = None;
        match time {
            Some(time) => match Lease::claim(services, &notice.id, time, begun).await? {
                Some(claimed) => lease = Some(claimed),
                None => return Ok(HandlerOutcome::Duplicate),
            },
            None => {
                let look_up = LedgerEntry::LookUpNotification { id: notice.id.clone() };
                if input.ledger.record(look_up).await? == Recorded::Duplicate {
                    return Ok(HandlerOutcome::Duplicate);
                }
            }
        }
        let mut failed = Vec::new();
        match self.channels.ready(notice.notice(), services, begun, &mut failed).await {
            Ok(Some(ready)) => {
                let services = services.shared();
                let task = NotificationTask { notice, ready, services, lease, claim };
                self.deliveries.run(task.run()).await
            }
            Ok(None) => {
                let not_delivered = Some(NO_ADDRESS);
                let delivery = NotificationDelivery { not_delivered, ..NotificationDelivery::default() };
                input.ledger.record(notice.notified(delivery)).await?;
                Ok(HandlerOutcome::Skipped)
            }
            Err(error) => {
                release(lease, failed).await?;
                Err(error)
            }
        }
    }
}

impl Handler for NotificationHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(self.notify(input))
    }

    fn gates(&self) -> Vec<IntakeGate> {
        let file = self.channels.event_file().map(IntakeGate::EventFile);
        let services = self.channels.gates().into_iter().map(IntakeGate::Service);
        file.into_iter().chain(services).chain(self.channels.held().into_iter().map(IntakeGate::Held)).collect()
    }

    fn max_in_flight(&self, max_hold: Duration) -> Option<usize> {
        self.channels.max_in_flight(max_hold)
    }
}

/// Refuses a notification of another sender whose routing key does not lead to this queue. The sender used the headers `CC` or
/// `BCC`, whose keys RabbitMQ 3.10 does not compare with the sender's topic permissions, or published to the queue directly.
fn check_sender(input: HandlerInput<'_>) -> Result<(), Failure> {
    let key = input.delivery.first_routing_key();
    if input.provenance.sender == Sender::Own || input.bindings.iter().any(|binding| pattern::matches(binding, key)) {
        return Ok(());
    }
    let reason = format!("not published by orderd, and not with a routing key of this queue, but with {key:?}");
    Err(Failure::new(FailureKind::Permanent, "sender_not_permitted", reason))
}

/// The last word of the routing key with which the message was first published: a notification's channel, or an analytics
/// event's name. The current routing key of a retried message is the name of its queue.
pub(super) fn last_word_of_routing_key(delivery: &Delivery) -> &str {
    let key = delivery.first_routing_key();
    key.rsplit_once('.').map_or(key, |(_, word)| word)
}
