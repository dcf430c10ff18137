//! The order of sending, and what each answer of the broker leads to.

use super::*;
use crate::message::Message;

type Answer = oneshot::Receiver<Result<(), Unpublished>>;

fn batch(keys: &[&str]) -> (Batch, Answer) {
    let to = |key: &&str| Publication {
        exchange: "orders".into(),
        routing_key: (*key).to_owned(),
        message: Message::default(),
    };
    let all: Arc<[Publication]> = keys.iter().map(to).collect();
    let publications = (0..all.len()).map(|index| SizedPublication { all: Arc::clone(&all), index, bytes: 10 });
    let (reply, answer) = oneshot::channel();
    (Batch { publications: publications.collect(), reply }, answer)
}

/// On a first connection, proven by a first publication.
fn proven() -> OutstandingConfirms {
    let mut outstanding = OutstandingConfirms::new();
    outstanding.begin_connection();
    outstanding.push(batch(&["canary"]).0, Instant::now());
    assert_eq!(send_all(&mut outstanding), ["canary"]);
    outstanding.confirmed(1, false, Confirm::Ack);
    outstanding
}

fn send_all(outstanding: &mut OutstandingConfirms) -> Vec<String> {
    let now = Instant::now();
    std::iter::from_fn(|| outstanding.next_to_send(now).map(|p| p.routing_key.clone())).collect()
}

#[test]
fn a_batch_is_answered_when_its_last_confirm_arrives() {
    let mut outstanding = proven();
    let (one, mut answer) = batch(&["a", "b", "c"]);
    outstanding.push(one, Instant::now());
    assert_eq!(send_all(&mut outstanding), ["a", "b", "c"]);
    outstanding.confirmed(4, false, Confirm::Ack);
    outstanding.confirmed(2, false, Confirm::Ack);
    assert!(answer.try_recv().is_err());
    let released = outstanding.confirmed(3, false, Confirm::Ack);
    assert_eq!(released, ReleasedPermits { publications: 1, bytes: 10 });
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert!(outstanding.is_empty());
}

#[test]
fn a_multiple_confirm_covers_everything_unconfirmed_up_to_it() {
    let mut outstanding = proven();
    let (one, mut first) = batch(&["a", "b"]);
    let (two, mut second) = batch(&["c", "d"]);
    outstanding.push(one, Instant::now());
    outstanding.push(two, Instant::now());
    send_all(&mut outstanding);
    outstanding.confirmed(3, false, Confirm::Ack);
    assert_eq!(outstanding.confirmed(4, true, Confirm::Ack).publications, 2);
    assert_eq!(first.try_recv(), Ok(Ok(())));
    assert!(second.try_recv().is_err());
    outstanding.confirmed(5, true, Confirm::Nack);
    let refused = PublishError::Nacked { exchange: "orders".into(), routing_key: "d".to_owned() };
    assert_eq!(second.try_recv(), Ok(Err(Unpublished::one(1, refused))), "c is confirmed");
}

#[test]
fn a_refusal_is_reported_once_every_other_publication_is_answered() {
    let mut outstanding = proven();
    let (one, mut answer) = batch(&["a", "b", "c"]);
    outstanding.push(one, Instant::now());
    send_all(&mut outstanding);
    outstanding.confirmed(2, false, Confirm::Nack);
    outstanding.begin_connection();
    assert!(answer.try_recv().is_err(), "b and c are unconfirmed");
    assert_eq!(send_all(&mut outstanding), ["b"]);
    outstanding.confirmed(1, false, Confirm::Ack);
    send_all(&mut outstanding);
    outstanding.confirmed(2, false, Confirm::Ack);
    let refused = PublishError::Nacked { exchange: "orders".into(), routing_key: "a".to_owned() };
    assert_eq!(answer.try_recv(), Ok(Err(Unpublished::one(0, refused))));
}

#[test]
fn callers_learn_once_that_what_was_unroutable_is_accepted_and_not_from_other_keys_or_nacks() {
    let mut outstanding = proven();
    let mut publish = |key: &str, returned: bool, confirm| {
        outstanding.begin_connection();
        outstanding.push(batch(&[key]).0, Instant::now());
        send_all(&mut outstanding);
        if returned {
            outstanding.returned(Returned {
                reply: "312 NO_ROUTE".into(),
                exchange: "orders".into(),
                routing_key: key.into(),
                ..Returned::default()
            });
        }
        outstanding.confirmed(1, false, confirm);
        outstanding.take_recovered()
    };
    assert!(!publish("gone", true, Confirm::Ack) && !publish("gone", true, Confirm::Ack));
    assert!(!publish("full", false, Confirm::Nack) && !publish("full", false, Confirm::Ack), "it may be full again");
    assert!(publish("gone", false, Confirm::Ack));
    assert!(!publish("gone", false, Confirm::Ack));
}

#[test]
fn a_return_before_its_ack_is_unroutable() {
    let mut outstanding = proven();
    let (one, mut answer) = batch(&["a", "b"]);
    outstanding.push(one, Instant::now());
    send_all(&mut outstanding);
    let returned = Returned {
        reply: "312 NO_ROUTE".into(),
        exchange: "orders".into(),
        routing_key: "b".into(),
        ..Returned::default()
    };
    outstanding.returned(returned);
    outstanding.confirmed(3, true, Confirm::Ack);
    let expected =
        PublishError::Unroutable { exchange: "orders".into(), routing_key: "b".into(), reply: "312 NO_ROUTE".into() };
    assert_eq!(answer.try_recv(), Ok(Err(Unpublished::one(1, expected))));
}

#[test]
fn a_new_connection_sends_everything_unconfirmed_again_in_order() {
    let mut outstanding = proven();
    let (one, mut answer) = batch(&["a", "b", "c", "d"]);
    outstanding.push(one, Instant::now());
    send_all(&mut outstanding);
    outstanding.confirmed(3, false, Confirm::Ack);
    outstanding.begin_connection();
    assert_eq!(send_all(&mut outstanding), ["a"], "one to prove the connection");
    assert_eq!(outstanding.confirmed(1, false, Confirm::Ack).publications, 1);
    assert_eq!(send_all(&mut outstanding), ["c", "d"]);
    outstanding.confirmed(3, true, Confirm::Ack);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
}

#[test]
fn the_publication_that_makes_the_broker_close_channels_is_found() {
    let mut outstanding = proven();
    let (good, mut taken) = batch(&["a", "b"]);
    let (bad, mut refused) = batch(&["bad"]);
    let (after, mut later) = batch(&["c"]);
    for batch in [good, bad, after] {
        outstanding.push(batch, Instant::now());
    }
    assert_eq!(send_all(&mut outstanding).len(), 4);
    let error = |exchange: &Arc<str>, problem: &str| PublishError::Invalid {
        exchange: Arc::clone(exchange),
        problem: problem.to_owned(),
    };
    assert_eq!(
        outstanding.reject_in_flight(Instant::now(), error),
        ReleasedPermits::default(),
        "any of four may be it"
    );
    outstanding.begin_connection();
    for (tag, key) in [(1, "a"), (2, "b")] {
        assert_eq!(send_all(&mut outstanding), [key]);
        outstanding.confirmed(tag, false, Confirm::Ack);
    }
    assert_eq!(send_all(&mut outstanding), ["bad"]);
    assert_eq!(outstanding.reject_in_flight(Instant::now(), error).publications, 1);
    outstanding.begin_connection();
    assert_eq!(send_all(&mut outstanding), ["c"]);
    outstanding.confirmed(1, false, Confirm::Ack);
    assert_eq!(taken.try_recv(), Ok(Ok(())));
    assert!(matches!(refused.try_recv(), Ok(Err(unpublished)) if unpublished.permanent().is_some()));
    assert_eq!(later.try_recv(), Ok(Ok(())));
    assert!(outstanding.is_empty());
}

/// The error of a publication whose exchange does not exist.
fn missing(exchange: &Arc<str>, key: &str) -> PublishError {
    let (exchange, routing_key) = (Arc::clone(exchange), key.to_owned());
    PublishError::Unroutable { exchange, routing_key, reply: "404".to_owned() }
}

#[test]
fn publications_to_a_missing_exchange_do_not_close_the_channel_again_and_again() {
    let mut outstanding = proven();
    let start = Instant::now();
    outstanding.push(batch(&["a"]).0, start);
    send_all(&mut outstanding);
    outstanding.reject_in_flight(start, missing);
    outstanding.begin_connection();
    let (again, mut answer) = batch(&["b"]);
    assert_eq!(outstanding.push(again, start), ReleasedPermits { publications: 1, bytes: 10 });
    assert!(matches!(answer.try_recv(), Ok(Err(unpublished)) if unpublished.permanent().is_none()));
    assert!(outstanding.is_empty(), "answered without being sent");
    let later = start + std::time::Duration::from_secs(5);
    outstanding.push(batch(&["c"]).0, later);
    outstanding.push(batch(&["d"]).0, later);
    assert_eq!(send_all(&mut outstanding), ["c"], "alone");
    outstanding.confirmed(1, false, Confirm::Ack);
    outstanding.push(batch(&["e"]).0, later);
    assert_eq!(send_all(&mut outstanding), ["d", "e"], "the exchange exists again");
}

#[test]
fn all_publications_to_a_missing_exchange_are_answered_together_and_tried_at_once_after_a_declaration() {
    let mut outstanding = proven();
    let start = Instant::now();
    let (many, mut answer) = batch(&["a", "b", "c", "d"]);
    outstanding.push(many, start);
    send_all(&mut outstanding);
    assert_eq!(outstanding.reject_in_flight(start, missing), ReleasedPermits::default(), "any of four may be it");
    outstanding.begin_connection();
    assert_eq!(send_all(&mut outstanding).len(), 1);
    assert_eq!(outstanding.reject_in_flight(start, missing), ReleasedPermits { publications: 4, bytes: 40 });
    assert_eq!(answer.try_recv().unwrap().unwrap_err().failures.len(), 4);
    assert!(outstanding.is_empty());
    outstanding.begin_connection();
    assert_eq!(outstanding.push(batch(&["e"]).0, start).publications, 1, "refused without being sent");
    outstanding.try_rejected_again();
    outstanding.push(batch(&["f", "g"]).0, start);
    assert_eq!(send_all(&mut outstanding), ["f"], "alone");
    assert!(!outstanding.take_recovered());
    outstanding.confirmed(1, false, Confirm::Ack);
    assert!(outstanding.take_recovered() && !outstanding.take_recovered());
}

#[test]
fn a_withdrawn_permission_closes_the_channel_once_for_each_routing_key_and_holds_up_no_other() {
    let mut outstanding = proven();
    let start = Instant::now();
    let denied = |exchange: &Arc<str>, key: &str| {
        let (exchange, routing_key) = (Arc::clone(exchange), key.to_owned());
        PublishError::Refused { exchange, routing_key, reply: "403".into() }
    };
    let (many, mut answer) = batch(&["denied", "fine", "denied", "denied.too", "denied"]);
    outstanding.push(many, start);
    send_all(&mut outstanding);
    outstanding.reject_in_flight(start, denied);
    let mut closes = 1;
    for _ in 0..5 {
        outstanding.begin_connection();
        let sent = send_all(&mut outstanding);
        match sent.first().map(String::as_str) {
            Some("fine") => drop(outstanding.confirmed(1, false, Confirm::Ack)),
            Some(_) => {
                outstanding.reject_in_flight(start, denied);
                closes += 1;
            }
            None => {}
        }
    }
    assert_eq!(closes, 3);
    assert_eq!(answer.try_recv().unwrap().unwrap_err().failures.len(), 4, "all but one");
    outstanding.begin_connection();
    outstanding.push(batch(&["fine", "denied", "denied.too", "fine"]).0, start);
    assert_eq!(send_all(&mut outstanding), ["fine"], "to prove the connection");
    outstanding.confirmed(1, false, Confirm::Ack);
    assert_eq!(send_all(&mut outstanding), ["fine"]);
    outstanding.confirmed(2, false, Confirm::Ack);
    assert!(!outstanding.take_recovered());

    let later = start + std::time::Duration::from_secs(2);
    outstanding.push(batch(&["denied"]).0, later);
    assert_eq!(send_all(&mut outstanding), ["denied"]);
    outstanding.confirmed(3, false, Confirm::Ack);
    assert!(outstanding.take_recovered());
    outstanding.push(batch(&["denied.too", "fine"]).0, start);
    assert_eq!(send_all(&mut outstanding), ["denied.too"], "at once, and alone");
}

#[test]
fn nothing_is_outstanding_once_the_last_publication_was_rejected() {
    let mut outstanding = proven();
    let (bad, mut answer) = batch(&["bad"]);
    outstanding.push(bad, Instant::now());
    assert_eq!(send_all(&mut outstanding), ["bad"]);
    let error =
        |exchange: &Arc<str>, _: &str| PublishError::Invalid { exchange: exchange.clone(), problem: "406".into() };
    assert_eq!(outstanding.reject_in_flight(Instant::now(), error).publications, 1);
    assert!(answer.try_recv().unwrap().is_err());
    assert!(outstanding.is_empty());
}

#[test]
fn only_what_was_sent_on_this_connection_has_a_tag() {
    let mut outstanding = proven();
    outstanding.push(batch(&["a", "b"]).0, Instant::now());
    assert!(outstanding.has_sent(1) && !outstanding.has_sent(0) && !outstanding.has_sent(2));
    send_all(&mut outstanding);
    assert!(outstanding.has_sent(3) && !outstanding.has_sent(4) && !outstanding.has_sent(u64::MAX));
    outstanding.begin_connection();
    assert!(!outstanding.has_sent(1), "a confirm from an earlier channel");
}

#[test]
fn confirms_of_unused_tags_are_ignored() {
    let mut outstanding = proven();
    assert_eq!(outstanding.confirmed(0, false, Confirm::Ack), ReleasedPermits::default());
    assert_eq!(outstanding.confirmed(1, true, Confirm::Ack), ReleasedPermits::default());
    let (one, _answer) = batch(&["a"]);
    outstanding.push(one, Instant::now());
    assert_eq!(outstanding.confirmed(9, false, Confirm::Ack), ReleasedPermits::default(), "not sent yet");
    assert_eq!(send_all(&mut outstanding), ["a"]);
    assert_eq!(outstanding.confirmed(9, false, Confirm::Ack), ReleasedPermits::default(), "another tag");
    assert_eq!(outstanding.confirmed(9, true, Confirm::Ack).publications, 1);
}
