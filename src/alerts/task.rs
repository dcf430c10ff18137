//! The task that observes the daemon, records alerts in the ledger, and sends messages. It runs until a shutdown begins.
//!
//! Whatever the ledger or the channel does, it only waits: nothing else waits for it. A message that could not be sent is made anew,
//! with all that has changed meanwhile, and sent when the channel works again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use super::dead_letters::DeadLetterWindow;
use super::message::{Message, message};
use super::observation::{AlertScopes, LocalState, Observation, observe};
use super::settings::AlertSettings;
use super::status::AlertsStatus;
use super::tracker::{Due, Tracker, due, sent};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::instance;
use crate::ledger::{AlertBook, LedgerWriter};
use crate::notify::{OperatorChannel, SendOutcome};
use crate::shutdown::Shutdown;
use crate::telemetry::RepeatedLog;

/// The longest and shortest time between two observations.
const MAX_CHECK: Duration = Duration::from_secs(10);
const MIN_CHECK: Duration = Duration::from_millis(200);
/// How long the ledger may take before its outage is reported; the task continues to wait.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between attempts to send.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(120) };
/// How much longer than an attempt takes at most other instances wait.
const LEASE_MARGIN: Duration = Duration::from_secs(10);
/// Attempts to record a change that other instances have made impossible, until the next observation.
const MAX_EXCHANGES: usize = 5;
/// How long, and for how many messages, recipients are tried again that have not got a message that others have.
const LATE_FOR: Duration = Duration::from_secs(3600);
const MAX_LATE: usize = 8;

/// Messages that cannot be sent, by channel.
static FAILED: RepeatedLog = RepeatedLog::new();

/// What the task works with.
#[derive(Clone)]
pub struct AlertDeps {
    /// Where alerts are.
    pub scopes: AlertScopes,
    /// Reads the daemon's state.
    pub state: Arc<dyn Fn() -> LocalState + Send + Sync>,
    /// Where alerts are recorded.
    pub ledger: Arc<dyn LedgerWriter>,
    /// Where messages go.
    pub channel: Arc<OperatorChannel>,
    /// What the status shows.
    pub status: watch::Sender<Option<AlertsStatus>>,
    /// Ends the task.
    pub shutdown: Shutdown,
}

/// Observes, records and sends until a shutdown begins.
///
/// # Errors
/// None: it never gives up.
pub async fn run(settings: AlertSettings, deps: AlertDeps) -> Result<(), Infallible> {
    let shutdown = deps.shutdown.clone();
    let check = (settings.times.resolved_after / 8).clamp(MIN_CHECK, MAX_CHECK);
    let work = async {
        let mut task = AlertTask::new(settings, deps);
        loop {
            task.round(Timestamp::now()).await;
            sleep(check).await;
        }
    };
    // Cancel-safe: what is recorded stays, and a message that was not recorded as sent is sent again after a restart.
    tokio::select! {
        () = work => {}
        () = shutdown.begun() => {}
    }
    Ok(())
}

struct AlertTask {
    settings: AlertSettings,
    deps: AlertDeps,
    owner: String,
    window: DeadLetterWindow,
    tracker: Tracker,
    /// Failed attempts to send since one succeeded, and when the next is made.
    failures: u32,
    next_attempt: Instant,
    late: Vec<LateMessage>,
}

/// A message that some recipients have, and others do not.
struct LateMessage {
    message: Message,
    left: Vec<String>,
    since: Instant,
    failures: u32,
    next_attempt: Instant,
}

impl AlertTask {
    fn new(settings: AlertSettings, deps: AlertDeps) -> Self {
        deps.status.send_modify(|status| {
            status.get_or_insert_default().channel.clone_from(&settings.channel.name);
        });
        AlertTask {
            settings,
            deps,
            owner: instance::owner(),
            window: DeadLetterWindow::default(),
            tracker: Tracker::default(),
            failures: 0,
            next_attempt: Instant::now(),
            late: Vec::new(),
        }
    }

    /// One observation, and what follows from it.
    async fn round(&mut self, now: Timestamp) {
        let state = (self.deps.state)();
        let observation = observe(&state, &self.deps.scopes, &mut self.window, self.settings.dead_letters, now);
        self.tracker.observe(&observation, now);
        let Some(book) = self.record(&observation, now).await else { return };
        self.send_late().await;
        if Instant::now() < self.next_attempt {
            return;
        }
        if let Some(due) = due(&book, &self.settings.times, &self.owner, now) {
            self.send(book, due, now).await;
        }
    }

    /// Records what the observation changes. Returns what is recorded then, or `None` if that is not known.
    async fn record(&mut self, observation: &Observation, now: Timestamp) -> Option<AlertBook> {
        let times = self.settings.times;
        let mut book = self.exchange(None).await?.1;
        for _ in 0..MAX_EXCHANGES {
            let next = self.tracker.next(&book, observation, &times, instance::name(), now);
            if next == book {
                self.show(&book, now);
                return Some(book);
            }
            let (replaced, recorded) = self.exchange(Some(next)).await?;
            if replaced {
                log_changes(&book, &recorded);
                self.show(&recorded, now);
                return Some(recorded);
            }
            book = recorded;
        }
        None
    }

    /// Whether the replacement was recorded, and what is recorded now. `None` once nothing can be recorded any more.
    async fn exchange(&self, replacement: Option<AlertBook>) -> Option<(bool, AlertBook)> {
        let mut exchanging = self.deps.ledger.exchange_alerts(replacement);
        let answer = match timeout(LEDGER_TIMEOUT, &mut exchanging).await {
            Ok(answer) => answer,
            Err(_) => {
                let problem = "the ledger cannot record alerts; messages wait until it can";
                self.deps.status.send_modify(|status| {
                    status.get_or_insert_default().problem = Some(problem.to_owned());
                });
                let answer = exchanging.await;
                self.deps.status.send_modify(|status| status.get_or_insert_default().problem = None);
                answer
            }
        };
        match answer {
            Ok(answer) => Some((answer.replaced, answer.book)),
            Err(error) => {
                debug!(error = %chain(&error), "cannot record alerts");
                None
            }
        }
    }

    fn show(&self, book: &AlertBook, now: Timestamp) {
        let times = self.settings.times;
        self.deps.status.send_modify(|status| status.get_or_insert_default().set_book(book, &times, now));
    }

    /// Sends a message, once no other instance does, and records that.
    async fn send(&mut self, book: AlertBook, due: Due, now: Timestamp) {
        let mut left = self.deps.channel.recipients();
        let lease = self.deps.channel.longest(left.len()) + LEASE_MARGIN;
        let Ok(until) = now.checked_add(lease) else { return };
        let number = book.messages + 1;
        let claimed = AlertBook { sender: Some((self.owner.clone(), until)), ..book };
        // Another instance has changed something: the next round sees what.
        let Some((true, claimed)) = self.exchange(Some(claimed)).await else { return };
        let message = message(&due, number);
        let outcome = self.deps.channel.send(&message.id, &message.body, &mut left).await;
        let is_sent = outcome.accepted > 0;
        self.sent_or_failed(&outcome, is_sent);
        let mut book = claimed;
        for _ in 0..MAX_EXCHANGES {
            let next = match is_sent {
                true => sent(&book, &due, now),
                false => AlertBook { sender: None, ..book },
            };
            match self.exchange(Some(next)).await {
                None => return,
                Some((true, recorded)) => {
                    self.show(&recorded, now);
                    break;
                }
                Some((false, recorded)) => book = recorded,
            }
        }
        if is_sent && !left.is_empty() {
            let next_attempt = Instant::now() + RETRY_BACKOFF.wait(0, fastrand::f64());
            self.late.push(LateMessage { message, left, since: Instant::now(), failures: 0, next_attempt });
            if self.late.len() > MAX_LATE {
                give_up(&self.late.remove(0));
            }
        }
    }

    /// Counts an attempt, logs it, and decides when the next is made.
    fn sent_or_failed(&mut self, outcome: &SendOutcome, is_sent: bool) {
        let SendOutcome { accepted, refused, failure } = outcome;
        let channel = &self.settings.channel.name;
        for (recipient, reason) in refused {
            error!(channel, recipient, reason, "an alert was refused for this recipient");
        }
        let refusal = refused.first().map(|(recipient, reason)| format!("{recipient}: {reason}"));
        let problem = failure.clone().or(refusal);
        self.deps.status.send_modify(|status| {
            let status = status.get_or_insert_default();
            status.sent += u64::from(is_sent);
            status.failed += u64::from(!is_sent);
            status.problem.clone_from(&problem);
        });
        if is_sent {
            self.failures = 0;
            self.next_attempt = Instant::now();
            let failed = FAILED.ended(channel);
            info!(channel, recipients = accepted, failed, "sent alerts to operators");
        } else {
            self.next_attempt = Instant::now() + RETRY_BACKOFF.wait(self.failures, fastrand::f64());
            self.failures = self.failures.saturating_add(1);
            if let Some(repeated) = FAILED.occurred(channel) {
                let (problem, repeated) = (problem.unwrap_or_default(), repeated.repeated);
                warn!(channel, problem, repeated, "cannot send alerts to operators; trying again");
            }
        }
    }

    /// Tries again the recipients that lack a message which others have.
    async fn send_late(&mut self) {
        for mut late in std::mem::take(&mut self.late) {
            if late.since.elapsed() >= LATE_FOR {
                give_up(&late);
                continue;
            }
            if Instant::now() >= late.next_attempt {
                let outcome = self.deps.channel.send(&late.message.id, &late.message.body, &mut late.left).await;
                for (recipient, reason) in &outcome.refused {
                    error!(recipient, reason, "an alert was refused for this recipient");
                }
                late.failures += 1;
                late.next_attempt = Instant::now() + RETRY_BACKOFF.wait(late.failures, fastrand::f64());
            }
            if late.left.is_empty() {
                self.deps.status.send_modify(|status| status.get_or_insert_default().problem = None);
            } else {
                self.late.push(late);
            }
        }
    }
}

fn give_up(late: &LateMessage) {
    error!(
        recipients = late.left.join(", "),
        "an alert that others have received could not be sent to these recipients"
    );
}

/// Logs what has opened and ended, also for those who read only the log.
fn log_changes(before: &AlertBook, after: &AlertBook) {
    for alert in &after.alerts {
        let was = before.alerts.iter().find(|was| was.scope == alert.scope && was.cause == alert.cause);
        let was_open = was.is_some_and(|was| was.resolved_at.is_none());
        match (was_open, alert.resolved_at.is_none()) {
            (false, true) => warn!(cause = alert.cause, title = alert.title, "an alert has opened"),
            (true, false) => info!(cause = alert.cause, title = alert.title, "an alert has ended"),
            (true, true) | (false, false) => {}
        }
    }
}

#[cfg(test)]
mod tests;
