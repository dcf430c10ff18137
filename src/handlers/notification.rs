//! Notifications: delivered to the customer through a channel, then recorded.
//!
//! Delivery comes first: a crash between the two then notifies the customer twice, which is better than never. Of two copies
//! of a message that arrive at the same time, the second waits and then finds the first one recorded, in another instance too:
//! a notification is claimed in the ledger before a server gets it. Only the file of notifications needs no claim.
//!
//! Once a server may be called, attempts and record are a task that a lost connection to the broker does not end: the server may accept
//! what it has got. A copy that is delivered again waits for it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::claim::{Claim, Claims};
use super::event_line::event_line;
use super::step_run::{services, trace};
use super::{EventLog, HandlerConsumer, HandlerDeps, HandlerFactory, append_line, body_failure};
use crate::alerts::AlertSettings;
use crate::config::{HandlerSettings, MessageKind, Section, Value, value_parser};
use crate::domain::{DEFAULT_NOTIFY, OrderId, OtherFields, is_channel, object_fields, text};
use crate::files::FileState;
use crate::ledger::{FailedDelivery, LedgerEntry, NewNotification, NotificationDelivery, Recorded};
use crate::message::Sender;
use crate::metrics::HandlerOutcome;
use crate::notify::{Channel, Channels, Delivered, Deliveries, Lease, Notice, NotifySettings, ReadyDelivery};
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, IntakeGate, Interruption, SharedServices};
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

/// What a delivery needs that does not end with the handler's future.
struct NotificationTask {
    notice: OwnedNotice,
    ready: ReadyDelivery,
    services: SharedServices,
    lease: Option<Lease>,
    _claim: Claim<Arc<Claims>>,
}

struct OwnedNotice {
    id: String,
    channel: String,
    order_id: Option<String>,
    body: String,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl OwnedNotice {
    fn notice(&self) -> Notice<'_> {
        let OwnedNotice { id, channel, order_id, body, traceparent, tracestate } = self;
        let trace = TraceContext { traceparent: traceparent.as_deref(), tracestate: tracestate.as_deref() };
        Notice { id, channel, order_id: order_id.as_deref(), body, trace }
    }

    /// To be recorded.
    fn notified(self, delivery: NotificationDelivery) -> LedgerEntry {
        let OwnedNotice { id, channel, order_id, .. } = self;
        let notified = NewNotification { id, order_id, channel, at: Timestamp::now(), delivery };
        LedgerEntry::Notification(Box::new(notified))
    }
}

impl NotificationTask {
    /// Makes the attempts, and records how they end.
    async fn run(self) -> Result<HandlerOutcome, HandlerError> {
        let NotificationTask { notice, ready, services, mut lease, _claim } = self;
        let mut failed = Vec::new();
        match ready.deliver(notice.notice(), &services, lease.as_mut(), &mut failed).await {
            Ok(Delivered::Now { provider, recipient, unrecorded }) => {
                let delivery =
                    NotificationDelivery { provider: Some(provider), recipient, failed, not_delivered: None };
                services.ledger.record(notice.notified(delivery)).await?;
                drop(unrecorded);
                Ok(HandlerOutcome::Completed)
            }
            Ok(Delivered::Before) => {
                release(lease, failed).await?;
                Ok(HandlerOutcome::Duplicate)
            }
            Err(error) => {
                release(lease, failed).await?;
                Err(error)
            }
        }
    }
}

async fn release(lease: Option<Lease>, failed: Vec<FailedDelivery>) -> Result<(), HandlerError> {
    match lease {
        Some(lease) => lease.release(failed).await,
        None => Ok(()),
    }
}

impl NotificationHandler {
    async fn notify(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        check_sender(input)?;
        let body = input.delivery.message.document(self.max_body).map_err(|error| body_failure(&error))?;
        let (order_id, _) = order_id_and_email(&body)?;
        let TraceContext { traceparent, tracestate } = trace(&input.delivery.message);
        let notice = OwnedNotice {
            id: input.identity(),
            channel: last_word_of_routing_key(input).to_owned(),
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
                let task = NotificationTask { notice, ready, services, lease, _claim: claim };
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
pub(super) fn last_word_of_routing_key(input: HandlerInput<'_>) -> &str {
    let key = input.delivery.first_routing_key();
    key.rsplit_once('.').map_or(key, |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::ledger::LedgerWriter;
    use crate::ledger::memory::MemoryLedger;
    use crate::message::PublishError;
    use crate::message::{Delivery, DeliveryId, Message, Properties, Provenance};
    use crate::metrics::{ChannelCounters, StepCounters};
    use crate::pipeline::{LedgerAccess, StepAccess, StepServices};
    use crate::steps::CircuitBreakers;

    /// Counts deliveries. Yields first, so that concurrent deliveries interleave.
    #[derive(Default)]
    struct CountingChannel(AtomicUsize);

    impl Channel for CountingChannel {
        fn write<'a>(&'a self, _: Notice<'a>) -> BoxFuture<'a, Result<(), HandlerError>> {
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
            channels: Arc::new(Channels::new(
                "notification",
                &NotifySettings::default(),
                Arc::clone(&channel) as Arc<dyn Channel>,
                &CircuitBreakers::default(),
            )),
            claims: Arc::default(),
            deliveries: Deliveries::default(),
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

    struct TestServices(SharedServices);

    impl StepServices for TestServices {
        fn publish(&self, _: Arc<[crate::message::Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
            unreachable!("notifications publish nothing")
        }

        fn ledger(&self) -> &dyn LedgerWriter {
            &*self.0.ledger
        }

        fn counters(&self) -> &StepCounters {
            self.0.counters.steps()
        }

        fn channels(&self) -> &ChannelCounters {
            self.0.counters.channels()
        }

        fn max_hold(&self) -> Duration {
            Duration::from_secs(60)
        }

        fn waits(&self) -> &crate::wait_budget::WaitBudget {
            unreachable!("no step is called")
        }

        fn queue(&self) -> &Arc<str> {
            unreachable!("no step is called")
        }

        fn note(&self) -> &crate::recovery::ClaimNote {
            unreachable!("no step is called")
        }

        fn shared(&self) -> SharedServices {
            self.0.clone()
        }
    }

    /// An SMTP server that answers to an e-mail only when it may.
    async fn slow_server(listener: TcpListener, received: Arc<Semaphore>, may_answer: Arc<Semaphore>) {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut reply = "220 ready";
        loop {
            write.write_all(format!("{reply}\r\n").as_bytes()).await.unwrap();
            let Ok(Some(line)) = lines.next_line().await else { return };
            reply = if line == "DATA" { "354 more" } else { "250 OK" };
            if line == "DATA" {
                write.write_all(b"354 more\r\n").await.unwrap();
                while lines.next_line().await.unwrap().unwrap() != "." {}
                received.add_permits(1);
                may_answer.acquire().await.unwrap().forget();
                reply = "250 accepted";
            }
        }
    }

    #[tokio::test]
    async fn with_a_faulty_template_notifications_of_its_channel_are_held_and_none_is_dead_lettered() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("en")).unwrap();
        std::fs::write(directory.path().join("en/shipped.txt"), "Subject: x\n\n{{ ordr_id }}\n").unwrap();
        let keys = format!("templates = {:?}\n[notify.file]\ntype = \"log\"\n", directory.path());
        let (handler, breakers) = e_mail_handler(1, &keys);
        let held = handler.channels.held();
        assert!(held.len() == 1 && held[0].is_passable(), "a channel that is not used stops nothing");
        let (services, consumer) = (test_services(), "notification".into());
        let ledger = LedgerAccess::without_deadline(services.ledger());
        // Only a template of the directory knows the event.
        let shipped = |channel: &str| Delivery {
            routing_key: format!("order.notification.{channel}"),
            ..delivery(br#"{"event":"shipped","email":"ada@example.com"}"#)
        };
        let (to_file, to_email) = (shipped("file"), shipped("email"));
        let input =
            |delivery| HandlerInput { steps: StepAccess(Some(&services)), ..input(delivery, &consumer, ledger) };
        assert_eq!(handler.handle(input(&to_file)).await.unwrap().outcome, HandlerOutcome::Completed);
        let interrupted = handler.handle(input(&to_email)).await.unwrap_err();
        assert_eq!(interrupted, HandlerError::Interrupted(Interruption::Held));
        assert!(!held[0].is_passable());
        let reading = &breakers.read()[0];
        assert_eq!((&*reading.name, reading.last_code.as_deref()), ("email", Some("templates_faulty")));
    }

    /// With an e-mail server at this port, and these keys.
    fn e_mail_handler(port: u16, more: &str) -> (NotificationHandler, CircuitBreakers) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        let email = "[notify.email]\ntype = \"smtp\"\ntls = \"none\"\nfrom = \"orders@example.com\"\n";
        std::fs::write(&file, format!("{email}address = \"127.0.0.1:{port}\"\n{more}\n")).unwrap();
        let sources = crate::config::Sources { file: Some(file), ..crate::handlers::sources() };
        let config = crate::config::Config::load_usable(&sources).unwrap().0.config;
        let settings = config.notify.constructor::<NotifySettings>().unwrap();
        let (log, breakers) = (Arc::new(CountingChannel::default()), CircuitBreakers::default());
        let handler = NotificationHandler {
            channels: Arc::new(Channels::new("notification", settings, log, &breakers)),
            claims: Arc::default(),
            deliveries: Deliveries::default(),
            max_body: 1 << 20,
        };
        (handler, breakers)
    }

    fn test_services() -> TestServices {
        TestServices(SharedServices { ledger: Arc::new(MemoryLedger::default()), counters: Arc::default() })
    }

    const E_MAIL: &[u8] = br#"{"event":"processed","order_id":"ord-1","email":"ada@example.com"}"#;

    #[tokio::test]
    async fn a_connection_to_the_broker_that_is_lost_while_a_server_accepts_an_e_mail_sends_it_no_second_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (handler, _) = e_mail_handler(listener.local_addr().unwrap().port(), "");
        let (received, may_answer) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        tokio::spawn(slow_server(listener, Arc::clone(&received), Arc::clone(&may_answer)));
        let (services, delivery, consumer) = (test_services(), delivery(E_MAIL), "notification".into());
        let ledger = LedgerAccess::without_deadline(services.ledger());
        let input = HandlerInput { steps: StepAccess(Some(&services)), ..input(&delivery, &consumer, ledger) };
        let lost = handler.handle(input);
        // The future of the handler is dropped once the server has the e-mail.
        tokio::select! {
            _ = lost => panic!("the server has not answered"),
            _ = received.acquire() => {}
        }
        assert_eq!(handler.deliveries.in_flight(), 1);
        let again = handler.handle(input);
        may_answer.add_permits(1);
        assert_eq!(again.await.unwrap().outcome, HandlerOutcome::Duplicate);
        handler.deliveries.finish().await;
        let reading = services.channels().read().providers[&("email".into(), "email".into())].clone();
        assert_eq!((reading.sent, reading.abandoned, received.available_permits()), (1, 0, 1));
    }

    #[tokio::test]
    async fn an_e_mail_that_a_server_may_have_accepted_is_not_repeated_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (handler, _) = e_mail_handler(port, "accept_timeout = \"100ms\"");
        tokio::spawn(slow_server(listener, Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0))));
        let (services, delivery, consumer) = (test_services(), delivery(E_MAIL), "notification".into());
        let ledger = LedgerAccess::without_deadline(services.ledger());
        let input = HandlerInput { steps: StepAccess(Some(&services)), ..input(&delivery, &consumer, ledger) };
        let failure = handler.handle(input).await.unwrap_err().failure().unwrap();
        assert_eq!((failure.code.as_str(), failure.retry_after), ("timed_out", Some(Duration::ZERO)));
    }

    #[tokio::test]
    async fn a_notification_that_cannot_be_made_says_nothing_about_the_server() {
        let (handler, breakers) = e_mail_handler(1, "");
        let (services, consumer) = (test_services(), "notification".into());
        let ledger = LedgerAccess::without_deadline(services.ledger());
        for (body, code) in [
            (br#"{"event":"processed","email":"ada"}"#.as_slice(), "invalid_address"),
            (br#"{"event":"shipped","email":"ada@example.com"}"#, "unknown_event"),
        ] {
            let delivery = delivery(body);
            let input = HandlerInput { steps: StepAccess(Some(&services)), ..input(&delivery, &consumer, ledger) };
            assert_eq!(handler.handle(input).await.unwrap_err().failure().unwrap().code, code);
        }
        assert_eq!(breakers.read()[0].calls, 0);
        assert!(services.channels().read().providers.is_empty());
    }

    #[tokio::test]
    async fn an_order_without_an_address_is_skipped_and_recorded_unless_the_channel_is_strict() {
        for (policy, expected) in [("skip", Ok(HandlerOutcome::Skipped)), ("fail", Err("no_address"))] {
            let (handler, _) = e_mail_handler(1, &format!("without_address = {policy:?}"));
            let services = test_services();
            let delivery = delivery(br#"{"event":"processed","order_id":"ord-1","email":" "}"#);
            let consumer = "notification".into();
            let ledger = LedgerAccess::without_deadline(services.ledger());
            let input = HandlerInput { steps: StepAccess(Some(&services)), ..input(&delivery, &consumer, ledger) };
            let ended = handler.handle(input).await;
            let ended = ended.map(|output| output.outcome).map_err(|error| error.failure().unwrap().code);
            assert_eq!(ended, expected.map_err(str::to_owned), "{policy}");
        }
    }
}
