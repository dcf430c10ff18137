//! Notifications: delivered to the customer through a channel, then recorded.
//!
//! Delivery comes first: a crash between the two then notifies the customer twice, which is better than never. Of two copies
//! of a message that arrive at the same time, the second waits and then finds the first one recorded, in another instance too:
//! a notification is claimed in the ledger before a server gets it. Only the file of notifications needs no claim.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::debug;

use super::claim::Claims;
use super::event_line::event_line;
use super::step_run::trace;
use super::{EventLog, HandlerConsumer, HandlerDeps, HandlerFactory, append_line, body_failure};
use crate::alerts::AlertSettings;
use crate::config::{HandlerSettings, MessageKind, Section, Value, value_parser};
use crate::domain::{DEFAULT_NOTIFY, OrderId, OtherFields, is_channel, object_fields, text};
use crate::files::FileState;
use crate::ledger::{LedgerEntry, NewNotification, NotificationDelivery, Recorded};
use crate::message::Sender;
use crate::metrics::HandlerOutcome;
use crate::notify::{Channel, Channels, Delivered, Lease, Notice, NotifySettings};
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, IntakeGate};
use crate::recovery::{Failure, FailureKind};
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
    fn deliver<'a>(&'a self, notice: Notice<'a>, input: HandlerInput<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            // A file that cannot be written is never the message's failure.
            let _suspended = input.ledger.suspend_deadline();
            self.write(notice).await
        })
    }

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

    fn build(consumer: HandlerConsumer<'_>, _: &NotificationSettings, deps: &HandlerDeps) -> Arc<dyn Handler> {
        let none = NotifySettings::default();
        let settings = deps.notify.constructor::<NotifySettings>().unwrap_or(&none);
        let log = Arc::clone(&deps.notification_log);
        Arc::new(NotificationHandler {
            channels: Channels::new(consumer.name, settings, log, &deps.steps.breakers),
            claims: Arc::clone(&deps.claims),
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
    channels: Channels,
    claims: Arc<Claims>,
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

impl NotificationHandler {
    async fn notify(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        check_sender(input)?;
        let body = &*input.delivery.message.document(self.max_body).map_err(|error| body_failure(&error))?;
        let (order_id, _) = order_id_and_email(body)?;
        let id = input.identity();
        // The first copy may have to wait for the ledger.
        let waiting = input.ledger.suspend_deadline();
        let _claim = self.claims.claim(MessageKind::Notification, &id).await;
        drop(waiting);
        let channel = last_word_of_routing_key(input);
        let duplicate = || Ok(HandlerOutput::finished(HandlerOutcome::Duplicate));
        let mut lease = None;
        match self.channels.lease_time(channel)? {
            Some(time) => match Lease::claim(input, &id, time).await? {
                Some(claimed) => lease = Some(claimed),
                None => return duplicate(),
            },
            None => {
                let known = input.ledger.record(LedgerEntry::LookUpNotification { id: id.clone() }).await?;
                if known == Recorded::Duplicate {
                    return duplicate();
                }
            }
        }
        let trace = trace(&input.delivery.message);
        let notice = Notice { id: &id, channel, order_id: order_id.as_deref(), body, trace };
        let mut failed = Vec::new();
        let (delivery, unrecorded) = match self.channels.deliver(notice, input, lease.as_mut(), &mut failed).await {
            Ok(Delivered::Now { provider, recipient, unrecorded }) => {
                (NotificationDelivery { provider, recipient, failed, not_delivered: None }, unrecorded)
            }
            Ok(Delivered::WithoutAddress) => {
                let not_delivered = Some(NO_ADDRESS);
                (NotificationDelivery { not_delivered, ..NotificationDelivery::default() }, None)
            }
            Ok(Delivered::Before) => return duplicate(),
            Err(error) => {
                if let Some(lease) = lease {
                    lease.release(failed).await?;
                }
                return Err(error);
            }
        };
        let (id, channel) = (id.clone(), channel.to_owned());
        let outcome = match delivery.not_delivered {
            Some(_) => HandlerOutcome::Skipped,
            None => HandlerOutcome::Completed,
        };
        let notified = NewNotification { id, order_id, channel, at: Timestamp::now(), delivery };
        input.ledger.record(LedgerEntry::Notification(Box::new(notified))).await?;
        drop(unrecorded);
        Ok(HandlerOutput::finished(outcome))
    }
}

impl Handler for NotificationHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(self.notify(input))
    }

    fn gates(&self) -> Vec<IntakeGate> {
        let file = self.channels.event_file().map(IntakeGate::EventFile);
        file.into_iter().chain(self.channels.gates().into_iter().map(IntakeGate::Service)).collect()
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
pub(super) fn last_word_of_routing_key(input: HandlerInput<'_>) -> &str {
    let key = input.delivery.first_routing_key();
    key.rsplit_once('.').map_or(key, |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::ledger::memory::MemoryLedger;
    use crate::message::{Delivery, DeliveryId, Message, Properties, Provenance};
    use crate::pipeline::{LedgerAccess, StepAccess};
    use crate::steps::CircuitBreakers;

    /// Counts deliveries. Yields first, so that concurrent deliveries interleave.
    #[derive(Default)]
    struct CountingChannel(AtomicUsize);

    impl Channel for CountingChannel {
        fn deliver<'a>(&'a self, _: Notice<'a>, _: HandlerInput<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
            Box::pin(async {
                tokio::task::yield_now().await;
                self.0.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        }

        fn write<'a>(&'a self, _: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
            unreachable!("every notification is a message")
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

    fn input<'a>(delivery: &'a Delivery, consumer: &'a Arc<str>, ledger: LedgerAccess<'a>) -> HandlerInput<'a> {
        let provenance = &Provenance { sender: Sender::Own, is_copy: false, generated: None, cloud_event: None };
        HandlerInput { delivery, provenance, consumer, bindings: &[], retries: 0, ledger, steps: StepAccess::default() }
    }

    struct TestEnv {
        channel: Arc<CountingChannel>,
        handler: NotificationHandler,
        ledger: MemoryLedger,
    }

    fn test_env() -> TestEnv {
        let channel = Arc::new(CountingChannel::default());
        let handler = NotificationHandler {
            channels: Channels::new(
                "notification",
                &NotifySettings::default(),
                Arc::clone(&channel) as Arc<dyn Channel>,
                &CircuitBreakers::default(),
            ),
            claims: Arc::default(),
            max_body: 1 << 20,
        };
        TestEnv { channel, handler, ledger: MemoryLedger::default() }
    }

    #[tokio::test]
    async fn a_body_that_is_not_utf_8_is_malformed_even_in_a_field_that_is_not_read() {
        let TestEnv { channel, handler, ledger } = test_env();
        let ledger = LedgerAccess::without_deadline(&ledger);
        let delivery = delivery(b"{\"note\":\"\xff\"}");
        let consumer = "notification".into();
        let input = input(&delivery, &consumer, ledger);
        let failure = handler.handle(input).await.unwrap_err().failure().unwrap();
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Malformed, "unsupported_encoding"));
        assert_eq!(channel.0.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn two_copies_at_the_same_time_notify_the_customer_once() {
        let TestEnv { channel, handler, ledger } = test_env();
        let ledger = LedgerAccess::without_deadline(&ledger);
        let delivery = delivery(b"{}");
        let consumer = "notification".into();
        let input = input(&delivery, &consumer, ledger);
        let (first, second) = tokio::join!(handler.handle(input), handler.handle(input));
        let mut outcomes = [first.unwrap().outcome, second.unwrap().outcome];
        outcomes.sort_by_key(|outcome| *outcome == HandlerOutcome::Duplicate);
        assert_eq!(outcomes, [HandlerOutcome::Completed, HandlerOutcome::Duplicate]);
        assert_eq!(channel.0.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_phishing_text_sent_by_a_producer_of_orders_is_not_delivered() {
        let TestEnv { channel, handler, ledger } = test_env();
        let ledger = LedgerAccess::without_deadline(&ledger);
        let (consumer, bindings) = ("notification".into(), ["order.notification.*".to_owned()]);
        let mut delivery = delivery(b"{}");
        for (key, deliveries) in [("order.normal.created", 0), ("order.notification.email", 1)] {
            key.clone_into(&mut delivery.routing_key);
            let provenance =
                Provenance { sender: Sender::Unverified, is_copy: false, generated: None, cloud_event: None };
            let input =
                HandlerInput { provenance: &provenance, bindings: &bindings, ..input(&delivery, &consumer, ledger) };
            let result = handler.handle(input).await;
            assert_eq!(
                result.err().map(|error| error.failure().unwrap().kind),
                (deliveries == 0).then_some(FailureKind::Permanent)
            );
            assert_eq!(channel.0.load(Ordering::SeqCst), deliveries);
        }
    }

    #[tokio::test]
    async fn an_order_without_an_address_is_skipped_and_recorded_unless_the_channel_is_strict() {
        for (policy, expected) in [("skip", Ok(HandlerOutcome::Skipped)), ("fail", Err("no_address"))] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("orderd.toml");
            let channel =
                "[notify.email]\ntype = \"smtp\"\naddress = \"127.0.0.1:1\"\nfrom = \"a@example.com\"\ntls = \"none\"";
            std::fs::write(&file, format!("{channel}\nwithout_address = {policy:?}\n")).unwrap();
            let sources = crate::config::Sources { file: Some(file), ..crate::handlers::sources() };
            let notify = crate::config::Config::load(&sources).unwrap().config.notify;
            let TestEnv { channel, mut handler, ledger } = test_env();
            let settings = notify.constructor::<NotifySettings>().unwrap();
            handler.channels = Channels::new("notification", settings, channel, &CircuitBreakers::default());
            let access = LedgerAccess::without_deadline(&ledger);
            let delivery = delivery(br#"{"event":"processed","order_id":"ord-1","email":" "}"#);
            let consumer = "notification".into();
            let result = handler.handle(input(&delivery, &consumer, access)).await;
            let ended = result.map(|output| output.outcome).map_err(|error| error.failure().unwrap().code);
            assert_eq!(ended, expected.map_err(str::to_owned), "{policy}");
        }
    }
}
