//! Which alerts open, continue and end, and which are due for a message. Pure: the caller supplies the time.
//!
//! ```text
//!           a cause lasts for open_after           not seen for resolved_after
//! nothing ─────────────────────────────► open ──────────────────────────────► resolved ── reported ──► nothing
//!                                         ▲                                      │
//!                                         └────── seen before it is reported ────┘
//! ```
//! A cause that comes and goes faster than that changes nothing, so it causes no stream of messages. What is recorded is the same for
//! all instances that share a ledger; only how long this process has seen a cause is not recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::cause::{Cause, CauseKind};
use super::dead_letters::Moment;
use super::observation::{AlertScopes, Observation};
use super::settings::AlertTimes;
use crate::ledger::{AlertBook, AlertRecord};

/// The most alerts of one kind at the same time. Further causes of that kind wait until one ends: many of one kind, such as findings about
/// each of hundreds of queues, keep out none of another.
const MAX_ALERTS_OF_KIND: usize = 50;
/// How old the recorded time of an observation may become at most while a cause lasts.
const MAX_REFRESH: Duration = Duration::from_secs(60);
/// How long findings are not seen at most although they last, after the poller has begun: some need a minute, and the details of each
/// queue.
const FINDINGS_DELAY: Duration = Duration::from_secs(120);
/// After this time, the alert about a finding or the store ends that no instance can see: without the management API, or while the ledger
/// cannot be read, it may last.
const UNSEEN: Duration = Duration::from_secs(86_400);
/// After this time, an alert ends of an instance that has stopped. Its cause ended with it, and while it ran it refreshed the alert.
const STOPPED_INSTANCE: Duration = Duration::from_secs(15 * 60);

/// The longest time for which a process may send while others do not.
pub(super) const MAX_LEASE: Duration = Duration::from_secs(3_600);

type AlertKey = (String, String);

/// What this process remembers about causes. Times are since it began to observe, so that no clock can be set.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    now: Duration,
    /// Since when it observes.
    begun: Option<Duration>,
    /// Since when each cause has been seen without a gap.
    seen_since: BTreeMap<AlertKey, Duration>,
    /// Since when all findings have been seen without a gap.
    findings_since: Option<Duration>,
    /// Since when what the store has has been seen without a gap.
    store_since: Option<Duration>,
}

impl Tracker {
    /// Takes an observation. To be called once for each, before [`Tracker::next`].
    pub fn observe(&mut self, observation: &Observation, now: Moment) {
        self.now = now.uptime;
        self.begun.get_or_insert(now.uptime);
        let keys: BTreeSet<AlertKey> = observation.causes.iter().map(key).collect();
        self.seen_since.retain(|key, _| keys.contains(key));
        for key in keys {
            self.seen_since.entry(key).or_insert(now.uptime);
        }
        self.findings_since = observation.sees_findings.then(|| self.findings_since.unwrap_or(now.uptime));
        self.store_since = observation.sees_store.then(|| self.store_since.unwrap_or(now.uptime));
    }

    /// What is to be recorded after this observation, in place of `book`; equal to it if nothing changes.
    pub fn next(
        &self,
        book: &AlertBook,
        observation: &Observation,
        times: &AlertTimes,
        instance: &str,
        now: Timestamp,
    ) -> AlertBook {
        let mut causes: BTreeMap<AlertKey, &Cause> =
            observation.causes.iter().map(|cause| (key(cause), cause)).collect();
        let mut next = book.clone();
        for alert in &mut next.alerts {
            match causes.remove(&(alert.scope.clone(), alert.cause.clone())) {
                Some(cause) => continues(alert, cause, times, now),
                // The clock was set back.
                None if alert.observed_at > now && elapsed(now, alert.observed_at) > MAX_REFRESH => {
                    alert.observed_at = now;
                }
                None if alert.resolved_at.is_none() && self.has_ended(alert, &observation.scopes, times, now) => {
                    alert.resolved_at = Some(alert.observed_at.max(alert.opened_at));
                }
                None => {}
            }
        }
        let mut counts = BTreeMap::<Option<CauseKind>, usize>::new();
        for alert in &next.alerts {
            *counts.entry(CauseKind::of(&alert.cause)).or_default() += 1;
        }
        let mut causes: Vec<(AlertKey, &Cause)> = causes.into_iter().collect();
        causes.sort_by_key(|(_, cause)| cause.since);
        for (key, cause) in causes {
            let seen = self.seen_since.get(&key).map_or(Duration::ZERO, |since| self.now.saturating_sub(*since));
            let of_kind = counts.entry(CauseKind::of(&cause.id)).or_default();
            if *of_kind < MAX_ALERTS_OF_KIND && seen >= cause.wait {
                *of_kind += 1;
                next.alerts.push(opened(cause, instance, now));
            }
        }
        next.alerts.sort_by(|a, b| (&a.scope, &a.cause).cmp(&(&b.scope, &b.cause)));
        next
    }

    /// Whether the cause of an alert that is not seen has ended.
    fn has_ended(&self, alert: &AlertRecord, scopes: &AlertScopes, times: &AlertTimes, now: Timestamp) -> bool {
        let unseen = elapsed(alert.observed_at, now);
        let seen_by_this = |after: Duration, since: Option<Duration>| {
            unseen >= after && since.is_some_and(|since| self.now.saturating_sub(since) >= after)
        };
        let is_own = alert.scope == scopes.broker || alert.scope == scopes.instance;
        match CauseKind::of(&alert.cause) {
            Some(CauseKind::Finding) => {
                let after = times.resolved_after.max(FINDINGS_DELAY);
                unseen >= UNSEEN || is_own && seen_by_this(after, self.findings_since)
            }
            Some(CauseKind::DeadLettersWaiting | CauseKind::ReplayStopped) => {
                unseen >= UNSEEN || is_own && seen_by_this(times.resolved_after, self.store_since)
            }
            Some(CauseKind::DeadLetters | CauseKind::Unrouted | CauseKind::Breaker | CauseKind::Reload) | None => {
                let stopped = unseen >= times.resolved_after.max(STOPPED_INSTANCE);
                stopped || is_own && seen_by_this(times.resolved_after, self.begun)
            }
        }
    }
}

fn key(cause: &Cause) -> AlertKey {
    (cause.scope.clone(), cause.id.clone())
}

/// Zero if the clock was set back.
fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(since).try_into().unwrap_or(Duration::ZERO)
}

fn opened(cause: &Cause, instance: &str, now: Timestamp) -> AlertRecord {
    AlertRecord {
        scope: cause.scope.clone(),
        cause: cause.id.clone(),
        title: cause.title.clone(),
        detail: cause.detail.clone(),
        instance: instance.to_owned(),
        opened_at: cause.since.min(now),
        observed_at: now,
        resolved_at: None,
        reported_at: None,
    }
}

/// Not written each time, because each change is a commit.
fn continues(alert: &mut AlertRecord, cause: &Cause, times: &AlertTimes, now: Timestamp) {
    let refresh = (times.resolved_after / 4).min(MAX_REFRESH);
    if alert.resolved_at.is_some() || elapsed(alert.observed_at, now) >= refresh || alert.observed_at > now {
        alert.resolved_at = None;
        alert.observed_at = now;
        alert.detail.clone_from(&cause.detail);
    }
}

/// What a message is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due {
    /// The alerts, open ones first.
    pub alerts: Vec<AlertRecord>,
}

/// The alerts that are not reported as they are, whether a message may be sent now or not.
pub(super) fn unsent<'b>(
    book: &'b AlertBook,
    times: &AlertTimes,
    now: Timestamp,
) -> impl Iterator<Item = &'b AlertRecord> {
    let repeat = times.repeat;
    book.alerts.iter().filter(move |alert| match (alert.resolved_at, alert.reported_at) {
        (Some(_), _) | (None, None) => true,
        (None, Some(reported)) => repeat.is_some_and(|repeat| elapsed(reported, now) >= repeat),
    })
}

/// The message that may be sent now, if any. `owner` is this process. A time further ahead than `MAX_LEASE` was written before the clock
/// was set back.
pub(super) fn due(book: &AlertBook, times: &AlertTimes, owner: &str, now: Timestamp) -> Option<Due> {
    let is_early = book.sent_at.is_some_and(|sent| sent <= now && elapsed(sent, now) < times.interval);
    let is_taken = book
        .sender
        .as_ref()
        .is_some_and(|(sender, until)| sender != owner && *until > now && elapsed(now, *until) <= MAX_LEASE);
    if is_early || is_taken {
        return None;
    }
    let mut alerts: Vec<_> = unsent(book, times, now).cloned().collect();
    alerts.sort_by_key(|alert| (alert.resolved_at.is_some(), alert.opened_at));
    (!alerts.is_empty()).then_some(Due { alerts })
}

/// What is to be recorded once the message was sent, in place of `book`, which may have changed meanwhile.
pub(super) fn sent(book: &AlertBook, due: &Due, now: Timestamp) -> AlertBook {
    let mut next = AlertBook { messages: book.messages + 1, sent_at: Some(now), sender: None, ..book.clone() };
    next.alerts.retain_mut(|alert| {
        let is_same = |sent: &&AlertRecord| sent.scope == alert.scope && sent.cause == alert.cause;
        let Some(sent) = due.alerts.iter().find(is_same) else { return true };
        match (sent.resolved_at, alert.resolved_at) {
            (Some(_), Some(_)) => return false,
            // It was reported as resolved, and has come back.
            (Some(_), None) => alert.reported_at = None,
            (None, _) => alert.reported_at = Some(now),
        }
        true
    });
    next
}

#[cfg(test)]
mod tests;
