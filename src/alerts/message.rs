//! A message about alerts: the body of an event `operator`, which the channel's templates render. Pure.
//!
//! One message lists everything that is due, but at most [`MAX_LISTED`] alerts in full, so that a storm of causes is one message of
//! limited length.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::cause::{CauseKind, is_event, runbook_entry};
use super::tracker::Due;
use crate::config::duration;
use crate::ledger::AlertRecord;

/// The most alerts that one message lists.
const MAX_LISTED: usize = 20;

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// The same for each attempt to send the same message, so that a repeated one is recognised.
    pub id: String,
    /// JSON.
    pub body: String,
}

/// The message about what is due. `number` counts the messages.
pub(super) fn message(due: &Due, number: u64) -> Message {
    let alerts = &due.alerts;
    let mut hash = Sha256::new();
    for alert in alerts {
        // As precise as the ledger records it, so that the id is the same after a restart.
        let opened_at = alert.opened_at.as_millisecond().to_string();
        for part in [&alert.scope, &alert.cause, &opened_at, state(alert)] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
    }
    let mut id = format!("alerts/{number}/");
    for byte in hash.finalize().iter().take(8) {
        write!(id, "{byte:02x}").expect("writing to a string does not fail");
    }
    Message { id, body: body(alerts).to_string() }
}

/// The message of a trial. `instance` is this process.
pub fn test_message(scope: &str, instance: &str, now: Timestamp) -> String {
    let alert = AlertRecord {
        scope: scope.to_owned(),
        cause: "test".to_owned(),
        title: "Test of the alerts".to_owned(),
        detail: "Alerts reach you through this channel. Nothing is wrong.".to_owned(),
        instance: instance.to_owned(),
        opened_at: now,
        observed_at: now,
        resolved_at: None,
        reported_at: None,
    };
    body(&[alert]).to_string()
}

/// A message with an example of each state that an alert can have, for those who edit its templates.
pub fn sample_message(scope: &str, instance: &str, now: Timestamp) -> String {
    let ago = |minutes| now - jiff::SignedDuration::from_mins(minutes);
    let alert = |cause: &str, title: &str, detail: &str, resolved_at, reported_at| AlertRecord {
        scope: scope.to_owned(),
        cause: cause.to_owned(),
        title: title.to_owned(),
        detail: detail.to_owned(),
        instance: instance.to_owned(),
        opened_at: ago(90),
        observed_at: now,
        resolved_at,
        reported_at,
    };
    let alerts = [
        alert(
            "dead_letters/order/permanent",
            "Messages of consumer \"order\" are dead-lettered (permanent)",
            "4 in the last 10m: invalid_address 2, unknown_channel 2, for example ord-7",
            None,
            None,
        ),
        alert(
            "breaker/step/order/charge",
            "Step \"charge\" of consumer \"order\" is unavailable",
            "The circuit breaker is open, last failure: http_503; 3 deliveries wait besides those in the queue. `orderd status` has more",
            None,
            Some(ago(60)),
        ),
        alert(
            "finding/queue_missing/order_queue",
            "Queue \"order_queue\" does not exist",
            "",
            Some(ago(5)),
            Some(ago(60)),
        ),
        alert(
            "finding/redeclared/order_queue",
            "\"order_queue\" was deleted and has been declared again",
            "",
            Some(ago(5)),
            None,
        ),
    ];
    body(&alerts).to_string()
}

fn body(alerts: &[AlertRecord]) -> Value {
    let resolved = alerts.iter().filter(|alert| alert.resolved_at.is_some()).count();
    let first = alerts.first().map(|alert| alert.title.as_str()).unwrap_or_default();
    let title = match alerts.len() {
        0 | 1 => first.to_owned(),
        count => format!("{first}, and {} more", count - 1),
    };
    let text = match alerts {
        [alert] => detail(alert).to_owned(),
        alerts => {
            let shown = alerts.iter().take(MAX_LISTED);
            let shown: Vec<String> = shown
                .map(|alert| match alert.resolved_at {
                    Some(_) => format!("{}: {}", state(alert), alert.title),
                    None => alert.title.clone(),
                })
                .collect();
            shown.join("; ")
        }
    };
    json!({
        "event": "operator",
        "title": title,
        "text": text,
        "resolved": resolved == alerts.len(),
        "alerts": alerts.iter().take(MAX_LISTED).map(listed).collect::<Vec<_>>(),
        "more": alerts.len().saturating_sub(MAX_LISTED),
    })
}

/// What has happened is not resolved by not happening again.
fn state(alert: &AlertRecord) -> &'static str {
    match alert.resolved_at {
        None => "open",
        Some(_) if is_event(&alert.cause) => "ended",
        Some(_) => "resolved",
    }
}

/// What is so now. Of what has ended, never what was recorded while it lasted.
fn detail(alert: &AlertRecord) -> &str {
    match (state(alert), CauseKind::of(&alert.cause)) {
        ("ended", Some(CauseKind::DeadLetters)) => {
            "No more are dead-lettered for now. Those that were still have to be dealt with, as the runbook says"
        }
        ("ended", Some(CauseKind::Unrouted)) => {
            "No more are stored for now. Those that were still have to be dealt with, as the runbook says"
        }
        ("ended", _) => {
            "It has not happened again. What has happened may still have to be dealt with, as the runbook says"
        }
        ("resolved", Some(CauseKind::Breaker)) => "The circuit breaker is closed: calls are made as usual again",
        ("resolved", Some(CauseKind::Reload)) => "A later reload was not rejected, or orderd has started again",
        ("resolved", Some(CauseKind::DeadLettersWaiting)) => {
            "No dead letter from this queue has been open for more than a day"
        }
        ("resolved", _) => "The cause is gone",
        _ => &alert.detail,
    }
}

fn listed(alert: &AlertRecord) -> Value {
    let AlertRecord { scope, cause, title, detail: _, instance, opened_at, observed_at: _, resolved_at, reported_at } =
        alert;
    let lasted = resolved_at.map(|at| duration::format(whole_seconds(at.duration_since(*opened_at))));
    json!({
        "state": state(alert),
        "repeated": resolved_at.is_none() && reported_at.is_some(),
        "cause": cause,
        "title": title,
        "detail": detail(alert),
        "since": opened_at,
        "resolved_at": resolved_at,
        "lasted": lasted,
        "scope": scope,
        "instance": instance,
        "runbook": runbook_entry(cause),
    })
}

fn whole_seconds(lasted: jiff::SignedDuration) -> Duration {
    Duration::from_secs(lasted.as_secs().max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(cause: &str, resolved_at: Option<i64>) -> AlertRecord {
        let at = |second| Timestamp::from_second(second).unwrap();
        AlertRecord {
            scope: "virtual host /".to_owned(),
            cause: cause.to_owned(),
            title: format!("Cause {cause}"),
            detail: "Details".to_owned(),
            instance: "shop-1:7".to_owned(),
            opened_at: at(60),
            observed_at: at(60),
            resolved_at: resolved_at.map(at),
            reported_at: None,
        }
    }

    fn built(alerts: Vec<AlertRecord>) -> (String, Value) {
        let Message { id, body } = message(&Due { alerts }, 4);
        (id, serde_json::from_str(&body).unwrap())
    }

    #[test]
    fn one_alert_is_the_title_and_its_end_says_how_long_it_lasted() {
        let (_, body) = built(vec![alert("finding/queue_missing/a", Some(60 + 3_661))]);
        assert_eq!(
            (&body["title"], &body["text"], &body["resolved"]),
            (&json!("Cause finding/queue_missing/a"), &json!("The cause is gone"), &json!(true))
        );
        let listed = &body["alerts"][0];
        assert_eq!((&listed["state"], &listed["lasted"]), (&json!("resolved"), &json!("1h 1m 1s")));
        assert_eq!(listed["runbook"], "OrderdQueueMissing");
    }

    #[test]
    fn a_hundred_causes_are_one_message_of_limited_length() {
        let alerts = (0..100).map(|number| alert(&number.to_string(), (number >= 50).then_some(90))).collect();
        let (_, body) = built(alerts);
        assert_eq!(body["title"], "Cause 0, and 99 more");
        assert_eq!((body["alerts"].as_array().unwrap().len(), &body["more"]), (MAX_LISTED, &json!(80)));
        assert_eq!(body["resolved"], json!(false));
        assert!(body.to_string().len() < 10_000);
    }

    #[test]
    fn the_end_of_what_has_happened_does_not_say_that_it_is_resolved() {
        for cause in [
            "dead_letters/order/undo_failed",
            "dead_letters/order/permanent",
            "finding/redeclared/orders",
            "unrouted",
            "replay_stopped/7",
        ] {
            let (_, body) = built(vec![alert(cause, Some(90))]);
            assert_eq!(body["alerts"][0]["state"], "ended", "{cause}");
        }
    }

    #[test]
    fn the_end_of_an_alert_does_not_show_the_old_state_as_the_present_one() {
        let waiting = "dead_letters_waiting/dead_letter_queue";
        for cause in
            ["dead_letters/order/permanent", "finding/queue_missing/a", "breaker/channel/n/email", "reload", waiting]
        {
            let (_, body) = built(vec![alert(cause, Some(90))]);
            assert_ne!(body["text"], "Details", "{cause}");
            assert_ne!(body["alerts"][0]["detail"], "Details", "{cause}");
            assert_eq!(built(vec![alert(cause, None)]).1["text"], "Details", "{cause}");
        }
    }

    #[test]
    fn a_message_that_is_sent_again_after_a_restart_has_the_same_id() {
        let precise = AlertRecord { opened_at: Timestamp::new(60, 12_345_678).unwrap(), ..alert("a", None) };
        let recorded = AlertRecord { opened_at: Timestamp::new(60, 12_000_000).unwrap(), ..alert("a", None) };
        assert_eq!(built(vec![precise]).0, built(vec![recorded]).0);
    }

    #[test]
    fn the_same_message_has_the_same_id_and_another_one_has_another() {
        let id = |alerts| built(alerts).0;
        assert_eq!(id(vec![alert("a", None)]), id(vec![alert("a", None)]));
        assert_ne!(id(vec![alert("a", None)]), id(vec![alert("a", Some(90))]));
        assert_ne!(id(vec![alert("a", None)]), id(vec![alert("a", None), alert("b", None)]));
    }
}
