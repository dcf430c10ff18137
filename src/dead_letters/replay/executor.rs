//! Carries out replays: selects, publishes, stops, ends them. Everything that it must remember is in the ledger, so another process, or
//! this one after a crash, continues where it was.
//!
//! It never decides on an outcome: the pipeline records those.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::letter_reader::KnownConsumers;
use super::message::{Prepared, ReplayContext};
use super::step::{Step, next_step};
use crate::chain::chain;
use crate::instance;
use crate::ledger::{
    DeskAnswer, DeskChange, Ledger, LedgerError, LetterProgress, OpenError, PublishAnswer, Replay, ReplayState,
    ToPublish,
};
use crate::message::{ExchangeNames, Publication, PublishError, Publisher, TrustedUsers};
use crate::shutdown::Shutdown;
use crate::telemetry::RepeatedLog;

/// Replays that are carried out at a time.
const MAX_REPLAYS: usize = 16;
/// Letters that are selected, or given back, in one transaction.
const SELECT_BATCH: usize = 500;
/// Letters that are published at a time, and how many bytes their bodies have, beyond the first.
const PUBLISH_BATCH: u64 = 32;
const PUBLISH_BYTES: usize = 4 << 20;
/// How often a replay looks for outcomes.
const TICK: Duration = Duration::from_millis(200);
/// How often replays of other processes that have ended are looked for.
const IDLE_TICK: Duration = Duration::from_secs(5);
/// How long a replay is claimed. It is renewed in time.
const LEASE: Duration = Duration::from_secs(5);
/// How long after its publication the outcome of a letter is expected, if it is not retried.
const OUTCOME_TIME: SignedDuration = SignedDuration::from_hours(1);
/// The wait after a letter was refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Replays that cannot be carried out, by cause.
static FAILURES: RepeatedLog = RepeatedLog::new();

/// Why nothing is to be published to a queue now; `None` if it may be.
pub type Blocked = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What replays need.
pub struct ReplayDeps {
    /// Where letters and replays are.
    pub ledger: Arc<dyn Ledger>,
    /// Publishes them.
    pub publisher: Arc<dyn Publisher>,
    /// The names of the exchanges.
    pub names: Arc<ExchangeNames>,
    /// The broker users whose messages count as orderd's own.
    pub users: Arc<TrustedUsers>,
    /// The longest text that a body may have once it is decompressed, in bytes.
    pub max_body: usize,
    /// The present consumers.
    pub consumers: watch::Receiver<KnownConsumers>,
    /// Whether a queue's consumer is paused, or waits for a service.
    pub blocked: Blocked,
    /// Ends the task.
    pub shutdown: Shutdown,
}

/// Carries out replays.
pub struct Replayer {
    pub(super) deps: ReplayDeps,
    wake: Notify,
    /// Why a replay waits, by its number.
    waiting: Mutex<BTreeMap<i64, String>>,
}

/// Why a replay could not be continued.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Read(#[from] OpenError),
    #[error("the publisher is closed")]
    Closed,
}

/// How fast a replay may publish, and until when it is claimed.
struct Pace {
    claimed_until: Instant,
    allowed: f64,
    at: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Pace { claimed_until: now, allowed: f64::INFINITY, at: now }
    }

    /// How many letters may be published now.
    fn allowed(&mut self, rate: u32) -> u64 {
        let (now, rate) = (Instant::now(), f64::from(rate));
        // What was not used is kept for two ticks only.
        let most = (rate * TICK.as_secs_f64() * 2.0).max(1.0);
        self.allowed = (self.allowed + rate * (now - self.at).as_secs_f64()).min(most);
        self.at = now;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small and not negative")]
        let whole = self.allowed.max(0.0) as u64;
        whole
    }

    #[expect(clippy::cast_precision_loss, reason = "batches are small")]
    fn used(&mut self, letters: u64) {
        self.allowed -= letters as f64;
    }
}

impl Replayer {
    /// It does nothing until it runs.
    pub fn new(deps: ReplayDeps) -> Self {
        Replayer { deps, wake: Notify::new(), waiting: Mutex::default() }
    }

    /// Looks for replays at once.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Why a replay waits, if this process carries it out.
    pub(super) fn waits_for(&self, replay: i64) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&replay).cloned()
    }

    /// Carries out replays until a shutdown begins.
    ///
    /// # Errors
    /// None.
    pub async fn run(self: Arc<Self>) -> Result<(), Infallible> {
        let mut paces = BTreeMap::new();
        while !self.deps.shutdown.has_begun() {
            // What it does is in the ledger, so it may be dropped anywhere.
            let tick = tokio::select! {
                tick = self.continue_all(&mut paces) => tick,
                () = self.deps.shutdown.begun() => return Ok(()),
            };
            // Cancel-safe: all only wait.
            tokio::select! {
                () = tokio::time::sleep(tick) => {}
                () = self.wake.notified() => {}
                () = self.deps.shutdown.begun() => {}
            }
        }
        Ok(())
    }

    /// Continues all replays, and returns how long to wait.
    async fn continue_all(&self, paces: &mut BTreeMap<i64, Pace>) -> Duration {
        let began = Instant::now();
        let replays = match self.deps.ledger.replays(true, MAX_REPLAYS, Timestamp::now()).await {
            Ok(replays) => replays,
            Err(error) => {
                log_failure(&error.into());
                return IDLE_TICK;
            }
        };
        paces.retain(|id, _| replays.iter().any(|replay| replay.id == *id));
        self.lock_waiting().retain(|id, _| paces.contains_key(id));
        if replays.is_empty() {
            return IDLE_TICK;
        }
        for replay in &replays {
            let pace = paces.entry(replay.id).or_insert_with(Pace::new);
            match self.advance(replay, pace).await {
                Ok(()) => drop(FAILURES.ended("step")),
                Err(error) => log_failure(&error),
            }
        }
        // Of many letters, counting takes its time.
        TICK.max(began.elapsed())
    }

    async fn advance(&self, replay: &Replay, pace: &mut Pace) -> Result<(), StepError> {
        if !self.claim(replay.id, pace).await? {
            return Ok(());
        }
        let id = replay.id;
        match replay.state {
            ReplayState::Selecting => {
                let select = || DeskChange::Select { replay: id, limit: SELECT_BATCH, at: Timestamp::now() };
                self.repeat(select, replay.id, pace).await?;
                self.wake();
            }
            ReplayState::Running => match next_step(replay) {
                Step::Publish(room) => self.publish_some(replay, room, pace).await?,
                Step::Wait => self.set_waiting(id, None),
                Step::Stop => {
                    warn!(replay = id, "a replay stops: too many of its dead letters have failed again");
                    let reason = "too_many_failed";
                    self.change(DeskChange::Stop { replay: id, by: None, reason, at: Timestamp::now() }).await?;
                    self.wake();
                }
                Step::Finish => self.finish(id).await?,
            },
            ReplayState::Stopping => {
                let half_published = replay.count(LetterProgress::Publishing);
                if half_published > 0 {
                    self.publish(replay, half_published).await?;
                }
                let give_back = || DeskChange::GiveBack { replay: id, limit: SELECT_BATCH, at: Timestamp::now() };
                self.repeat(give_back, replay.id, pace).await?;
                self.finish(id).await?;
            }
            ReplayState::Finished | ReplayState::Stopped => {}
        }
        Ok(())
    }

    /// Whether this process may carry it out.
    async fn claim(&self, replay: i64, pace: &mut Pace) -> Result<bool, StepError> {
        let now = Instant::now();
        if pace.claimed_until > now + LEASE / 2 {
            return Ok(true);
        }
        let at = Timestamp::now();
        let owner = instance::owner();
        let claimed = self.change(DeskChange::Claim { replay, owner, at, until: at + LEASE }).await?;
        let is_claimed = claimed == DeskAnswer::Done(true);
        if is_claimed {
            pace.claimed_until = now + LEASE;
        }
        Ok(is_claimed)
    }

    /// Makes a change until nothing is left to do.
    async fn repeat(&self, change: impl Fn() -> DeskChange, replay: i64, pace: &mut Pace) -> Result<(), StepError> {
        while self.change(change()).await? == DeskAnswer::More(true) {
            self.claim(replay, pace).await?;
        }
        Ok(())
    }

    async fn finish(&self, replay: i64) -> Result<(), StepError> {
        self.change(DeskChange::Finish { replay, at: Timestamp::now() }).await?;
        self.set_waiting(replay, None);
        info!(replay, "a replay of dead letters has ended");
        Ok(())
    }

    /// Publishes as many letters as the rate allows.
    async fn publish_some(&self, replay: &Replay, room: u64, pace: &mut Pace) -> Result<(), StepError> {
        let mut left = room.min(pace.allowed(replay.options.rate));
        while left > 0 {
            let published = self.publish(replay, left.min(PUBLISH_BATCH)).await?;
            pace.used(published);
            if published == 0 {
                break;
            }
            left -= published.min(left);
        }
        Ok(())
    }

    /// Publishes the next letters, and returns how many it has dealt with.
    async fn publish(&self, replay: &Replay, limit: u64) -> Result<u64, StepError> {
        let Some(batch) = self.prepare(replay, limit).await? else { return Ok(0) };
        let Batch { prepared, skipped } = batch;
        if prepared.is_empty() {
            return Ok(skipped);
        }
        let (id, at) = (replay.id, Timestamp::now());
        let letters =
            prepared.iter().map(|letter| ToPublish { letter: letter.id(), order: letter.order.clone() }).collect();
        let answers = match self.change(DeskChange::BeginPublishing { replay: id, letters, at }).await? {
            DeskAnswer::Publishing(answers) => answers,
            _ => Vec::new(),
        };
        let (mut letters, mut publications): (Vec<i64>, Vec<Publication>) = (Vec::new(), Vec::new());
        for (prepared, answer) in prepared.iter().zip(answers) {
            match answer {
                PublishAnswer::Publish { key, fingerprint } => {
                    letters.push(prepared.id());
                    let context = &self.deps;
                    let consumers = context.consumers.borrow().clone();
                    publications.push(prepared.publication(&key, &fingerprint, &context.read(&consumers), at));
                }
                PublishAnswer::Closed => {}
                PublishAnswer::NotSelected => {
                    let letter = prepared.id();
                    self.change(DeskChange::Skip { replay: id, letter, code: "closed", at }).await?;
                }
            }
        }
        self.publish_all(id, letters, publications).await?;
        Ok(skipped + prepared.len() as u64)
    }

    async fn publish_all(
        &self,
        replay: i64,
        mut letters: Vec<i64>,
        publications: Vec<Publication>,
    ) -> Result<(), StepError> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut refused = None;
        if let Err(unpublished) = self.deps.publisher.publish(publications.into()).await {
            for (index, error) in unpublished.failures.iter().rev() {
                match error {
                    PublishError::Closed => return Err(StepError::Closed),
                    PublishError::Invalid { .. } => {
                        let (letter, at) = (letters[*index], Timestamp::now());
                        self.change(DeskChange::Skip { replay, letter, code: "cannot_publish", at }).await?;
                        // Nothing is known of the others: they are published again.
                        return Ok(());
                    }
                    PublishError::Unroutable { .. } | PublishError::Nacked { .. } | PublishError::Refused { .. } => {
                        refused = Some(error.to_string());
                        letters.remove(*index);
                    }
                }
            }
        }
        let at = Timestamp::now();
        let due = at.saturating_add(OUTCOME_TIME).unwrap_or(Timestamp::MAX);
        self.change(DeskChange::Published { replay, letters, at, due }).await?;
        let is_refused = refused.is_some();
        self.set_waiting(replay, refused);
        if is_refused {
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
        Ok(())
    }

    /// Reads the next letters. `None` if the queue of the next one is blocked.
    async fn prepare(&self, replay: &Replay, limit: u64) -> Result<Option<Batch>, StepError> {
        const NEXT: &[LetterProgress] = &[LetterProgress::Publishing, LetterProgress::Selected];
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let next = self.deps.ledger.replay_letters(replay.id, NEXT, limit).await?;
        let (mut batch, mut bytes) = (Batch { prepared: Vec::new(), skipped: 0 }, 0);
        for letter in next {
            let prepared = match self.deps.ledger.dead_letter(letter.id).await? {
                None => Err("missing"),
                Some(detail) => {
                    let consumers = self.deps.consumers.borrow().clone();
                    let context = self.deps.read(&consumers);
                    Prepared::new(detail, replay.options.to.as_deref(), &context, Timestamp::now())
                }
            };
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(code) => {
                    let (letter, at) = (letter.id, Timestamp::now());
                    self.change(DeskChange::Skip { replay: replay.id, letter, code, at }).await?;
                    batch.skipped += 1;
                    continue;
                }
            };
            if let Some(reason) = (self.deps.blocked)(&prepared.queue) {
                self.set_waiting(replay.id, Some(reason));
                return Ok((!batch.prepared.is_empty()).then_some(batch));
            }
            bytes += prepared.bytes();
            batch.prepared.push(prepared);
            if bytes >= PUBLISH_BYTES {
                break;
            }
        }
        Ok(Some(batch))
    }

    async fn change(&self, change: DeskChange) -> Result<DeskAnswer, StepError> {
        Ok(self.deps.ledger.change_desk(change).await?)
    }

    fn set_waiting(&self, replay: i64, reason: Option<String>) {
        match reason {
            Some(reason) => drop(self.lock_waiting().insert(replay, reason)),
            None => drop(self.lock_waiting().remove(&replay)),
        }
    }

    fn lock_waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReplayDeps {
    pub(super) fn read<'a>(&'a self, consumers: &'a KnownConsumers) -> ReplayContext<'a> {
        ReplayContext { consumers, users: &self.users, names: &self.names, max_body: self.max_body }
    }
}

/// Letters that are about to be published.
struct Batch {
    prepared: Vec<Prepared>,
    /// Those that are left out.
    skipped: u64,
}

fn log_failure(error: &StepError) {
    if let Some(due) = FAILURES.occurred("step") {
        warn!(error = %chain(error), repeated = due.repeated, "cannot continue the replays of dead letters; retrying");
    }
}
