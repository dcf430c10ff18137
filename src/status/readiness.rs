//! The readiness checks: the conditions for `/readyz`, each with its result and a short reason.
//!
//! Pure: it reads the assembled status. No clock, no lock, no I/O.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ConsumerStatus, DaemonState, DaemonStatus, LedgerStatus};
use crate::files::{FileOutage, FileState};
use crate::ledger::Outage;
use crate::message::{ANSWERS_OVERDUE, CONFIRMS_OVERDUE};
use crate::reconcile::Finding;

/// One condition for readiness. The daemon is ready if all of them pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadinessCheck {
    /// `shutdown`, `ledger`, `event_file <name>`, `topology`, `publisher`, `confirms` or `consumer <name>`.
    pub name: String,
    /// The check passes.
    pub ok: bool,
    /// The state in a few words; if the check fails, with the cause as far as it is known.
    pub detail: String,
}

/// All checks. `connect_error` is the error of the publisher's last attempt to connect, if that attempt failed; `findings`
/// are those of the broker; `declare_error` says why the topology could not be declared completely the last time.
pub(super) fn readiness_checks(
    daemon: &DaemonStatus,
    consumers: &BTreeMap<String, ConsumerStatus>,
    connect_error: Option<&str>,
    findings: &[Finding],
    declare_error: Option<&str>,
) -> Vec<ReadinessCheck> {
    let check = |name: &str, ok: bool, passed: &str, failed: &str| {
        let detail = if ok { passed } else { failed };
        ReadinessCheck { name: name.to_owned(), ok, detail: detail.to_owned() }
    };
    let connected = daemon.publisher.as_ref().is_some_and(|publisher| publisher.connected);
    let mut checks = vec![
        check("shutdown", daemon.state != DaemonState::Draining, "not requested", "in progress"),
        check("ledger", daemon.ledger.recording, "recording", &ledger_problem(&daemon.ledger)),
        topology(daemon, findings, declare_error),
        check("publisher", connected, "connected", &with_cause("no connection", connect_error)),
    ];
    for (name, file) in &daemon.event_files {
        let problem = file.outage.as_ref().map(|outage| file_problem(file, outage, now(daemon)));
        let failed = problem.as_deref().unwrap_or_default();
        checks.push(check(&format!("event_file {name}"), problem.is_none(), "written", failed));
    }
    if let Some(publisher) = daemon.publisher.as_ref().filter(|publisher| publisher.connected) {
        let overdue = publisher.waiting_seconds >= CONFIRMS_OVERDUE.as_secs();
        let (seconds, unconfirmed) = (publisher.waiting_seconds, publisher.unconfirmed);
        let blocked = publisher.blocked.as_ref().map(|reason| format!(" and has blocked publishing ({reason})"));
        let blocked = blocked.unwrap_or_default();
        let failed = format!(
            "the broker has confirmed nothing for {seconds} s{blocked}: {unconfirmed} publications unconfirmed"
        );
        checks.push(check("confirms", !overdue, "arriving", &failed));
    }
    // A removed consumer only finishes the deliveries it has received. A paused consumer has no subscription on purpose.
    for (name, consumer) in consumers.iter().filter(|(_, consumer)| consumer.workers_configured > 0) {
        let problem = consumer_problem(consumer);
        let passed = if consumer.paused { "paused" } else { "subscribed" };
        let ok = problem.is_none();
        checks.push(check(&format!("consumer {name}"), ok, passed, &problem.unwrap_or_default()));
    }
    checks
}

/// Why a consumer makes no progress, or loses its progress again and again.
fn consumer_problem(consumer: &ConsumerStatus) -> Option<String> {
    if consumer.paused {
        return None;
    }
    if !consumer.subscribed {
        let cause = consumer.subscribe_error.as_deref().or(consumer.ack_timeout.as_deref());
        return Some(with_cause("no subscription", cause));
    }
    if consumer.silent {
        let address = consumer.address.as_deref().unwrap_or("the broker");
        return Some(format!("{address} has sent nothing for longer than broker.heartbeat"));
    }
    if let Some(error) = &consumer.publish_error {
        return Some(format!("the broker does not accept what is published: {error}"));
    }
    if consumer.unanswered_seconds >= ANSWERS_OVERDUE.as_secs() {
        let seconds = consumer.unanswered_seconds;
        return Some(format!("the broker has not answered for {seconds} s since acks were sent"));
    }
    consumer.ack_timeout.clone()
}

/// The topology was declared or checked, and nothing has been found missing or dangerous since.
fn topology(daemon: &DaemonStatus, findings: &[Finding], declare_error: Option<&str>) -> ReadinessCheck {
    let mut wrong = findings.iter().filter(|finding| finding.kind.prevents_readiness());
    let (ok, detail) = match (&daemon.publisher, wrong.next()) {
        (None, _) => (false, "waiting for the broker".to_owned()),
        (Some(_), _) if declare_error.is_some() => (false, with_cause("cannot be declared completely", declare_error)),
        (Some(_), None) => (true, "declared or checked".to_owned()),
        (Some(_), Some(first)) => {
            let (kind, count) = (first.kind.as_str(), wrong.count() + 1);
            (false, format!("{kind} on {:?}, {count} findings in all: see the findings", first.subject()))
        }
    };
    ReadinessCheck { name: "topology".to_owned(), ok, detail }
}

/// Why the ledger does not record: the cause's code, in words, and since when.
fn ledger_problem(ledger: &LedgerStatus) -> String {
    match &ledger.outage {
        Some(Outage { cause, detail, since }) => format!("{}: {detail}; since {since:.0}", cause.as_str()),
        None => "not open yet, or closed".to_owned(),
    }
}

/// Why an event file cannot be written: the cause's code, the file, the error, and for how long.
fn file_problem(file: &FileState, outage: &FileOutage, now: Timestamp) -> String {
    let FileOutage { cause, detail, since } = outage;
    let seconds = now.duration_since(*since).as_secs().max(0);
    format!("{}: {:?}: {detail}; for {seconds} s", cause.as_str(), file.path)
}

/// The time at which the status was read.
fn now(daemon: &DaemonStatus) -> Timestamp {
    let uptime = SignedDuration::try_from_secs_f64(daemon.uptime_seconds).unwrap_or_default();
    daemon.started_at.checked_add(uptime).unwrap_or(daemon.started_at)
}

fn with_cause(text: &str, cause: Option<&str>) -> String {
    cause.map_or_else(|| text.to_owned(), |cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileOutageCause;
    use crate::status::PublisherStatus;
    use crate::status::assemble::{consumer_status, tests::reading};

    fn daemon() -> DaemonStatus {
        DaemonStatus {
            version: String::new(),
            pid: 1,
            instance: String::new(),
            state: DaemonState::Running,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            uptime_seconds: 0.0,
            config: String::new(),
            config_generation: 1,
            last_reload: None,
            connections: 0,
            connections_made: 0,
            publisher: Some(PublisherStatus {
                connected: true,
                address: None,
                connections: 1,
                unconfirmed: 0,
                waiting_seconds: 0,
                blocked: None,
            }),
            ledger: LedgerStatus { recording: true, commits: 0, outages: 0, outage: None },
            event_files: [("analytics".to_owned(), FileState { path: "/a".into(), outages: 0, outage: None })].into(),
        }
    }

    fn consumer() -> ConsumerStatus {
        consumer_status(&reading("order"), &[])
    }

    /// Names of the checks that fail.
    fn failed(checks: &[ReadinessCheck]) -> Vec<&str> {
        checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect()
    }

    #[test]
    fn a_consumer_without_a_subscription_is_not_ready_unless_it_is_paused_or_removed() {
        let failed_with = |consumer: ConsumerStatus| {
            let checks = readiness_checks(&daemon(), &[("order".to_owned(), consumer)].into(), None, &[], None);
            failed(&checks).iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(failed_with(consumer()), ["consumer order"]);
        assert_eq!(failed_with(ConsumerStatus { subscribed: true, ..consumer() }), [""; 0]);
        assert_eq!(failed_with(ConsumerStatus { paused: true, ..consumer() }), [""; 0]);
        let frozen = ConsumerStatus { subscribed: true, silent: true, ..consumer() };
        assert_eq!(failed_with(frozen), ["consumer order"], "its node answers nothing");
        let subscribed = || ConsumerStatus { subscribed: true, ..consumer() };
        let problem = || Some("consumer_timeout".to_owned());
        assert_eq!(failed_with(ConsumerStatus { publish_error: problem(), ..subscribed() }), ["consumer order"]);
        assert_eq!(failed_with(ConsumerStatus { ack_timeout: problem(), ..subscribed() }), ["consumer order"]);
        assert_eq!(failed_with(ConsumerStatus { unanswered_seconds: 4, ..subscribed() }), [""; 0]);
        assert_eq!(failed_with(ConsumerStatus { unanswered_seconds: 5, ..subscribed() }), ["consumer order"]);
        assert_eq!(failed_with(ConsumerStatus { workers_configured: 0, ..consumer() }), [""; 0]);
    }

    #[test]
    fn each_condition_of_the_daemon_is_one_check() {
        let failing = |change: fn(&mut DaemonStatus)| {
            let mut daemon = daemon();
            change(&mut daemon);
            let checks = readiness_checks(&daemon, &BTreeMap::new(), None, &[], None);
            failed(&checks).iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(failing(|_| {}), [""; 0]);
        assert_eq!(failing(|daemon| daemon.state = DaemonState::Draining), ["shutdown"]);
        assert_eq!(failing(|daemon| daemon.ledger.recording = false), ["ledger"]);
        assert_eq!(failing(|daemon| daemon.publisher = None), ["topology", "publisher"]);
        assert_eq!(failing(fill_disk), ["event_file analytics"]);
        let isolated = |daemon: &mut DaemonStatus| daemon.publisher.as_mut().unwrap().waiting_seconds = 5;
        assert_eq!(failing(isolated), ["confirms"], "connected, and nothing is confirmed");
    }

    fn fill_disk(daemon: &mut DaemonStatus) {
        daemon.uptime_seconds = 71.4;
        daemon.event_files.get_mut("analytics").unwrap().outage = Some(FileOutage {
            cause: FileOutageCause::DiskFull,
            detail: "ENOSPC".to_owned(),
            since: daemon.started_at,
        });
    }

    #[test]
    fn an_event_file_that_cannot_be_written_is_named_with_its_error_and_for_how_long() {
        let mut daemon = daemon();
        fill_disk(&mut daemon);
        let checks = readiness_checks(&daemon, &BTreeMap::new(), None, &[], None);
        let detail = checks.into_iter().find(|check| !check.ok).map(|check| check.detail);
        assert_eq!(detail.as_deref(), Some("disk_full: \"/a\": ENOSPC; for 71 s"));
    }

    #[test]
    fn a_failed_check_names_the_error_of_its_own_connection_and_not_of_another() {
        let daemon = DaemonStatus { publisher: None, ..daemon() };
        let refused = ConsumerStatus { subscribe_error: Some("no queue".to_owned()), ..consumer() };
        let consumers = [("order".to_owned(), refused), ("other".to_owned(), consumer())].into();
        let checks = readiness_checks(&daemon, &consumers, Some("refused"), &[], Some("406"));
        let detail = |name: &str| checks.iter().find(|check| check.name == name).map(|check| check.detail.as_str());
        assert_eq!(detail("publisher"), Some("no connection: refused"));
        let declared = DaemonStatus { publisher: self::daemon().publisher, ..daemon.clone() };
        let checks = readiness_checks(&declared, &BTreeMap::new(), None, &[], Some("406"));
        assert_eq!(failed(&checks), ["topology"]);
        assert_eq!(checks[2].detail, "cannot be declared completely: 406");
        assert_eq!(detail("consumer order"), Some("no subscription: no queue"));
        assert_eq!(detail("consumer other"), Some("no subscription"));
    }
}
