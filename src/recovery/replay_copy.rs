//! The publication that gives a dead letter back to a work queue, with headers that mark the replay. Pure.

use std::sync::Arc;

use jiff::Timestamp;

use super::copies::{MAX_PROPERTIES_BYTES, copy, set, time_value};
use super::history::read_time;
use crate::message::{Delivery, ExchangeNames, HeaderValue, Headers, Provenance, Publication, Sender, names};

/// The headers of failures, which count only until the message is replayed.
const FAILURE: [&str; 9] = [
    names::RETRY_COUNT,
    names::FAILURE_KIND,
    names::FAILURE_CODE,
    names::FAILURE_REASON,
    names::RETRY_AFTER,
    names::FIRST_FAILED_AT,
    names::FAILED_AT,
    names::DEAD_LETTER_REASON,
    names::UNDO,
];

/// Of how many replays the history is kept.
const MAX_HISTORY: usize = 10;
/// The longest key that is believed, in bytes.
const MAX_KEY_BYTES: usize = 64;

/// What marks a replay.
#[derive(Debug, Clone, Copy)]
pub struct ReplayMark<'a> {
    /// The value of `x-replay-id`.
    pub key: &'a str,
    /// When.
    pub at: Timestamp,
    /// The identity of a message that does not say which one it is.
    pub identity: &'a str,
    /// Why it was dead-lettered.
    pub reason: &'a str,
    /// The failure's stable code.
    pub code: &'a str,
    /// When it failed.
    pub failed_at: Timestamp,
    /// orderd's broker user now.
    pub own_user: &'a str,
}

/// The copy of a dead letter for `queue`. Its retries, their age and its failure begin anew. A copy is believed, so of a message that
/// is none, only what others may say of themselves is kept.
pub fn copy_for_replay(
    delivery: &Delivery,
    provenance: Provenance<'_>,
    queue: &str,
    mark: ReplayMark<'_>,
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(delivery, provenance);
    let headers = &mut message.headers;
    // Of what orderd has published first, under the name that its user has now.
    if provenance.sender == Sender::Own {
        set(headers, names::ORIGINAL_USER_ID, mark.own_user.into());
    }
    let identity = headers.remove(names::IDENTITY).filter(|_| provenance.is_copy);
    if provenance.cloud_event.is_none() && !delivery.has_message_id() {
        headers.insert(names::IDENTITY.to_owned(), identity.unwrap_or_else(|| mark.identity.into()));
    }
    if !provenance.is_copy {
        let is_set = |name: &&str| [names::ORIGINAL_USER_ID, names::IDENTITY].contains(name);
        for name in names::ADDED.iter().filter(|name| !is_set(name)) {
            headers.remove(*name);
        }
        let (exchange, routing_key) = first_publication(delivery);
        set(headers, names::ORIGIN_EXCHANGE, exchange.into());
        set(headers, names::ORIGIN_ROUTING_KEY, routing_key.into());
    }
    for name in FAILURE {
        headers.remove(name);
    }
    set(headers, names::ORIGIN_QUEUE, queue.into());
    let history = history(headers.remove(names::REPLAY_HISTORY), mark);
    set(headers, names::REPLAY_HISTORY, history);
    let at = replayed_at(&delivery.message.headers, provenance, mark.at);
    set(headers, names::REPLAYED_AT, time_value(at));
    set(headers, names::REPLAY_ID, mark.key.into());
    message.cut_headers(MAX_PROPERTIES_BYTES);
    Publication { exchange: Arc::clone(&names.requeue), routing_key: queue.to_owned(), message }
}

/// A mark counts once, so it is later than the one before. It has whole seconds.
fn replayed_at(headers: &Headers, provenance: Provenance<'_>, now: Timestamp) -> Timestamp {
    let before = read_time(headers, names::REPLAYED_AT).filter(|_| provenance.is_copy);
    let next = before.and_then(|at| Timestamp::from_second(at.as_second() + 1).ok());
    next.map_or(now, |next| next.max(now))
}

/// Where a message was published first that is no copy. The broker notes it if it has dead-lettered it, the oldest note last.
fn first_publication(delivery: &Delivery) -> (&str, &str) {
    let noted = || {
        let HeaderValue::List(deaths) = delivery.message.headers.get(names::DEATH)? else { return None };
        let HeaderValue::Table(death) = deaths.last()? else { return None };
        let HeaderValue::List(keys) = death.get("routing-keys")? else { return None };
        Some((death.get("exchange")?.as_text()?, keys.first()?.as_text()?))
    };
    noted().unwrap_or((&delivery.exchange, &delivery.routing_key))
}

fn history(before: Option<HeaderValue>, mark: ReplayMark<'_>) -> HeaderValue {
    let mut all = match before {
        Some(HeaderValue::List(all)) => all,
        Some(_) | None => Vec::new(),
    };
    let entry = [
        ("replay-id", mark.key.into()),
        ("reason", mark.reason.into()),
        ("code", mark.code.into()),
        ("failed-at", time_value(mark.failed_at)),
    ];
    all.push(HeaderValue::Table(entry.map(|(name, value)| (name.to_owned(), value)).into()));
    let superfluous = all.len().saturating_sub(MAX_HISTORY);
    all.drain(..superfluous);
    HeaderValue::List(all)
}

/// What marks a message that was replayed, if it is a copy that [`copy_for_replay`] has built, or one of that.
pub fn replay_key<'a>(delivery: &'a Delivery, provenance: Provenance<'_>) -> Option<&'a str> {
    let key = delivery.message.headers.get(names::REPLAY_ID)?.as_text()?;
    (provenance.is_copy && key.len() <= MAX_KEY_BYTES).then_some(key)
}

/// The reason for which a replayed copy had been dead-lettered.
pub fn replayed_for(delivery: &Delivery) -> Option<&str> {
    let HeaderValue::List(history) = delivery.message.headers.get(names::REPLAY_HISTORY)? else { return None };
    let HeaderValue::Table(last) = history.last()? else { return None };
    last.get("reason")?.as_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DeliveryId, Message, Properties};

    fn delivery(headers: &[(&str, HeaderValue)]) -> Delivery {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let properties = Properties { user_id: Some("shop".to_owned()), ..Properties::default() };
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders".to_owned(),
            routing_key: "oder.normal.web".to_owned(),
            redelivered: false,
            message: Message { headers, properties, body: "{}".into(), missing_bytes: 0 },
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn replayed(delivery: &Delivery, is_copy: bool) -> Headers {
        let sender = if is_copy { Sender::Unverified } else { Sender::User("shop") };
        let provenance = Provenance { sender, is_copy, generated: None, cloud_event: None };
        let mark = ReplayMark {
            key: "7-ab",
            at: at(100),
            identity: "dead-letter:1",
            reason: "permanent",
            code: "card_expired",
            failed_at: at(90),
            own_user: "orderd",
        };
        let copy = copy_for_replay(delivery, provenance, "order_queue", mark, &ExchangeNames::new("orders"));
        assert_eq!((&*copy.exchange, copy.routing_key.as_str()), ("orders.requeue", "order_queue"));
        assert_eq!(copy.message.properties.user_id, None, "the publisher states its own");
        copy.message.headers
    }

    fn text<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
        headers.get(name).and_then(HeaderValue::as_text)
    }

    #[test]
    fn what_others_say_under_orderds_names_is_not_believed_once_their_message_is_replayed() {
        let forged = names::ADDED.iter().map(|name| (*name, HeaderValue::from("forged"))).collect::<Vec<_>>();
        let headers = replayed(&delivery(&[&forged[..], &[("own", "kept".into())]].concat()), false);
        assert!(!headers.values().any(|value| value.as_text() == Some("forged")), "{headers:?}");
        assert_eq!(text(&headers, "own"), Some("kept"));
        assert_eq!(text(&headers, names::ORIGINAL_USER_ID), Some("shop"));
        assert_eq!(text(&headers, names::ORIGIN_ROUTING_KEY), Some("oder.normal.web"));
        assert_eq!(
            (text(&headers, names::REPLAY_ID), text(&headers, names::IDENTITY)),
            (Some("7-ab"), Some("dead-letter:1"))
        );
        let publication =
            [("exchange", "orders".into()), ("routing-keys", HeaderValue::List(vec!["order.normal.x".into()]))];
        let death = HeaderValue::Table(publication.map(|(name, value)| (name.to_owned(), value)).into());
        let headers = replayed(&delivery(&[(names::DEATH, HeaderValue::List(vec![HeaderValue::Void, death]))]), false);
        assert_eq!(text(&headers, names::ORIGIN_ROUTING_KEY), Some("order.normal.x"));
        assert!(!headers.contains_key(names::DEATH));
    }

    #[test]
    fn a_replayed_copy_begins_anew_and_keeps_who_sent_it_and_what_happened_before() {
        let dead = [
            (names::RETRY_COUNT, HeaderValue::I64(3)),
            (names::FIRST_FAILED_AT, HeaderValue::Timestamp(1)),
            (names::FAILURE_CODE, "card_expired".into()),
            (names::IDENTITY, "generated:1".into()),
            (names::ORIGINAL_USER_ID, "web".into()),
            (names::ORIGIN_ROUTING_KEY, "order.normal.web".into()),
            (names::REPLAY_ID, "6-cd".into()),
            (names::REPLAYED_AT, HeaderValue::Timestamp(100)),
            (names::REPLAY_HISTORY, HeaderValue::List(vec![HeaderValue::Void; 10])),
        ];
        let headers = replayed(&delivery(&dead), true);
        for name in FAILURE {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert_eq!(
            (text(&headers, names::IDENTITY), text(&headers, names::ORIGINAL_USER_ID)),
            (Some("generated:1"), Some("web"))
        );
        assert_eq!(text(&headers, names::ORIGIN_ROUTING_KEY), Some("order.normal.web"));
        assert_eq!(headers[names::REPLAYED_AT], HeaderValue::Timestamp(101), "later than the mark before");
        let HeaderValue::List(history) = &headers[names::REPLAY_HISTORY] else { panic!("a list") };
        let HeaderValue::Table(last) = &history[9] else { panic!("a table") };
        assert_eq!((history.len(), text(last, "code")), (10, Some("card_expired")));
    }
}
