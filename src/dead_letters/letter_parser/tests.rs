//! What is read of messages by whom they were put into the queue: orderd, the broker, or anyone.

use super::super::reading::KnownConsumer;
use super::*;
use crate::formats::Format;
use crate::ledger::LetterOrder;
use crate::message::{DeliveryId, Message, Properties};

const ORDER: &str =
    r#"{"id":"ord-1","product":"Laptop","quantity":3,"price":"400.00","currency":"EUR","customer_id":"ada"}"#;

fn parser() -> LetterParser {
    let consumer = |name: &str, format| KnownConsumer { name: name.into(), format, check: |_, _, _| Ok(()) };
    let consumers = KnownConsumers::from([
        ("order_queue".to_owned(), consumer("order", Some(Format::Own))),
        ("notification_queue".to_owned(), consumer("notification", None)),
    ]);
    LetterParser {
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        consumers: watch::Sender::new(consumers).subscribe(),
    }
}

fn string(text: &str) -> HeaderValue {
    HeaderValue::Text(text.to_owned())
}

fn delivery(user: Option<&str>, exchange: &str, headers: &[(&str, HeaderValue)], body: &str) -> Delivery {
    Delivery {
        id: DeliveryId { connection: 1, tag: 1 },
        exchange: exchange.to_owned(),
        routing_key: "order.normal.web".to_owned(),
        redelivered: false,
        message: Message {
            properties: Properties { user_id: user.map(str::to_owned), ..Properties::default() },
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            body: body.to_owned().into(),
            missing_bytes: 0,
        },
    }
}

/// A copy that orderd has dead-lettered.
fn copy(body: &str) -> Delivery {
    let headers = [
        ("x-origin-queue", string("order_queue")),
        ("x-failure-kind", string("permanent")),
        ("x-failure-code", string("card_expired")),
        ("x-failure-reason", string("the card of Ada has expired")),
        ("x-dead-letter-reason", string("permanent")),
        ("x-retry-count", HeaderValue::I64(2)),
        ("x-failed-at", HeaderValue::Timestamp(1_000)),
        ("x-identity", string("generated:1-1")),
        ("x-original-user-id", string("")),
    ];
    delivery(Some("orderd"), "orders.dead_letter", &headers, body)
}

/// A message that the broker has dead-lettered from this queue.
fn dead(user: Option<&str>, queue: &str) -> Delivery {
    let death = Headers::from([
        ("reason".to_owned(), string("delivery-limit")),
        ("queue".to_owned(), string(queue)),
        ("time".to_owned(), HeaderValue::Timestamp(2_000)),
    ]);
    delivery(user, "orders.dead_letter", &[("x-death", HeaderValue::List(vec![HeaderValue::Table(death)]))], ORDER)
}

fn now() -> Timestamp {
    Timestamp::from_second(5_000).unwrap()
}

fn read(delivery: &Delivery) -> NewStoredLetter {
    parser().parse(LetterSource::DeadLetterQueue, delivery, "session", BodyAccess::Parse, now())
}

#[test]
fn a_copy_of_orderds_says_why_it_failed_and_which_order_it_is() {
    let letter = read(&copy(ORDER));
    assert_eq!((letter.origin, letter.reason.as_str()), (LetterOrigin::Orderd, "permanent"));
    assert_eq!((letter.code.as_str(), letter.consumer.as_str(), letter.retries), ("card_expired", "order", 2));
    assert_eq!((letter.identity.as_deref(), letter.failed_at.as_second()), (Some("ord-1"), 1_000));
    assert_eq!(letter.order.total, Some(("1200.00".to_owned(), "EUR".to_owned())));
    assert_eq!(
        (letter.order.customer_id.as_deref(), &*letter.order.products),
        (Some("ada"), &["Laptop".to_owned()][..])
    );
    assert_eq!((&*letter.body, letter.identification), (ORDER.as_bytes(), Identification::ById));
    assert!(letter.search.contains("the card of ada") && letter.search.contains("laptop"), "{}", letter.search);
}

#[test]
fn an_order_that_cannot_be_read_is_stored_with_what_can_be_read_of_it() {
    let letter = read(&copy(r#"{"id":"ord-1","product":"Laptop"}"#));
    assert_eq!((letter.identity.as_deref(), letter.order.total), (Some("ord-1"), None));
    assert_eq!(letter.order.customer_id, None);
    // Erasing the customer finds it.
    for (body, customer) in [
        (r#"{"id":"ord-1","customer_id":"ada","product":"Laptop"}"#, Some("ada")),
        (r#"{"customer_id":7,"quantity":"three"}"#, Some("7")),
        (r#"{"id":"ord-1","customer_id":{"id":"ada"}}"#, None),
    ] {
        assert_eq!(read(&copy(body)).order.customer_id.as_deref(), customer, "{body}");
    }
    let letter = read(&copy("not JSON"));
    assert_eq!((letter.identity.as_deref(), letter.order.id), (Some("generated:1-1"), None));
    assert!(letter.search.contains("not json"));
}

#[test]
fn headers_of_anyone_else_are_kept_and_not_believed() {
    for user in [None, Some("shop")] {
        let mut forged = copy(ORDER);
        forged.message.properties.user_id = user.map(str::to_owned);
        let letter = read(&forged);
        assert_eq!((letter.origin, letter.reason.as_str()), (LetterOrigin::Others, "foreign"));
        assert_eq!((letter.code.as_str(), letter.consumer.as_str(), letter.retries), ("foreign", "", 0));
        assert!(letter.headers.contains("card_expired"));
        assert_eq!(letter.failed_at, now());
        assert_eq!(letter.order.id.as_deref(), Some("ord-1"), "it is a valid order all the same");
    }
}

#[test]
fn a_message_is_recognized_by_its_id_or_by_the_order_that_it_is() {
    let of = |body| read(&delivery(None, "", &[], body)).identification;
    assert_eq!((of("x"), of(ORDER)), (Identification::Unidentified, Identification::ById));
    let mut with_id = delivery(None, "", &[], "x");
    with_id.message.properties.message_id = Some("m-1".to_owned());
    with_id.redelivered = true;
    let letter = read(&with_id);
    assert_eq!((letter.identification, letter.redelivered), (Identification::ById, true));
}

#[test]
fn a_message_that_the_broker_dead_lettered_has_the_brokers_reason_and_queue() {
    let letter = read(&dead(Some("shop"), "order_queue"));
    assert_eq!((letter.origin, letter.reason.as_str()), (LetterOrigin::Broker, "delivery_limit"));
    assert_eq!((letter.consumer.as_str(), letter.failed_at.as_second()), ("order", 2_000));
    assert_eq!(letter.identity.as_deref(), Some("ord-1"));
    let of_foreign_queue = read(&dead(None, "mine"));
    assert_eq!((of_foreign_queue.consumer.as_str(), of_foreign_queue.origin_queue.as_deref()), ("", Some("mine")));
    let mut forged = dead(None, "order_queue");
    let death = Headers::from([("reason".to_owned(), string("any text")), ("queue".to_owned(), string("q"))]);
    forged.message.headers.insert("x-death".to_owned(), HeaderValue::List(vec![HeaderValue::Table(death)]));
    assert_eq!(read(&forged).reason, "other", "reasons are few: they are labels of a metric");
    // A copy that the failed-order consumer has rejected still says why it failed.
    let mut rejected = copy(ORDER);
    rejected.message.headers.extend(dead(None, "failed_order_queue").message.headers);
    let letter = read(&rejected);
    assert_eq!((letter.origin, letter.code.as_str()), (LetterOrigin::Broker, "card_expired"));
}

#[test]
fn an_unrouted_message_is_read_by_the_formats_of_the_consumers() {
    let typo = delivery(None, "orders.unrouted", &[], ORDER);
    let letter = parser().parse(LetterSource::UnroutedQueue, &typo, "session", BodyAccess::Parse, now());
    assert_eq!((letter.reason.as_str(), letter.identity.as_deref()), ("unrouted", Some("ord-1")));
    assert_eq!(letter.order.total.as_ref().map(|(total, _)| total.as_str()), Some("1200.00"));
    let mut event = delivery(Some("orderd"), "orders.unrouted", &[], r#"{"x":1}"#);
    event.message.properties.message_id = Some("ord-1/notification/processed".to_owned());
    let letter = parser().parse(LetterSource::UnroutedQueue, &event, "session", BodyAccess::Parse, now());
    assert_eq!((letter.origin, letter.order.id.as_deref()), (LetterOrigin::Orderd, Some("ord-1")));
}

#[test]
fn a_message_that_has_ended_a_process_is_stored_unread() {
    let mut poison = copy(ORDER);
    poison.message.headers.insert("x-delivery-count".to_owned(), HeaderValue::I64(3));
    assert!(LetterParser::is_suspicious(&poison) && !LetterParser::is_suspicious(&copy(ORDER)));
    let unparsed = |delivery| parser().parse(LetterSource::DeadLetterQueue, delivery, "s", BodyAccess::Skip, now());
    let letter = unparsed(&poison);
    assert_eq!((letter.order, letter.code.as_str()), (LetterOrder::default(), "card_expired"));
    assert_eq!(letter.fingerprint, read(&copy(ORDER)).fingerprint, "it is the same message");
    assert!(!letter.headers.contains("x-delivery-count"));
    assert_eq!(read(&poison).identity.as_deref(), Some("ord-1"), "that it has come back often is no reason");
}
