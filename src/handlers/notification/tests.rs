//! Notifications through a file, a slow server and channels that hold them.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::*;
use crate::ledger::LedgerWriter;
use crate::ledger::memory::MemoryLedger;
use crate::message::PublishError;
use crate::message::{DeliveryId, Message, Properties};
use crate::metrics::{ChannelCounters, StepCounters};
use crate::pipeline::{LedgerAccess, SharedServices, StepAccess, StepServices};
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
        let provenance = Provenance { sender: Sender::Unverified, is_copy: false, generated: None, cloud_event: None };
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
    let input = |delivery| HandlerInput { steps: StepAccess(Some(&services)), ..input(delivery, &consumer, ledger) };
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
