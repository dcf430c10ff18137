//! Carries out replays: selects, publishes, stops, ends them. Everything that it must remember is in the ledger, so another process, or
//! this one after a crash, continues where it was.
//!
//! It never decides on an outcome: the pipeline records those.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::letter_reader::KnownConsumers;
use super::message::ReplayContext;
use super::step::{Step, next_step};
use crate::chain::chain;
use crate::instance;
use crate::ledger::{
    ClaimedReplay, DeskAnswer, DeskChange, Ledger, LedgerError, LetterProgress, LetterSelection, LetterState,
    OpenError, Replay, ReplayState,
};
use crate::message::{ExchangeNames, Publisher, TrustedUsers};
use crate::metrics::HoldCause;
use crate::shutdown::Shutdown;
use crate::telemetry::RepeatedLog;

/// Replays that are carried out at a time.
const MAX_REPLAYS: usize = 16;
/// Letters that are selected, or given back, in one transaction.
const SELECT_BATCH: usize = 100;
/// Letters that are published at a time.
pub(super) const PUBLISH_BATCH: u64 = 32;
/// How often a replay looks for outcomes.
const TICK: Duration = Duration::from_millis(100);
/// How often replays of other processes that have ended are looked for.
const IDLE_TICK: Duration = Duration::from_secs(5);
/// The wait after a change of a replay was not recorded.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);
/// How long a replay is claimed. It is renewed in time.
pub(super) const LEASE: Duration = Duration::from_secs(10);

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
    /// Why no dead letters are collected. If it is the disk, nothing is recorded about them either, except outcomes of replays.
    pub hold: watch::Receiver<Option<HoldCause>>,
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
pub(super) enum StepError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Read(#[from] OpenError),
    #[error("the publisher is closed")]
    Closed,
}

/// How fast a replay may publish, and until when it is claimed.
pub(super) struct Pace {
    claimed_until: Instant,
    /// Nothing is published before.
    pub not_before: Instant,
    allowed: f64,
    at: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Pace { claimed_until: now, not_before: now, allowed: f64::INFINITY, at: now }
    }

    /// How many letters may be published now.
    pub fn allowed(&mut self, rate: u32) -> u64 {
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
    pub fn used(&mut self, letters: u64) {
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

    /// Whether what is left of the ledger's disk is for orders.
    pub(super) fn is_short_of_disk(&self) -> bool {
        *self.deps.hold.borrow() == Some(HoldCause::DiskSpace)
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
            if self.is_short_of_disk() {
                self.set_waiting(replay.id, Some("the ledger's disk is nearly full".to_owned()));
                continue;
            }
            match self.advance(replay, pace).await {
                Ok(()) => drop(FAILURES.ended("step")),
                Err(error) => {
                    pace.not_before = Instant::now() + FAILURE_PAUSE;
                    log_failure(&error);
                }
            }
        }
        // Of many letters, counting takes its time.
        TICK.max(began.elapsed())
    }

    async fn advance(&self, replay: &Replay, pace: &mut Pace) -> Result<(), StepError> {
        let id = replay.id;
        let mut fresh = None;
        match self.claim(id, pace).await? {
            Claim::Refused => return Ok(()),
            Claim::Held => {}
            // Another process may have carried it out until now.
            Claim::New => fresh = self.deps.ledger.replay(id, Timestamp::now()).await?,
        }
        let replay = fresh.as_ref().unwrap_or(replay);
        match replay.state {
            ReplayState::Selecting => self.select(id, pace).await?,
            ReplayState::Running => match next_step(&self.without_overdue(replay)) {
                Step::Again if pace.not_before > Instant::now() => {}
                Step::Again => drop(self.publish(replay, &[LetterProgress::Publishing], PUBLISH_BATCH, pace).await?),
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
            ReplayState::Stopping => self.stop(replay, pace).await?,
            ReplayState::Finished | ReplayState::Stopped => {}
        }
        Ok(())
    }

    /// While a consumer does not process anything, an outcome is not late.
    fn without_overdue(&self, replay: &Replay) -> Replay {
        let mut replay = replay.clone();
        if replay.overdue > 0 {
            let consumers = self.deps.consumers.borrow();
            let mut queues = consumers.keys().filter(|queue| replay.options.to.as_ref().is_none_or(|to| to == *queue));
            if let Some(reason) = queues.find_map(|queue| (self.deps.blocked)(queue)) {
                replay.overdue = 0;
                self.set_waiting(replay.id, Some(reason));
            }
        }
        replay
    }

    /// Claims the letters of the selection.
    async fn select(&self, id: i64, pace: &mut Pace) -> Result<(), StepError> {
        const OPEN: &[LetterState] = &[LetterState::Open];
        loop {
            let Some((selection, after)) = self.deps.ledger.replay_selection(id).await? else { return Ok(()) };
            let (ids, is_named) = match &selection {
                LetterSelection::Ids(ids) => {
                    let ids = ids.iter().copied().filter(|id| *id > after).take(SELECT_BATCH);
                    (ids.collect::<Vec<_>>(), true)
                }
                LetterSelection::Filter { .. } => {
                    let page = self.deps.ledger.replay_candidates(selection, OPEN, after, SELECT_BATCH).await?;
                    (page.iter().map(|candidate| candidate.id).collect(), false)
                }
            };
            let is_last = ids.len() < SELECT_BATCH;
            let (replay, at) = (claimed(id), Timestamp::now());
            let selected = self.change(DeskChange::Select { replay, ids, is_named, is_last, at }).await?;
            if is_last || selected != DeskAnswer::Done(true) || self.claim(id, pace).await? == Claim::Refused {
                self.wake();
                return Ok(());
            }
        }
    }

    /// Gives back what was not published. What may have been is published again, so that it has an outcome.
    async fn stop(&self, replay: &Replay, pace: &mut Pace) -> Result<(), StepError> {
        let id = replay.id;
        loop {
            let give_back = DeskChange::GiveBack { replay: claimed(id), limit: SELECT_BATCH, at: Timestamp::now() };
            if self.change(give_back).await? != DeskAnswer::More(true) {
                break;
            }
            if self.claim(id, pace).await? == Claim::Refused {
                return Ok(());
            }
        }
        if replay.count(LetterProgress::Publishing) == 0 {
            return self.finish(id).await;
        }
        if pace.not_before <= Instant::now() {
            self.publish(replay, &[LetterProgress::Publishing], PUBLISH_BATCH, pace).await?;
        }
        Ok(())
    }

    /// Whether this process may carry it out.
    pub(super) async fn claim(&self, replay: i64, pace: &mut Pace) -> Result<Claim, StepError> {
        let now = Instant::now();
        if pace.claimed_until > now + LEASE / 2 {
            return Ok(Claim::Held);
        }
        let was_held = pace.claimed_until > now;
        let (at, owner) = (Timestamp::now(), instance::owner());
        let answer = self.change(DeskChange::Claim { replay, owner, at, until: at + LEASE }).await?;
        if answer != DeskAnswer::Done(true) {
            return Ok(Claim::Refused);
        }
        pace.claimed_until = now + LEASE;
        Ok(if was_held { Claim::Held } else { Claim::New })
    }

    async fn finish(&self, replay: i64) -> Result<(), StepError> {
        if self.change(DeskChange::Finish { replay: claimed(replay), at: Timestamp::now() }).await?
            != DeskAnswer::Done(true)
        {
            return Ok(());
        }
        self.set_waiting(replay, None);
        info!(replay, "a replay of dead letters has ended");
        Ok(())
    }

    pub(super) async fn change(&self, change: DeskChange) -> Result<DeskAnswer, StepError> {
        Ok(self.deps.ledger.change_desk(change).await?)
    }

    pub(super) fn set_waiting(&self, replay: i64, reason: Option<String>) {
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

/// Whether this process may carry a replay out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Another process does.
    Refused,
    /// It has claimed it before.
    Held,
    /// It has claimed it now.
    New,
}

pub(super) fn claimed(id: i64) -> ClaimedReplay {
    ClaimedReplay { id, owner: instance::owner() }
}

fn log_failure(error: &StepError) {
    if let Some(due) = FAILURES.occurred("step") {
        warn!(error = %chain(error), repeated = due.repeated, "cannot continue the replays of dead letters; retrying");
    }
}
