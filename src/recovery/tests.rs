//! Histories read from headers, and the copies that write them.

use jiff::Timestamp;

use super::*;
use crate::domain::OrderId;
use crate::ledger::RunKey;
use crate::message::{
    Delivery, DeliveryId, ExchangeNames, HeaderValue, Headers, Message, Provenance, Publication, TrustedUsers, names,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_000).unwrap()
}

fn delivery(exchange: &str, routing_key: &str, headers: Headers) -> Delivery {
    Delivery {
        id: DeliveryId { connection: 1, tag: 1 },
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        redelivered: false,
        message: Message { headers, ..Message::default() },
    }
}

/// As the broker delivers what orderd has published: with orderd's user.
fn received(publication: Publication) -> Delivery {
    let Publication { exchange, routing_key, mut message } = publication;
    message.properties.user_id = Some("orderd".to_owned());
    Delivery { message, ..delivery(&exchange, &routing_key, Headers::new()) }
}

fn provenance(delivery: &Delivery) -> Provenance<'_> {
    delivery.provenance(&ExchangeNames::new("orders"), &TrustedUsers::known("orderd"), None)
}

fn failed(delivery: &Delivery, at: i64) -> History {
    let failure = Failure::new(FailureKind::Transient, "busy", "try later");
    let at = Timestamp::from_second(at).unwrap();
    let copy = copy_for_failure(
        delivery,
        provenance(delivery),
        ("order", "order_queue"),
        (failure, None),
        &ExchangeNames::new("orders"),
        at,
    );
    assert_eq!(copy.routing_key, "order.failed.order");
    let copy = received(copy);
    History::read(&copy, provenance(&copy), now())
}

/// A copy that the broker has dead-lettered from its retry queue, back in the work queue.
fn expired(retry: Publication) -> Delivery {
    Delivery { exchange: "orders.requeue".to_owned(), routing_key: "order_queue".to_owned(), ..received(retry) }
}

#[test]
fn a_failure_remembers_where_it_happened() {
    let history = failed(&delivery("orders", "order.normal.created", Headers::new()), 500);
    let origin = history.origin.unwrap();
    assert_eq!(
        (origin.queue.as_str(), origin.exchange.as_str(), origin.routing_key.as_str()),
        ("order_queue", "orders", "order.normal.created")
    );
    assert_eq!(history.retries, 0);
    assert_eq!(history.first_failed_at.as_second(), 500);
    assert_eq!(history.failure.code, "busy");
}

#[test]
fn a_retried_message_keeps_its_first_origin_and_its_retry_count() {
    let names = ExchangeNames::new("orders");
    let first = delivery("orders", "order.normal.created", Headers::new());
    let history = failed(&first, 500);
    let delay = "10s".parse().unwrap();
    let retry = copy_for_retry(&first, provenance(&first), &history, "order_queue", delay, &names);
    assert_eq!((&*retry.exchange, retry.routing_key.as_str()), ("orders.retry", "order_queue.retry.10s"));
    let back = expired(retry);
    assert_eq!(trusted_retry_count(&back, provenance(&back)), 1);
    let again = failed(&back, 600);
    assert_eq!(again.retries, 1);
    assert_eq!(again.first_failed_at.as_second(), 500);
    assert_eq!(again.failed_at.as_second(), 600);
    assert_eq!(again.origin.unwrap().routing_key, "order.normal.created");
}

#[test]
fn a_producers_retry_count_is_not_trusted() {
    let forged = Headers::from([
        (names::RETRY_COUNT.to_owned(), HeaderValue::I64(99)),
        (names::FIRST_FAILED_AT.to_owned(), HeaderValue::Timestamp(1)),
        (names::ORIGIN_QUEUE.to_owned(), "elsewhere".into()),
    ]);
    let history = failed(&delivery("orders", "order.normal.created", forged), 500);
    assert_eq!(history.retries, 0);
    assert_eq!(history.first_failed_at.as_second(), 500);
    assert_eq!(history.origin.unwrap().queue, "order_queue");
}

fn broker_death(exchange: &str) -> (String, HeaderValue) {
    let death = Headers::from([
        ("reason".to_owned(), "delivery_limit".into()),
        ("queue".to_owned(), "order_queue".into()),
        ("exchange".to_owned(), exchange.into()),
        ("routing-keys".to_owned(), HeaderValue::List(vec!["order.normal.created".into()])),
    ]);
    (names::DEATH.to_owned(), HeaderValue::List(vec![HeaderValue::Table(death)]))
}

#[test]
fn the_brokers_own_dead_lettering_is_a_failure_like_any_other() {
    let dead = delivery("orders", "order.failed.order", Headers::from([broker_death("orders")]));
    let history = History::read(&dead, provenance(&dead), now());
    assert_eq!(history.failure.kind, FailureKind::DeliveryLimit);
    assert_eq!(history.origin.unwrap().queue, "order_queue");
    assert!(!history.hit_delivery_limit_before);
}

#[test]
fn a_producers_failure_headers_are_not_trusted_when_the_broker_dead_letters() {
    let forged = Headers::from([
        broker_death("orders"),
        (names::RETRY_COUNT.to_owned(), HeaderValue::I64(99)),
        (names::FAILURE_KIND.to_owned(), "delivery_limit".into()),
        (names::FIRST_FAILED_AT.to_owned(), HeaderValue::Timestamp(1)),
    ]);
    let dead = delivery("orders", "order.failed.order", forged);
    let history = History::read(&dead, provenance(&dead), now());
    assert_eq!((history.retries, history.hit_delivery_limit_before), (0, false));
    assert_eq!(history.first_failed_at, now());
}

#[test]
fn a_second_delivery_limit_is_recognised() {
    let names = ExchangeNames::new("orders");
    let dead = delivery("orders", "order.failed.order", Headers::from([broker_death("orders")]));
    let history = History::read(&dead, provenance(&dead), now());
    let retry = copy_for_retry(&dead, provenance(&dead), &history, "order_queue", "1s".parse().unwrap(), &names);
    assert!(!retry.message.headers.contains_key(names::DEATH), "a broker may drop a message with a copied x-death");
    let mut again = Delivery { routing_key: "order.failed.order".to_owned(), ..received(retry) };
    again.message.headers.extend([broker_death("orders.requeue")]);
    let history = History::read(&again, provenance(&again), now());
    assert!(history.hit_delivery_limit_before);
    assert_eq!(history.retries, 1);
    assert_eq!(history.origin.unwrap().routing_key, "order.normal.created");
}

#[test]
fn a_copy_keeps_what_the_sender_set_and_drops_what_the_broker_did() {
    let mut original = delivery("orders", "order.normal.created", Headers::new());
    original.message.properties.message_id = Some("m-1".to_owned());
    original.message.properties.correlation_id = Some("c-1".to_owned());
    original.message.properties.user_id = Some("shop".to_owned());
    original.message.properties.expiration = Some("60000".to_owned());
    let sent = [("tenant", "north"), ("CC", "elsewhere"), (names::ACQUIRED_COUNT, "1")];
    original.message.headers.extend(sent.map(|(name, value)| (name.to_owned(), value.into())));
    let copy = copies::copy(&original, provenance(&original));
    assert_eq!(copy.properties.message_id.as_deref(), Some("m-1"));
    assert_eq!(copy.properties.correlation_id.as_deref(), Some("c-1"));
    assert_eq!((copy.properties.expiration, copy.properties.user_id), (None, None));
    let kept: Vec<_> = copy.headers.keys().map(String::as_str).collect();
    assert_eq!(kept, ["tenant", names::ORIGINAL_USER_ID]);
}

#[test]
fn a_stray_message_has_no_origin() {
    let stray = delivery("orders", "order.failed.by.hand", Headers::new());
    let history = History::read(&stray, provenance(&stray), now());
    assert_eq!(history.origin, None);
}

#[test]
fn a_forged_retry_history_is_treated_as_what_it_is() {
    let headers = || {
        Headers::from([
            (names::RETRY_COUNT.to_owned(), HeaderValue::I64(0)),
            (names::ORIGIN_QUEUE.to_owned(), "notification_queue".into()),
            (names::ORIGIN_ROUTING_KEY.to_owned(), "order.notification.email".into()),
            (names::FAILURE_KIND.to_owned(), "transient".into()),
            (names::FAILURE_CODE.to_owned(), "busy".into()),
            (names::ORIGINAL_USER_ID.to_owned(), "orderd".into()),
        ])
    };
    // By `CC` the key stays that of the producer; with the key of failures, the producer's user is still not orderd's.
    let mut forgeries =
        [delivery("orders", "order.normal.created", headers()), delivery("orders", "order.failed.x", headers())];
    forgeries[0].message.headers.extend([broker_death("orders.requeue")]);
    forgeries[1].message.properties.user_id = Some("shop".to_owned());
    for forged in &forgeries {
        let history = History::read(forged, provenance(forged), now());
        assert_eq!((history.origin, history.failure.code.as_str()), (None, "unknown_failure"));
        assert_eq!(history.failure.kind, FailureKind::Permanent);
    }
}

#[test]
fn a_copy_says_who_sent_the_message_even_if_the_sender_claims_another() {
    for (user, stated) in [(Some("shop"), "shop"), (None, "")] {
        let forged = Headers::from([(names::ORIGINAL_USER_ID.to_owned(), "orderd".into())]);
        let mut first = delivery("orders", "order.normal.created", forged);
        first.message.properties.user_id = user.map(str::to_owned);
        let history = failed(&first, 500);
        let retry = copy_for_retry(
            &first,
            provenance(&first),
            &history,
            "order_queue",
            "1s".parse().unwrap(),
            &ExchangeNames::new("orders"),
        );
        let again = copies::copy(&expired(retry.clone()), provenance(&expired(retry)));
        assert_eq!(again.headers.get(names::ORIGINAL_USER_ID).and_then(HeaderValue::as_text), Some(stated));
    }
}

#[test]
fn what_a_sender_claims_of_a_replay_an_undo_or_a_cancellation_is_in_no_copy_of_its_message() {
    let claims = [
        (names::REPLAYED_AT, HeaderValue::Timestamp(1)),
        (names::UNDO, HeaderValue::Bool(true)),
        (names::CANCELS, "ord-2".into()),
        (names::RUN, HeaderValue::Text(format!("1/{}//ord-2", "00".repeat(32)))),
    ];
    let headers: Headers = claims.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let failed_copy = |first: &Delivery| {
        let failure = Failure::new(FailureKind::Transient, "busy", "try later");
        let orders = ExchangeNames::new("orders");
        received(copy_for_failure(first, provenance(first), ("order", "order_queue"), (failure, None), &orders, now()))
    };
    let forged = failed_copy(&delivery("orders", "order.normal.created", headers.clone()));
    assert!(claims.iter().all(|(name, _)| !forged.message.headers.contains_key(*name)), "{forged:?}");
    assert!(!History::read(&forged, provenance(&forged), now()).is_undo);
    assert_eq!(ClaimedRun::read(&forged, provenance(&forged)), None);
    assert_eq!(cancelled_order(&forged, provenance(&forged)), None);
    // orderd's user says so.
    let mut replayed = delivery("orders.requeue", "order_queue", headers);
    replayed.message.properties.user_id = Some("orderd".to_owned());
    let copy = failed_copy(&replayed);
    assert!(claims.iter().all(|(name, value)| copy.message.headers.get(*name) == Some(value)), "{copy:?}");
    assert_eq!(ClaimedRun::read(&copy, provenance(&copy)).map(|run| run.key.identity), Some("ord-2".to_owned()));
}

#[test]
fn a_cancellation_that_was_passed_on_states_its_order_until_and_after_it_is_dead_lettered() {
    let orders = ExchangeNames::new("orders");
    let first = delivery("orders", "order.normal.cancelled", [(names::CANCELS.to_owned(), "forged".into())].into());
    assert_eq!(cancelled_order(&first, provenance(&first)), None);
    let order = OrderId::new("web-17").unwrap();
    let queue = "webshop_queue";
    let passed_on = received(copy_of_cancellation(&first, provenance(&first), (&order, queue), &orders));
    let failure = (Failure::new(FailureKind::Permanent, "http_409", "paid out"), None);
    let failed =
        received(copy_for_failure(&passed_on, provenance(&passed_on), ("webshop", queue), failure, &orders, now()));
    let history = History::read(&failed, provenance(&failed), now());
    let delay = "1s".parse().unwrap();
    let retry = copy_for_retry(&failed, provenance(&failed), &history, queue, delay, &orders);
    let reason = DeadLetterReason::Permanent;
    let dead = copy_for_dead_letter(&failed, provenance(&failed), &history, reason, &orders);
    for copy in [retry, dead] {
        assert_eq!(copy.message.headers.get(names::CANCELS), Some(&"web-17".into()), "{copy:?}");
    }
    for copy in [passed_on, failed] {
        assert_eq!(cancelled_order(&copy, provenance(&copy)).as_ref(), Some(&order), "{copy:?}");
    }
}

#[test]
fn a_dead_letter_states_its_run_only_if_something_is_left_to_undo_so_that_a_person_may_change_its_id() {
    let (orders, key) = (ExchangeNames::new("orders"), "order.normal.created");
    let first = delivery("orders", key, Headers::new());
    let run = RunKey { scope: String::new(), identity: "ord-2".to_owned() };
    let claimed = ClaimedRun { key: run, message: [7; 32], round: 2 };
    let failure = (Failure::new(FailureKind::Permanent, "http_404", "no such address"), Some(&claimed));
    let failed =
        received(copy_for_failure(&first, provenance(&first), ("order", "order_queue"), failure, &orders, now()));
    assert_eq!(ClaimedRun::read(&failed, provenance(&failed)).as_ref(), Some(&claimed));
    let history = History::read(&failed, provenance(&failed), now());
    let back = (history.origin.as_ref().unwrap().queue.as_str(), ReturnReason::Undo);
    let back = copy_for_return(&failed, provenance(&failed), &history, back, &orders);
    assert!(back.message.headers.contains_key(names::RUN));
    for (reason, states) in [(DeadLetterReason::UndoFailed, true), (DeadLetterReason::Permanent, false)] {
        let dead = copy_for_dead_letter(&failed, provenance(&failed), &history, reason, &orders);
        assert_eq!(dead.message.headers.contains_key(names::RUN), states, "{reason:?}");
    }
}

/// What AMQP cannot carry, for each way in which a producer can send too much.
#[test]
fn every_copy_of_any_message_can_be_published() {
    let orders = ExchangeNames::new("orders");
    let text = |bytes: usize| HeaderValue::Text("k".repeat(bytes));
    let death = HeaderValue::Table(
        [("queue".to_owned(), text(300)), ("reason".to_owned(), "expired".into()), ("exchange".to_owned(), text(300))]
            .into(),
    );
    for headers in [
        (0..129).map(|n| (format!("h{n}"), text(1_000))).collect::<Headers>(),
        [("big".to_owned(), text(130_000))].into(),
        names::ADDED.iter().map(|name| ((*name).to_owned(), text(100_000))).collect(),
        [(names::ORIGIN_ROUTING_KEY.to_owned(), text(256)), (names::ORIGIN_QUEUE.to_owned(), "order_queue".into())]
            .into(),
        [(names::DEATH.to_owned(), HeaderValue::List(vec![death]))].into(),
    ] {
        for (exchange, key) in [("orders", "order.normal.created"), ("orders.requeue", "order_queue")] {
            let first = delivery(exchange, key, headers.clone());
            let failure = Failure::new(FailureKind::Transient, "c".repeat(999), "r".repeat(9_999));
            let failed =
                copy_for_failure(&first, provenance(&first), ("order", "order_queue"), (failure, None), &orders, now());
            let failed = received(failed);
            for delivery in [&first, &failed] {
                let history = History::read(delivery, provenance(delivery), now());
                let retry = copy_for_retry(
                    delivery,
                    provenance(delivery),
                    &history,
                    "order_queue",
                    "10s".parse().unwrap(),
                    &orders,
                );
                let dead = copy_for_dead_letter(
                    delivery,
                    provenance(delivery),
                    &history,
                    DeadLetterReason::Permanent,
                    &orders,
                );
                for copy in [retry, dead] {
                    assert!(copy.message.properties_len() <= 126 * 1024, "{}", copy.message.properties_len());
                    assert!(copy.routing_key.len() <= 255);
                }
            }
            assert_eq!(failed.message.headers[names::ORIGIN_QUEUE].as_text(), Some("order_queue"));
        }
    }
}

#[test]
fn headers_that_do_not_fit_are_dropped_and_a_header_says_so() {
    let headers = (0..130).map(|n| (format!("h{n}"), HeaderValue::Text("x".repeat(1_000)))).collect();
    let failure = Failure::new(FailureKind::Transient, "busy", "try later");
    let first = delivery("orders", "order.normal.created", headers);
    let copy = copy_for_failure(
        &first,
        provenance(&first),
        ("order", "order_queue"),
        (failure, None),
        &ExchangeNames::new("orders"),
        now(),
    );
    let headers = copy.message.headers;
    let kept = headers.keys().filter(|name| name.starts_with('h')).count();
    assert_eq!(headers[names::HEADERS_DROPPED].as_u64(), Some(130 - kept as u64));
    assert!((120..130).contains(&kept), "{kept}");
    assert!(headers[names::HEADERS_DROPPED_NAMES].as_text().unwrap().starts_with('h'));
}
