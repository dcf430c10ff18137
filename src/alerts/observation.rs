//! What the daemon sees at one moment, as causes of alerts with texts for people. Pure.
//!
//! Conditions are those of `config/prometheus/orderd.rules.yml` where it has them. It never decides whether a cause is an alert: it may
//! have begun just now.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::cause::{Cause, cause, is_event_finding, limited};
use super::dead_letters::{DeadLetterKey, DeadLetterWindow, Growth, Moment};
use super::settings::DeadLetterLimit;
use super::stored::{StoredState, replay_causes, unrouted_cause, waiting_causes};
use crate::config::duration;
use crate::control::{ReloadOutcome, ReloadReport};
use crate::metrics::DeadLettersOfCode;
use crate::reconcile::{ApiState, Finding, FindingKind};
use crate::steps::{BreakerKind, BreakerReading, BreakerState};

/// The most codes of dead letters, and the longest id of an example, in characters.
const MAX_CODES_SHOWN: usize = 5;
const MAX_EXAMPLE_CHARS: usize = 60;
/// The reason of dead letters whose steps could not be undone. One is enough for an alert.
const UNDO_FAILED: &str = "undo_failed";
/// How long a consumer with waiting messages must have been paused.
const PAUSED_FOR: Duration = Duration::from_secs(15 * 60);

/// Where causes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertScopes {
    /// Of what every instance sees: the virtual host.
    pub broker: String,
    /// Of what this instance alone sees: its host and configuration file, which a restart does not change.
    pub instance: String,
}

/// What is read from the running daemon.
#[derive(Debug, Clone, Default)]
pub struct LocalState {
    /// Whether the management API answers.
    pub api: ApiState,
    /// What is wrong on the broker.
    pub findings: Vec<Finding>,
    /// All circuit breakers.
    pub breakers: Vec<BreakerReading>,
    /// The last reload, and when it ended.
    pub last_reload: Option<(Timestamp, ReloadReport)>,
    /// Dead letters since the start, by consumer, reason and code.
    pub dead_letters: BTreeMap<DeadLetterKey, DeadLettersOfCode>,
    /// What the store has.
    pub stored: StoredState,
}

/// All causes at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observation {
    pub causes: Vec<Cause>,
    /// Where this instance sees causes.
    pub scopes: AlertScopes,
    /// Whether it sees all findings. If not, findings may last although they are not seen.
    pub sees_findings: bool,
    /// Whether it sees what the store has. If not, what waits there may still wait.
    pub sees_store: bool,
}

/// Every cause at this moment. States that may pass are to be seen for `open_after`.
pub(super) fn observe(
    state: &LocalState,
    scopes: &AlertScopes,
    dead_letters: &mut DeadLetterWindow,
    limit: DeadLetterLimit,
    open_after: Duration,
    moment: Moment,
) -> Observation {
    let counters = state.dead_letters.iter().map(|(key, of_code)| (key.clone(), of_code.count)).collect();
    dead_letters.observe(counters, moment, limit.window);
    // Messages that orderd does not hold are acked by themselves, or become another finding. An undo that failed is an alert about
    // dead letters.
    let is_alert = |kind| !matches!(kind, FindingKind::UnackedNotHeld | FindingKind::UndoFailed);
    let findings = state.findings.iter().filter(|finding| is_alert(finding.kind));
    // Trials and the ramp-up are part of the time in which the service is unavailable.
    let breakers = state.breakers.iter().filter(|breaker| breaker.state != BreakerState::Closed);
    let rejected = state.last_reload.iter().filter(|(_, report)| report.outcome == ReloadOutcome::Rejected);
    let (stored, broker) = (&state.stored, &scopes.broker);
    let grown = dead_letters.grown();
    let (unrouted, of_consumers): (Vec<_>, Vec<_>) =
        grown.into_iter().partition(|((consumer, _), _)| consumer.is_empty());
    let causes = findings
        .map(|finding| finding_cause(finding, &scopes.broker, open_after))
        .chain(
            of_consumers
                .into_iter()
                .filter(|((_, reason), growth)| growth.count >= limit.count || *reason == UNDO_FAILED)
                .map(|(key, growth)| dead_letter_cause(key, &growth, &state.dead_letters, limit, &scopes.broker)),
        )
        .chain(breakers.map(|breaker| breaker_cause(breaker, &scopes.instance, open_after)))
        .chain(rejected.map(|(at, report)| reload_cause(*at, report, &scopes.instance)))
        .chain(unrouted.iter().map(|(_, growth)| unrouted_cause(growth, stored, limit, broker)))
        .chain(waiting_causes(stored, broker, open_after, moment.wall))
        .chain(replay_causes(stored, broker, moment.wall));
    Observation {
        causes: causes.collect(),
        scopes: scopes.clone(),
        sees_findings: state.api == ApiState::Fresh,
        sees_store: stored.is_current,
    }
}

fn finding_cause(finding: &Finding, scope: &str, open_after: Duration) -> Cause {
    let subject = finding.subject();
    let what = match finding.kind {
        FindingKind::ExchangeMissing => format!("Exchange {subject:?} does not exist"),
        FindingKind::QueueMissing => format!("Queue {subject:?} does not exist"),
        FindingKind::BindingMissing => format!("A binding of queue {subject:?} does not exist"),
        FindingKind::ExchangeMismatch => format!("Exchange {subject:?} has other properties than orderd needs"),
        FindingKind::QueueMismatch => format!("Queue {subject:?} has other properties than orderd needs"),
        FindingKind::DangerousPolicy => format!("Policy {subject:?} would lose messages"),
        FindingKind::ShortConsumerTimeout => format!("The broker's consumer_timeout of queue {subject:?} is too short"),
        FindingKind::Redeclared => format!("{subject:?} was deleted and has been declared again"),
        FindingKind::NoConsumer => format!("Queue {subject:?} has no consumer"),
        FindingKind::ConsumerPaused => format!("Messages wait in queue {subject:?}, whose consumer is paused"),
        FindingKind::AckedByOthers | FindingKind::TakenByOthers => {
            format!("Another client takes messages from queue {subject:?}")
        }
        FindingKind::AcksMissing
        | FindingKind::DeliveriesMissing
        | FindingKind::PublishesMissing
        | FindingKind::UnackedNotHeld => {
            format!("The counts of orderd and of the broker for queue {subject:?} differ")
        }
        FindingKind::DeadLettersHeld => format!("The broker cannot dead-letter messages of queue {subject:?}"),
        FindingKind::RetriesOverdue => format!("Messages stay in retry queue {subject:?} past their delay"),
        FindingKind::UndoFailed => "Steps of dead-lettered messages could not be undone".to_owned(),
        FindingKind::NotCollected => format!("Messages stay in queue {subject:?}, because they cannot be stored"),
    };
    let count = finding.messages.map_or_else(String::new, |count| format!("{count} messages: "));
    let routing_key = finding.routing_key.as_deref().unwrap_or_default();
    let id = ["finding", finding.kind.as_str(), subject, routing_key];
    let id = if routing_key.is_empty() { &id[..3] } else { &id };
    let cause = cause(scope, id, &what, &format!("{count}{}", finding.detail), finding.since);
    let wait = match finding.kind {
        FindingKind::ConsumerPaused => open_after.max(PAUSED_FOR),
        kind if is_event_finding(kind) => Duration::ZERO,
        _ => open_after,
    };
    Cause { wait, ..cause }
}

/// With the codes, most frequent first, and one message as an example: they decide what to do.
fn dead_letter_cause(
    (consumer, reason): (&str, &str),
    growth: &Growth,
    dead_letters: &BTreeMap<DeadLetterKey, DeadLettersOfCode>,
    limit: DeadLetterLimit,
    scope: &str,
) -> Cause {
    let title = match reason {
        UNDO_FAILED => format!("Steps of dead-lettered messages of consumer {consumer:?} could not be undone"),
        reason => format!("Messages of consumer {consumer:?} are dead-lettered ({reason})"),
    };
    let mut codes: Vec<(&String, &u64)> = growth.codes.iter().collect();
    codes.sort_by_key(|(code, count)| (std::cmp::Reverse(**count), (*code).clone()));
    let shown: Vec<String> =
        codes.iter().take(MAX_CODES_SHOWN).map(|(code, count)| format!("{code} {count}")).collect();
    let more = if codes.len() > MAX_CODES_SHOWN { ", and others" } else { "" };
    let example = codes.first().and_then(|(code, _)| {
        let key = (consumer.to_owned(), reason.to_owned(), (*code).clone());
        dead_letters.get(&key).filter(|of_code| !of_code.last.is_empty())
    });
    let example = example
        .map_or_else(String::new, |of_code| format!(", for example {}", limited(&of_code.last, MAX_EXAMPLE_CHARS)));
    let (count, window) = (growth.count, duration::format(limit.window));
    let detail = format!("{count} in the last {window}: {}{more}{example}", shown.join(", "));
    cause(scope, &["dead_letters", consumer, reason], &title, &detail, growth.since)
}

/// Without what the service has answered, which may be about customers: alerts leave the shop's machines.
fn breaker_cause(breaker: &BreakerReading, scope: &str, open_after: Duration) -> Cause {
    let BreakerReading { consumer, kind, name, state, since, waiting, last_code, .. } = breaker;
    let (kind, title) = match kind {
        BreakerKind::Channel => ("channel", format!("Notification channel {name:?} is unavailable")),
        BreakerKind::Step => ("step", format!("Step {name:?} of consumer {consumer:?} is unavailable")),
    };
    let state = match state {
        BreakerState::Open | BreakerState::HalfOpen => "open",
        BreakerState::RampUp | BreakerState::Closed => "about to close, and lets few calls through",
    };
    let failure = last_code.as_deref().map_or_else(String::new, |code| format!(", last failure: {code}"));
    let waiting = match waiting {
        1 => "1 delivery waits".to_owned(),
        waiting => format!("{waiting} deliveries wait"),
    };
    let detail = format!(
        "The circuit breaker is {state}{failure}; {waiting} besides those in the queue. `orderd status` has more"
    );
    Cause { wait: open_after, ..cause(scope, &["breaker", kind, consumer, name], &title, &detail, *since) }
}

fn reload_cause(at: Timestamp, report: &ReloadReport, scope: &str) -> Cause {
    let detail = format!(
        "The former configuration is still active, but a restart may fail. {}",
        report.problems.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    );
    cause(scope, &["reload"], "A reload was rejected", &detail, at)
}

#[cfg(test)]
mod tests {
    use super::super::cause::{MAX_DETAIL_CHARS, is_event, runbook_entry};
    use super::super::dead_letters::unrouted_key;
    use super::*;
    use crate::control::ConfigChange;

    const LIMIT: DeadLetterLimit = DeadLetterLimit { count: 2, window: Duration::from_secs(600) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn scopes() -> AlertScopes {
        AlertScopes { broker: "virtual host /".to_owned(), instance: "shop-1, /etc/orderd/orderd.toml".to_owned() }
    }

    fn finding(kind: FindingKind) -> Finding {
        serde_json::from_value(serde_json::json!({
            "queue": "a\r\nBcc: eve", "kind": kind, "since": at(7), "messages": 3, "detail": "<b>deleted</b>"
        }))
        .unwrap()
    }

    fn breaker(state: BreakerState, name: &str) -> BreakerReading {
        BreakerReading {
            consumer: "order".into(),
            kind: if name == "email" { BreakerKind::Channel } else { BreakerKind::Step },
            name: name.into(),
            state,
            since: at(9),
            openings: 1,
            calls: 10,
            failures: 10,
            waiting: 4,
            last_failure: Some("transient (http_503): ada@example.com".to_owned()),
            last_code: Some("http_503".to_owned()),
        }
    }

    fn report(outcome: ReloadOutcome) -> ReloadReport {
        let problems = vec!["consumers.order.workers: must be at least 1, is 0".to_owned()];
        let changes = Vec::<ConfigChange>::new();
        let (generation, notes) = (1, Vec::new());
        ReloadReport { outcome, generation, changes, applied_after_ms: None, problems, temporary: false, notes }
    }

    const OPEN_AFTER: Duration = Duration::from_secs(60);

    fn observed(state: &LocalState) -> Observation {
        let moment = Moment { wall: at(100_010), uptime: Duration::from_secs(10) };
        observe(state, &scopes(), &mut DeadLetterWindow::default(), LIMIT, OPEN_AFTER, moment)
    }

    fn ids(state: &LocalState) -> Vec<String> {
        observed(state).causes.into_iter().map(|cause| cause.id).collect()
    }

    #[test]
    fn every_kind_of_cause_has_an_id_that_does_not_change_and_one_line_of_limited_text() {
        let mut state = LocalState {
            api: ApiState::Fresh,
            stored: super::super::stored::tests::stored(),
            findings: FindingKind::ALL.map(finding).to_vec(),
            breakers: vec![breaker(BreakerState::Open, "charge"), breaker(BreakerState::RampUp, "email")],
            last_reload: Some((at(3), report(ReloadOutcome::Rejected))),
            dead_letters: [("permanent", 5), ("undo_failed", 1), ("malformed", 1)]
                .map(|(reason, count)| dead_letter(reason, "a_code", count, "ord-1"))
                .into(),
        };
        state.dead_letters.insert(unrouted_key(), DeadLettersOfCode { count: 1, ..DeadLettersOfCode::default() });
        let observation = observed(&state);
        let mut ids: Vec<&str> = observation.causes.iter().map(|cause| cause.id.as_str()).collect();
        assert!(ids.contains(&"finding/queue_missing/a\\r\\nBcc: eve"), "{ids:?}");
        for id in [
            "dead_letters/order/permanent",
            "dead_letters/order/undo_failed",
            "breaker/step/order/charge",
            "breaker/channel/order/email",
            "reload",
            "unrouted",
            "dead_letters_waiting/dead_letter_queue",
            "replay_stopped/7",
        ] {
            assert!(ids.contains(&id), "{id}");
        }
        assert_eq!(ids.len(), FindingKind::ALL.len() - 2 + 8);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), observation.causes.len(), "two causes have one id");
        for cause in &observation.causes {
            assert!(!cause.title.contains(char::is_control) && !cause.detail.contains(char::is_control), "{cause:?}");
            assert!(cause.detail.chars().count() <= MAX_DETAIL_CHARS + 1, "{cause:?}");
            assert!(runbook_entry(&cause.id).starts_with("Orderd"), "{cause:?}");
            let must_last = !is_event(&cause.id) && cause.id != "reload";
            assert_eq!(cause.wait >= OPEN_AFTER, must_last, "what has happened is an alert at once: {cause:?}");
        }
        assert!(observation.sees_findings && observation.sees_store);
    }

    fn dead_letter(reason: &str, code: &str, count: u64, last: &str) -> (DeadLetterKey, DeadLettersOfCode) {
        let key = ("order".to_owned(), reason.to_owned(), code.to_owned());
        (key, DeadLettersOfCode { count, last: last.to_owned() })
    }

    #[test]
    fn an_alert_about_dead_letters_has_their_codes_and_one_of_them_as_an_example() {
        let dead_letters = [
            dead_letter("permanent", "invalid_address", 1, "ord-1"),
            dead_letter("permanent", "unknown_channel", 2, &format!("ord-2\n{}", "x".repeat(500))),
        ];
        let state = LocalState { dead_letters: dead_letters.into(), ..LocalState::default() };
        let detail = observed(&state).causes.remove(0).detail;
        assert!(detail.starts_with("3 in the last 10m: unknown_channel 2, invalid_address 1"), "{detail}");
        assert!(detail.contains("ord-2\\n") && detail.len() < 200, "{detail}");
    }

    #[test]
    fn an_alert_about_a_notification_channel_names_the_runbook_entry_about_channels() {
        let entry = |name| {
            let state = LocalState { breakers: vec![breaker(BreakerState::Open, name)], ..LocalState::default() };
            runbook_entry(&observed(&state).causes[0].id)
        };
        assert_eq!(entry("email"), "OrderdChannelUnavailable");
        assert_eq!(entry("charge"), "OrderdStepUnavailable");
    }

    #[test]
    fn what_a_service_answers_is_in_no_alert() {
        let state = LocalState { breakers: vec![breaker(BreakerState::Open, "charge")], ..LocalState::default() };
        let cause = observed(&state).causes.remove(0);
        assert!(cause.detail.contains("http_503") && !cause.detail.contains("ada"), "{cause:?}");
    }

    #[test]
    fn closed_breakers_and_accepted_reloads_are_no_causes_and_without_the_management_api_findings_may_last() {
        let mut state = LocalState {
            breakers: vec![breaker(BreakerState::Closed, "charge")],
            last_reload: Some((at(3), report(ReloadOutcome::Applied))),
            ..LocalState::default()
        };
        for outcome in [ReloadOutcome::Applied, ReloadOutcome::PartlyApplied, ReloadOutcome::Unchanged] {
            state.last_reload = Some((at(3), report(outcome)));
            assert!(ids(&state).is_empty());
        }
        assert!(!observed(&state).sees_findings);
    }
}
