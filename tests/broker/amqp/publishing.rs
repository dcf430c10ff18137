//! Confirms, returns, refusals, limits and closing of the publisher.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use orderd::amqp::{Connector, Unconfirmed};
use orderd::config::Broker;
use orderd::message::{Consumer, HeaderValue, Headers, Properties, PublishError, Publisher, Settlement, Unpublished};

use super::to_queue;
use crate::support::raw_client::{RawClient, number, text, with_headers};
use crate::support::{Node, eventually, with_deadline};

/// The answer to a call that published one message.
fn single(answer: Result<(), Unpublished>) -> Result<(), PublishError> {
    answer.map_err(Unpublished::into_first)
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Empties a queue, and counts its messages by body.
fn bodies(raw: &mut RawClient, queue: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for got in raw.drain(queue) {
        *counts.entry(String::from_utf8(got.body).unwrap()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_message_is_reported_and_its_neighbours_are_published() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let answers = ["q", "nowhere", "q"].map(|queue| publisher.publish([to_queue(queue, "x")].into()));
    let answers = with_deadline("answers", join_all(answers)).await;
    let answers: Vec<_> = answers.into_iter().map(single).collect();
    assert_eq!(answers[0], Ok(()));
    assert_eq!(answers[2], Ok(()));
    let Err(PublishError::Unroutable { routing_key, reply, .. }) = &answers[1] else { panic!("{answers:?}") };
    assert_eq!((routing_key.as_str(), reply.as_str()), ("nowhere", "312 NO_ROUTE"));
    assert_eq!(raw.depth("q"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_unroutable_message_is_distinguished_from_similar_ones() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let mut large = vec![b'x'; 3_000_000];
    large[2_999_999] = b'y';
    let answers = [("nowhere", large.clone()), ("nowhere", vec![b'x'; 3_000_000]), ("q", large)]
        .map(|(queue, body)| publisher.publish([to_queue(queue, body)].into()));
    let answers = with_deadline("answers", join_all(answers)).await;
    let answers: Vec<_> = answers.into_iter().map(single).collect();
    assert!(answers[..2].iter().all(|answer| matches!(answer, Err(PublishError::Unroutable { .. }))), "{answers:?}");
    assert_eq!(answers[2], Ok(()));
    assert_eq!(raw.drain("q")[0].body.len(), 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_full_queue_rejects_is_reported_as_refused() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("full", &[number("x-max-length", 1), text("x-overflow", "reject-publish")]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let mut refused = None;
    // A quorum queue enforces its length limit with a short delay.
    for _ in 0..50 {
        if let Err(error) = with_deadline("answer", publisher.publish([to_queue("full", "x")].into())).await {
            refused = Some(error.into_first());
            break;
        }
    }
    assert!(
        matches!(refused, Some(PublishError::Nacked { ref routing_key, .. }) if routing_key == "full"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_fails_its_own_publication_only() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let answers = join_all((0..40).map(|n| {
        let mut publication = to_queue("q", format!("m{n}"));
        if n == 20 {
            publication.exchange = "no-such-exchange".into();
        }
        publisher.publish([publication].into())
    }));
    let answers = with_deadline("answers", answers).await;
    for (n, answer) in answers.into_iter().enumerate() {
        match n {
            20 => assert!(
                matches!(&single(answer.clone()), Err(PublishError::Unroutable { reply, .. }) if reply.starts_with("404 NOT_FOUND")),
                "{answer:?}"
            ),
            _ => assert_eq!(answer, Ok(()), "m{n}"),
        }
    }
    assert_eq!(bodies(&mut raw, "q").len(), 39);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_neither_closes_the_connection_nor_the_channel_again_and_again() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    with_deadline("answer", publisher.publish([to_queue("q", "first")].into())).await.unwrap();
    let connection = publisher.state().connection;
    for n in 0..50 {
        let mut lost = to_queue("q", "lost");
        lost.exchange = "no-such-exchange".into();
        let set = [to_queue("q", format!("m{n}")), lost].into();
        let unpublished = with_deadline("answer", publisher.publish(set)).await.unwrap_err();
        assert!(matches!(unpublished.failures[..], [(1, PublishError::Unroutable { .. })]), "{unpublished}");
    }
    assert_eq!(publisher.state().connection, connection, "the connection was closed");
    let counts = bodies(&mut raw, "q");
    // A message in flight when the channel was closed may be there twice, and few were: most errors are known beforehand.
    assert_eq!(counts.len(), 51, "{counts:?}");
    assert!(counts.values().sum::<usize>() <= 60, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_never_see_a_lost_connection() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    with_deadline("first confirm", publisher.publish([to_queue("q", "first")].into())).await.unwrap();
    let connection = publisher.state().connection;
    let publishing = tokio::spawn({
        let publisher = publisher.clone();
        async move {
            let mut published = 0;
            while publisher.state().connection == connection || published % 100 != 0 {
                let batch = (0..10).map(|n| to_queue("q", format!("m{}", published + n))).collect();
                publisher.publish(batch).await.unwrap();
                published += 10;
            }
            published
        }
    });
    tokio::task::block_in_place(|| vhost.close_connections());
    let published = with_deadline("publishing", publishing).await.unwrap();
    assert!(published > 0);
    let counts = bodies(&mut vhost.raw(), "q");
    for n in 0..published {
        assert!(counts.contains_key(&format!("m{n}")), "m{n} of {published} is lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_under_load_loses_no_publish() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let body = Bytes::from(vec![b'x'; 2_000]);
    let answers: Vec<_> =
        (0..2_000).map(|_| tokio::spawn(publisher.publish([to_queue("q", body.clone())].into()))).collect();
    eventually("publishing has begun", async || publisher.state().unconfirmed > 500 || has_unconfirmed(&publisher))
        .await;
    assert_eq!(publisher.close(PATIENCE).await, Ok(()));
    let mut published = 0;
    for answer in answers {
        match single(answer.await.unwrap()) {
            Ok(()) => published += 1,
            Err(PublishError::Closed) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(published > 0);
    assert_eq!(raw.depth("q"), published, "confirmed messages and messages in the queue differ");
    assert_eq!(
        single(with_deadline("answer", publisher.publish([to_queue("q", "late")].into())).await),
        Err(PublishError::Closed)
    );
    assert!(!publisher.state().connected);
    assert_eq!(publisher.close(PATIENCE).await, Ok(()), "closing twice");
}

fn has_unconfirmed(publisher: &orderd::amqp::ConfirmingPublisher) -> bool {
    publisher.state().connected && publisher.state().unconfirmed > 0
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_stop_waiting_leave_no_state_behind() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    for n in 0..100 {
        let mut publishing = publisher.publish([to_queue("q", format!("m{n}"))].into());
        // The first poll hands the publication over; then the caller is dropped.
        assert!(futures_util::poll!(&mut publishing).is_pending());
        // Without a yield, tokio's cooperative budget would make later polls return before handing over.
        tokio::task::yield_now().await;
    }
    eventually("all are confirmed", async || publisher.state().unconfirmed == 0).await;
    assert_eq!(raw.depth("q"), 100);
    with_deadline("answer", publisher.publish([to_queue("q", "after")].into())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_unconfirmed_messages_holds_and_larger_batches_and_messages_are_published() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let mut broker = vhost.broker();
    (broker.max_unconfirmed, broker.max_unconfirmed_bytes) = (10, 20_000);
    let publisher = Connector::new(broker).publisher();
    let body = Bytes::from(vec![b'x'; 3_000]);
    let callers = (0..30).map(|_| publisher.publish(vec![to_queue("q", body.clone()); 25].into()));
    let watch = async {
        loop {
            assert!(publisher.state().unconfirmed <= 10, "{:?}", publisher.state());
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answers = with_deadline("answers", join_all(callers)) => assert!(answers.iter().all(Result::is_ok), "{answers:?}"),
        () = watch => {}
    }
    assert_eq!(raw.depth("q"), 750);
    let larger_than_the_limit = publisher.publish([to_queue("q", vec![0; 30_000])].into());
    assert_eq!(with_deadline("answer", larger_than_the_limit).await, Ok(()));
    assert_eq!(raw.depth("q"), 751);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_over_255_bytes_are_errors_and_the_publisher_stays_usable() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let long = "é".repeat(128);
    let mut bad_header = to_queue("q", "x");
    bad_header.message.headers.insert(long.clone(), HeaderValue::Void);
    let mut bad_property = to_queue("q", "x");
    bad_property.message.properties.correlation_id = Some(long.clone());
    let mut bad_table = to_queue("q", "x");
    bad_table.message.headers.insert("big".into(), HeaderValue::Text("x".repeat(200_000)));
    for bad in [to_queue(&long, "x"), bad_header, bad_property, bad_table] {
        let answer = with_deadline("answer", publisher.publish([bad].into())).await;
        assert!(matches!(single(answer.clone()), Err(PublishError::Invalid { .. })), "{answer:?}");
    }
    let connection = publisher.state().connection;
    with_deadline("answer", publisher.publish([to_queue("q", "good")].into())).await.unwrap();
    assert!(publisher.state().connection == connection || connection == 0, "the error closed the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_255_bytes_and_a_full_frame_of_headers_are_published() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    let queue = "q".repeat(255);
    raw.declare_quorum(&queue, &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let mut publication = to_queue(&queue, "x");
    publication.message.headers.insert("n".repeat(255), HeaderValue::Text("x".repeat(129_000)));
    with_deadline("answer", publisher.publish([publication].into())).await.unwrap();
    assert_eq!(publisher.state().connection, 1, "the error closed the connection");
    assert_eq!(raw.depth(&queue), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_and_headers_of_every_type_round_trip() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    let connector = Connector::new(vhost.broker());
    let publisher = connector.publisher();
    let mut publication = to_queue("q", "");
    let table =
        Headers::from([("deep".to_owned(), HeaderValue::List(vec![HeaderValue::Bool(false), HeaderValue::Void]))]);
    publication.message.headers = [
        HeaderValue::Bool(true),
        HeaderValue::I8(-1),
        HeaderValue::U8(255),
        HeaderValue::I16(-2),
        HeaderValue::U16(65_535),
        HeaderValue::I32(-3),
        HeaderValue::U32(u32::MAX),
        HeaderValue::I64(-4),
        HeaderValue::F32(0.5),
        HeaderValue::F64(0.25),
        HeaderValue::Decimal { scale: 2, digits: 40_000 },
        HeaderValue::Text("Käse".into()),
        HeaderValue::Bytes(Bytes::from_static(&[0xFF, 0xFE])),
        HeaderValue::List(vec![HeaderValue::I64(1), HeaderValue::Table(table.clone())]),
        HeaderValue::Table(table),
        HeaderValue::Timestamp(1_700_000_000),
        HeaderValue::Void,
    ]
    .into_iter()
    .enumerate()
    .map(|(n, value)| (format!("h{n:02}"), value))
    .collect();
    publication.message.properties = Properties {
        content_type: Some("application/json".into()),
        content_encoding: Some("gzip".into()),
        priority: Some(4),
        correlation_id: Some("c".into()),
        reply_to: Some("r".into()),
        expiration: Some("600000".into()),
        message_id: Some("m".into()),
        timestamp: Some(1_700_000_001),
        message_type: Some("t".into()),
        user_id: Some("guest".into()),
        app_id: Some("shop".into()),
    };
    let expected = publication.message.clone();
    with_deadline("answer", publisher.publish([publication].into())).await.unwrap();
    let mut subscription = with_deadline("subscribe", connector.subscribe("q", 1)).await.unwrap();
    let delivery = with_deadline("delivery", subscription.deliveries.next()).await.unwrap();
    assert_eq!(delivery.message, expected);
    subscription.settler.settle(delivery.id, Settlement::Ack);
    with_deadline("close", subscription.settler.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_error_about_a_message_reaches_the_caller() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    let publisher = Connector::new(vhost.broker()).publisher();
    let mut invalid = to_queue("q", "x");
    invalid.message.properties.expiration = Some("soon".into());
    let answer = with_deadline("answer", publisher.publish([invalid].into())).await;
    assert!(
        matches!(&single(answer.clone()), Err(PublishError::Invalid { problem, .. }) if problem.starts_with("406")),
        "{answer:?}"
    );
    with_deadline("answer", publisher.publish([to_queue("q", "x")].into())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_states_the_connections_user_whatever_the_message_and_the_configuration_say() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    // As with a client certificate: the broker knows the user by another name.
    let connector = Connector::new(vhost.broker());
    for name in ["CN=orderd", "x".repeat(255).as_str()] {
        connector.users().set_own(name);
        let mut copied = to_queue("q", "x");
        copied.message.properties.user_id = Some("somebody-else".into());
        let answer = single(with_deadline("answer", connector.publisher().publish([copied].into())).await);
        // A long name leaves no room for the real one in the broker's answer.
        assert_eq!(answer.is_ok(), name.len() < 255, "{answer:?}");
        assert!(matches!(answer, Ok(()) | Err(PublishError::Refused { .. })), "not the message's fault: {answer:?}");
    }
    // The connector with the wrong name finds out the right one.
    assert_eq!(&*with_deadline("identify", connector.identify("amq.direct")).await.unwrap(), "guest");
    assert!(connector.users().contains("guest"));
    assert_eq!(vhost.raw().depth("q"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_users_that_do_not_fit_the_brokers_answer_are_found_out() {
    let node = Node::shared();
    let vhost = node.vhost();
    for name in ["CN=orderd,O=O'Brien", "bestellung-ü", &"y".repeat(240), &"ü".repeat(120)] {
        // Users belong to the whole broker.
        let name = format!("{name}{}", &vhost.name[..8]);
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        tokio::task::block_in_place(|| {
            node.management("PUT", &format!("/users/{encoded}"), r#"{"password":"guest","tags":""}"#);
            node.management("PUT", &format!("/permissions/{}/{encoded}", vhost.name), everything);
        });
        let connector = Connector::new(Broker { username: name.clone(), ..vhost.broker() });
        assert_eq!(*with_deadline("identify", connector.identify("amq.direct")).await.unwrap(), *name);
        tokio::task::block_in_place(|| node.management("DELETE", &format!("/users/{encoded}"), ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_an_unconnected_publisher_ends_at_its_deadline() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    broker.addresses[0].port = 1;
    let publisher = Connector::new(broker).publisher();
    let waiting = tokio::spawn(publisher.publish([to_queue("q", "x")].into()));
    eventually("the publication is handed over", async || publisher.state().unconfirmed == 1).await;
    assert_eq!(publisher.close(Duration::from_millis(300)).await, Err(Unconfirmed(1)));
    assert_eq!(single(with_deadline("answer", waiting).await.unwrap()), Err(PublishError::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_from_another_client_is_republished_unchanged() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("in", &[]);
    raw.declare_quorum("out", &[]);
    raw.publish("in", &with_headers(&[text("source", "shop"), number("attempt", -7)]), b"payload");
    let connector = Connector::new(vhost.broker());
    let publisher = connector.publisher();
    let mut subscription = with_deadline("subscribe", connector.subscribe("in", 1)).await.unwrap();
    let delivery = with_deadline("delivery", subscription.deliveries.next()).await.unwrap();
    let mut copy = to_queue("out", "");
    copy.message = delivery.message;
    with_deadline("answer", publisher.publish([copy].into())).await.unwrap();
    let got = raw.get("out").unwrap();
    assert_eq!(got.body, b"payload");
    assert!(got.has(&text("source", "shop")) && got.has(&number("attempt", -7)), "{got:?}");
}
