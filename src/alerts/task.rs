//! The task that observes the daemon, records alerts in the ledger, and sends messages. It runs until it is stopped.
//!
//! Whatever the ledger or the channel does, it only waits, and continues to observe: nothing else waits for it. A message that could
//! not be sent is made anew, with all that has changed meanwhile, and sent when the channel works again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::dead_letters::{DeadLetterKey, DeadLetterWindow, Moment};
use super::message::{Message, message};
use super::observation::{AlertScopes, LocalState, observe};
use super::settings::AlertSettings;
use super::status::AlertsStatus;
use super::tracker::{Due, Tracker, due, sent};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::instance;
use crate::ledger::{AlertBook, LedgerError, LedgerWriter};
use crate::notify::{OperatorChannel, SendOutcome};
use crate::telemetry::RepeatedLog;

/// The longest and shortest time between two observations.
const MAX_CHECK: Duration = Duration::from_secs(10);
const MIN_CHECK: Duration = Duration::from_millis(200);
/// How long the ledger may take before its outage is reported; the task continues to wait.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between attempts to send.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(120) };
/// For how long a process that sends keeps others from sending, renewed while it does.
const LEASE: Duration = Duration::from_secs(60);
/// How long a message that is being sent is waited for when the task is stopped, and then the last record.
const SEND_GRACE: Duration = Duration::from_secs(4);
const LAST_RECORD: Duration = Duration::from_secs(2);
/// How old what was read from the ledger may be before it is read again.
const MAX_BOOK_AGE: Duration = Duration::from_secs(60);
/// Attempts to record a change that other instances have made impossible, until the next observation.
const MAX_EXCHANGES: usize = 5;
/// How long, and for how many messages, recipients are tried again that have not got a message that others have.
const LATE_FOR: Duration = Duration::from_secs(3600);
const MAX_LATE: usize = 8;

/// Messages that cannot be sent, by channel.
static FAILED: RepeatedLog = RepeatedLog::new();
/// Recipients that were refused, by channel.
static REFUSED: RepeatedLog = RepeatedLog::new();
/// Alerts that the ledger refuses.
static NOT_RECORDED: RepeatedLog = RepeatedLog::new();

/// What outlives the task, which a reload replaces: dead letters that were counted, and since when.
#[derive(Debug)]
pub struct AlertHistory {
    begun: Instant,
    window: Mutex<DeadLetterWindow>,
}

impl Default for AlertHistory {
    fn default() -> Self {
        AlertHistory { begun: Instant::now(), window: Mutex::default() }
    }
}

impl AlertHistory {
    /// What these counters have already does not count: it happened while no alerts were configured.
    pub fn skip(&self, dead_letters: BTreeMap<DeadLetterKey, u64>) {
        self.window().skip(dead_letters);
    }

    fn window(&self) -> MutexGuard<'_, DeadLetterWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    /// The time for display, and for what instances share.
    pub clock: fn() -> Timestamp,
    /// What former tasks have counted.
    pub history: Arc<AlertHistory>,
    /// Ends the task.
    pub stop: CancellationToken,
}

/// Observes, records and sends until it is stopped. Then it waits a moment for a message that is being sent, and records what it sees.
///
/// # Errors
/// None: it never gives up.
pub async fn run(settings: AlertSettings, deps: AlertDeps) -> Result<(), Infallible> {
    let stop = deps.stop.clone();
    let mut task = AlertTask::new(settings, deps);
    while !stop.is_cancelled() {
        // Cancel-safe: what is recorded stays, and a message that was not recorded as sent is sent again.
        tokio::select! {
            () = task.round() => {}
            () = after(&stop, SEND_GRACE) => {}
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = sleep(task.check()) => {}
            () = stop.cancelled() => {}
        }
    }
    let _ = timeout(LAST_RECORD, task.last_record()).await;
    Ok(())
}

async fn after(stop: &CancellationToken, grace: Duration) {
    stop.cancelled().await;
    sleep(grace).await;
}

struct AlertTask {
    settings: AlertSettings,
    deps: AlertDeps,
    owner: String,
    tracker: Tracker,
    /// What the ledger has recorded, as last read.
    book: Option<(AlertBook, Instant)>,
    /// Whether a message is being sent, for which this process keeps others from sending.
    is_sending: bool,
    /// Failed attempts to send since one succeeded, and when the next is made.
    failures: u32,
    next_attempt: Instant,
    late: Vec<LateMessage>,
    problems: Problems,
}

/// Why messages cannot be sent.
#[derive(Debug, Default)]
struct Problems {
    ledger: Option<String>,
    channel: Option<String>,
    late: Option<String>,
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
            let status = status.get_or_insert_default();
            status.channel.clone_from(&settings.channel.name);
            status.problem = None;
        });
        AlertTask {
            settings,
            deps,
            owner: instance::owner(),
            tracker: Tracker::default(),
            book: None,
            is_sending: false,
            failures: 0,
            next_attempt: Instant::now(),
            late: Vec::new(),
            problems: Problems::default(),
        }
    }

    /// The time between two observations.
    fn check(&self) -> Duration {
        (self.settings.times.resolved_after / 8).clamp(MIN_CHECK, MAX_CHECK)
    }

    /// One observation, and what follows from it.
    async fn round(&mut self) {
        let Some(book) = self.observe().await else { return };
        self.send_late().await;
        if Instant::now() < self.next_attempt {
            return;
        }
        if let Some(due) = due(&book, &self.settings.times, &self.owner, self.now().wall) {
            self.send(book, due).await;
        }
    }

    /// Other processes need not wait until a message of this one, which is not sent any more, would be.
    async fn last_record(&mut self) {
        self.is_sending = false;
        self.observe().await;
    }

    fn now(&self) -> Moment {
        Moment { wall: (self.deps.clock)(), uptime: self.deps.history.begun.elapsed() }
    }

    /// Records what an observation changes. Returns what is recorded then, or `None` if that is not known. Cancel-safe.
    async fn observe(&mut self) -> Option<AlertBook> {
        let (state, now) = ((self.deps.state)(), self.now());
        let (limit, times) = (self.settings.dead_letters, self.settings.times);
        let observation = {
            let mut window = self.deps.history.window();
            observe(&state, &self.deps.scopes, &mut window, limit, times.open_after, now)
        };
        self.tracker.observe(&observation, now);
        let known = self.book.take().filter(|(_, read)| read.elapsed() < MAX_BOOK_AGE.min(times.resolved_after / 4));
        let mut book = match known {
            Some((book, read)) => {
                self.book = Some((book.clone(), read));
                book
            }
            None => self.exchange(None).await?.1,
        };
        for _ in 0..MAX_EXCHANGES {
            let next = self.tracker.next(&book, &observation, &times, instance::name(), now.wall);
            let next = AlertBook { sender: self.sender(&next, now.wall), ..next };
            if next == book {
                self.show(&book, now.wall);
                return Some(book);
            }
            let (replaced, recorded) = self.exchange(Some(next)).await?;
            if replaced {
                log_changes(&book, &recorded);
                self.show(&recorded, now.wall);
                return Some(recorded);
            }
            book = recorded;
        }
        None
    }

    /// The process that sends: this one while it does, which is renewed in time.
    fn sender(&self, book: &AlertBook, now: Timestamp) -> Option<(String, Timestamp)> {
        let (sender, until) = book.sender.as_ref()?;
        let is_fresh = Duration::try_from(until.duration_since(now)).is_ok_and(|left| left >= LEASE / 2);
        match (*sender == self.owner, self.is_sending) {
            (true, false) => None,
            (true, true) if !is_fresh => self.lease(now),
            (true, true) | (false, true | false) => book.sender.clone(),
        }
    }

    fn lease(&self, now: Timestamp) -> Option<(String, Timestamp)> {
        Some((self.owner.clone(), now.checked_add(LEASE).ok()?))
    }

    /// Whether the replacement was recorded, and what is recorded now. `None` if it is refused, or nothing can be recorded any more.
    async fn exchange(&mut self, replacement: Option<AlertBook>) -> Option<(bool, AlertBook)> {
        self.book = None;
        let mut exchanging = self.deps.ledger.exchange_alerts(replacement);
        let answer = match timeout(LEDGER_TIMEOUT, &mut exchanging).await {
            Ok(answer) => answer,
            Err(_) => {
                self.problems.ledger = Some("the ledger cannot record alerts; messages wait until it can".to_owned());
                self.show_problem();
                exchanging.await
            }
        };
        self.problems.ledger = answer.as_ref().err().map(|error| chain(error).to_string());
        self.show_problem();
        match answer {
            Ok(answer) => {
                NOT_RECORDED.ended(());
                self.book = Some((answer.book.clone(), Instant::now()));
                Some((answer.replaced, answer.book))
            }
            Err(LedgerError::Closed) => None,
            Err(error) => {
                if let Some(repeated) = NOT_RECORDED.occurred(()) {
                    let repeated = repeated.repeated;
                    warn!(error = %chain(&error), repeated, "cannot record alerts, and sends none; trying again");
                }
                None
            }
        }
    }

    fn show(&self, book: &AlertBook, now: Timestamp) {
        let times = self.settings.times;
        self.deps.status.send_modify(|status| status.get_or_insert_default().set_book(book, &times, now));
    }

    fn show_problem(&self) {
        let Problems { ledger, channel, late } = &self.problems;
        let problem = ledger.as_ref().or(channel.as_ref()).or(late.as_ref());
        self.deps.status.send_modify(|status| status.get_or_insert_default().problem = problem.cloned());
    }

    /// Sends a message, once no other instance does, and records that.
    async fn send(&mut self, book: AlertBook, due: Due) {
        let number = book.messages + 1;
        let claimed = AlertBook { sender: self.lease(self.now().wall), ..book };
        // Another instance has changed something: the next round sees what.
        let Some((true, _)) = self.exchange(Some(claimed)).await else { return };
        let message = message(&due, number);
        // A recipient that lacks an earlier message gets that one first: the end of an alert must not overtake its beginning.
        let lacks_earlier = |to: &String| self.late.iter().any(|late| late.left.contains(to));
        let (behind, mut left): (Vec<_>, Vec<_>) = self.deps.channel.recipients().into_iter().partition(lacks_earlier);
        self.is_sending = true;
        let outcome = self.attempt(&message, &mut left).await;
        self.is_sending = false;
        let is_sent = outcome.accepted > 0;
        self.sent_or_failed(&outcome, is_sent);
        self.record_attempt(&due, is_sent).await;
        left.extend(behind);
        if is_sent && !left.is_empty() {
            let next_attempt = Instant::now() + RETRY_BACKOFF.wait(0, fastrand::f64());
            self.late.push(LateMessage { message, left, since: Instant::now(), failures: 0, next_attempt });
            if self.late.len() > MAX_LATE {
                give_up(&self.late.remove(0));
            }
        }
    }

    /// Sends, and observes meanwhile: what lasts must not look as if it had ended.
    async fn attempt(&mut self, message: &Message, left: &mut Vec<String>) -> SendOutcome {
        let channel = Arc::clone(&self.deps.channel);
        let mut sending = pin!(channel.send(&message.id, &message.body, left));
        loop {
            let check = self.check();
            // Cancel-safe: what is not recorded now is by the next observation.
            tokio::select! {
                outcome = &mut sending => return outcome,
                _ = async { sleep(check).await; self.observe().await } => {}
            }
        }
    }

    async fn record_attempt(&mut self, due: &Due, is_sent: bool) {
        let Some((_, mut book)) = self.exchange(None).await else { return };
        let now = self.now().wall;
        for _ in 0..MAX_EXCHANGES {
            let others = book.sender.clone().filter(|(sender, _)| *sender != self.owner);
            let next = if is_sent { sent(&book, due, now) } else { book };
            match self.exchange(Some(AlertBook { sender: others, ..next })).await {
                None => return,
                Some((true, recorded)) => return self.show(&recorded, now),
                Some((false, recorded)) => book = recorded,
            }
        }
    }

    /// Counts an attempt, logs it, and decides when the next is made.
    fn sent_or_failed(&mut self, outcome: &SendOutcome, is_sent: bool) {
        let SendOutcome { accepted, refused, failure } = outcome;
        let channel = &self.settings.channel.name;
        log_refused(channel, refused);
        let refusal = refused.first().map(|(recipient, reason)| format!("{recipient}: {reason}"));
        let problem = failure.clone().or(refusal);
        self.deps.status.send_modify(|status| {
            let status = status.get_or_insert_default();
            status.sent += u64::from(is_sent);
            status.failed += u64::from(!is_sent);
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
                let (problem, repeated) = (problem.as_deref().unwrap_or_default(), repeated.repeated);
                warn!(channel, problem, repeated, "cannot send alerts to operators; trying again");
            }
        }
        self.problems.channel = problem;
        self.show_problem();
    }

    /// Tries again the recipients that lack a message which others have, of each recipient the oldest message first.
    async fn send_late(&mut self) {
        let mut lacking: Vec<String> = Vec::new();
        for mut late in std::mem::take(&mut self.late) {
            if late.since.elapsed() >= LATE_FOR {
                give_up(&late);
                continue;
            }
            let (behind, mut left): (Vec<_>, Vec<_>) = late.left.drain(..).partition(|to| lacking.contains(to));
            if Instant::now() >= late.next_attempt && !left.is_empty() {
                let outcome = self.attempt(&late.message, &mut left).await;
                log_refused(&self.settings.channel.name, &outcome.refused);
                late.failures += 1;
                late.next_attempt = Instant::now() + RETRY_BACKOFF.wait(late.failures, fastrand::f64());
            }
            left.extend(behind);
            if !left.is_empty() {
                lacking.extend_from_slice(&left);
                self.late.push(LateMessage { left, ..late });
            }
        }
        let first = self.late.first();
        self.problems.late = first.map(|late| format!("{}: not sent yet", late.left.join(", ")));
        self.show_problem();
    }
}

fn log_refused(channel: &str, refused: &[(String, String)]) {
    for (recipient, reason) in refused {
        if let Some(repeated) = REFUSED.occurred((channel, recipient)) {
            error!(channel, recipient, reason, repeated = repeated.repeated, "an alert was refused for this recipient");
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
