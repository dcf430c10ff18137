//! Carries out replays: selects, publishes, stops, ends them. Everything that it must remember is in the ledger, so another process, or
//! this one after a crash, continues where it was.
//!
//! It never decides on an outcome: the pipeline records those.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::reading::KnownConsumers;
use super::decide::{Decision, again, decide};
use super::pace::{OpenQueues, Pace, QueueRates, TICK};
use super::queues::{Queues, waiting_for, waiting_to_stop};
use super::waiting::{QueueAccess, WaitCause, Waiting};
use crate::chain::chain;
use crate::instance;
use crate::ledger::{
    ClaimedReplay, Ledger, LedgerError, LetterOperation, LetterProgress, MAX_ACTIVE_REPLAYS, OpenError,
    OperationAnswer, Replay, ReplayState,
};
use crate::message::{ExchangeNames, Publisher, TrustedUsers};
use crate::metrics::CollectionPause;
use crate::shutdown::Shutdown;
use crate::telemetry::RepeatedLog;

/// Letters that are selected, or given back, in one transaction.
pub(super) const SELECT_BATCH: usize = 100;
/// How often it is looked whether there are replays, and whether another process no longer carries them out.
const IDLE_TICK: Duration = Duration::from_secs(5);
/// The wait after a change of a replay was not recorded.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);
/// How long a replay is claimed. It is renewed in time.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// Replays that cannot be carried out, by cause.
static FAILURES: RepeatedLog = RepeatedLog::new();

/// What may be published to a queue now.
pub type AccessToQueue = Arc<dyn Fn(&str) -> QueueAccess + Send + Sync>;

/// A replay that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningReplay {
    /// The replay.
    pub replay: Replay,
    /// Why it waits, if this process carries it out.
    pub waiting: Option<Waiting>,
}

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
    /// Whether a queue's consumer processes what is published to it.
    pub access: AccessToQueue,
    /// Why no dead letters are collected. If it is the disk, nothing is recorded about them either, except outcomes of replays.
    pub pause: watch::Receiver<Option<CollectionPause>>,
    /// Ends the task.
    pub shutdown: Shutdown,
}

/// Carries out replays.
pub struct Replayer {
    pub(super) deps: ReplayDeps,
    wake: Notify,
    /// Why a replay waits, by its number.
    waiting: Mutex<BTreeMap<i64, Waiting>>,
    running: watch::Sender<Vec<RunningReplay>>,
    /// Notified when somebody has changed dead letters.
    actions: watch::Sender<()>,
}

/// What the executor remembers while it runs. A restart loses nothing of it that matters.
#[derive(Default)]
pub(super) struct Memory {
    paces: BTreeMap<i64, Pace>,
    rates: QueueRates,
    open: OpenQueues,
}

impl Memory {
    /// Letters may have other queues than before.
    pub fn consumers_changed(&mut self) {
        self.paces.values_mut().for_each(|pace| pace.may_have_other_queues = true);
    }
}

/// Why a replay could not be continued.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Read(#[from] OpenError),
    #[error("the publisher is closed")]
    Closed,
}

impl Replayer {
    /// It does nothing until it runs.
    pub fn new(deps: ReplayDeps) -> Self {
        let (running, actions) = (watch::Sender::default(), watch::Sender::default());
        Replayer { deps, wake: Notify::new(), waiting: Mutex::default(), running, actions }
    }

    /// Looks for replays at once.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Notifies that somebody has changed dead letters.
    pub(super) fn acted(&self) {
        self.actions.send_replace(());
    }

    /// Changes when somebody has changed dead letters.
    pub fn actions(&self) -> watch::Receiver<()> {
        self.actions.subscribe()
    }

    /// Whether what is left of the ledger's disk is for orders.
    pub(super) fn is_short_of_disk(&self) -> bool {
        *self.deps.pause.borrow() == Some(CollectionPause::DiskSpace)
    }

    /// Why a replay waits, if this process carries it out.
    pub(super) fn waits_for(&self, replay: i64) -> Option<String> {
        self.lock_waiting().get(&replay).map(|waiting| waiting.text.clone())
    }

    /// The replays that have not ended, as they were when they were last continued.
    pub fn running(&self) -> watch::Receiver<Vec<RunningReplay>> {
        self.running.subscribe()
    }

    fn show(&self, replays: &[Replay]) {
        let waiting = self.lock_waiting().clone();
        let running: Vec<RunningReplay> = replays
            .iter()
            .map(|replay| RunningReplay { replay: replay.clone(), waiting: waiting.get(&replay.id).cloned() })
            .collect();
        self.running.send_if_modified(|shown| {
            let is_new = *shown != running;
            *shown = running;
            is_new
        });
    }

    /// Carries out replays until a shutdown begins.
    ///
    /// # Errors
    /// None.
    pub async fn run(self: Arc<Self>) -> Result<(), Infallible> {
        let mut memory = Memory::default();
        let mut consumers = self.deps.consumers.clone();
        while !self.deps.shutdown.has_begun() {
            if consumers.has_changed().unwrap_or(false) {
                consumers.mark_unchanged();
                memory.consumers_changed();
            }
            // What it does is in the ledger, so it may be dropped anywhere.
            let tick = tokio::select! {
                tick = self.continue_all(&mut memory) => tick,
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
    pub(super) async fn continue_all(&self, memory: &mut Memory) -> Duration {
        let began = Instant::now();
        if self.is_short_of_disk() {
            self.wait_for_disk().await;
            return IDLE_TICK;
        }
        for (replay, pace) in &mut memory.paces {
            let settled = self.settle(*replay, pace, began).await;
            pause_if_failed(pace, settled);
        }
        let (mut replays, claimed) = match self.claim_all(&mut memory.paces).await {
            Ok(claimed) => claimed,
            Err(error) => {
                log_failure(&error);
                return IDLE_TICK;
            }
        };
        if claimed.is_empty() {
            memory.open = OpenQueues::default();
            self.show(&replays);
            return IDLE_TICK;
        }
        let Memory { paces, rates, open } = memory;
        let mut queues = Queues::new(&mut replays, &*self.deps.access, (rates, open));
        for replay in replays.iter().filter(|replay| claimed.contains(&replay.id)) {
            let Some(pace) = paces.get_mut(&replay.id) else { continue };
            let advanced = self.advance(replay, pace, &mut queues).await;
            pause_if_failed(pace, advanced);
        }
        self.show(&replays);
        TICK.max(began.elapsed())
    }

    /// Nothing about replays is recorded now.
    async fn wait_for_disk(&self) {
        match self.deps.ledger.replays(true, MAX_ACTIVE_REPLAYS, Timestamp::now()).await {
            Ok(replays) => {
                for replay in &replays {
                    let text = "the ledger's disk is nearly full".to_owned();
                    self.set_waiting(replay.id, Some(Waiting { cause: WaitCause::DiskSpace, text }));
                }
                self.show(&replays);
            }
            Err(error) => log_failure(&error.into()),
        }
    }

    /// Those that have not ended, and the numbers of those that this process may carry out: all or none.
    async fn claim_all(&self, paces: &mut BTreeMap<i64, Pace>) -> Result<(Vec<Replay>, BTreeSet<i64>), ReplayError> {
        let active = || self.deps.ledger.replays(true, MAX_ACTIVE_REPLAYS, Timestamp::now());
        let replays = active().await?;
        paces.retain(|id, _| replays.iter().any(|replay| replay.id == *id));
        self.lock_waiting().retain(|id, _| paces.contains_key(id));
        let (mut claimed, mut any_is_new) = (BTreeSet::new(), false);
        for Replay { id, .. } in &replays {
            match self.claim(*id, paces.entry(*id).or_insert_with(Pace::new)).await? {
                Claim::Held => {}
                Claim::New => any_is_new = true,
                Claim::Refused => {
                    // Another process carries all of them out, and publishes again what was not confirmed.
                    paces.clear();
                    self.lock_waiting().clear();
                    return Ok((replays, BTreeSet::new()));
                }
            }
            claimed.insert(*id);
        }
        // Another process may have carried it out until now.
        let replays = if any_is_new { active().await? } else { replays };
        Ok((replays, claimed))
    }

    async fn advance(&self, replay: &Replay, pace: &mut Pace, queues: &mut Queues<'_>) -> Result<(), ReplayError> {
        let id = replay.id;
        if pace.may_have_other_queues && self.find_other_queues(replay, pace).await? {
            self.wake();
            return Ok(());
        }
        match replay.state {
            ReplayState::Selecting => self.select(replay, pace).await?,
            ReplayState::Running => {
                let step = decide(replay, &queues.traffic, &|queue| queues.admission(pace, queue));
                self.set_waiting(id, waiting_for(replay, &step, (pace, queues)));
                match step {
                    Decision::Publish(_) if pace.not_before > Instant::now() => {}
                    Decision::Publish(batches) => self.publish_groups(replay, batches, pace, queues).await?,
                    Decision::Wait => {}
                    Decision::Stop => {
                        if self.stop_for(id, "too_many_failed", None).await? {
                            warn!(replay = id, "a replay stops: too many of its dead letters have failed again");
                        }
                    }
                    Decision::Finish => self.finish(id).await?,
                }
            }
            ReplayState::Stopping => self.stop(replay, pace, queues).await?,
            ReplayState::Finished | ReplayState::Stopped => {}
        }
        Ok(())
    }

    /// Stops a replay that cannot be continued. Whether it did not stop before.
    pub(super) async fn stop_for(
        &self,
        replay: i64,
        reason: &'static str,
        detail: Option<String>,
    ) -> Result<bool, ReplayError> {
        let stop = LetterOperation::Stop { replay, by: None, reason, detail, at: Timestamp::now() };
        let answer = self.change(stop).await?;
        self.wake();
        Ok(answer == OperationAnswer::Done(true))
    }

    /// Gives back what was not published. What may have been is published again, so that it has an outcome.
    async fn stop(&self, replay: &Replay, pace: &mut Pace, queues: &mut Queues<'_>) -> Result<(), ReplayError> {
        let id = replay.id;
        loop {
            let give_back =
                LetterOperation::GiveBack { replay: claimed(id), limit: SELECT_BATCH, at: Timestamp::now() };
            if self.change(give_back).await? != OperationAnswer::More(true) {
                break;
            }
            if self.claim(id, pace).await? == Claim::Refused {
                return Ok(());
            }
        }
        if replay.count(LetterProgress::Publishing) == 0 {
            return self.finish(id).await;
        }
        self.set_waiting(id, waiting_to_stop(replay, (pace, queues)));
        let batches = again(replay.groups.iter(), &queues.traffic, &|queue| queues.admission(pace, queue));
        self.publish_groups(replay, batches, pace, queues).await
    }

    /// Whether this process may carry it out.
    pub(super) async fn claim(&self, replay: i64, pace: &mut Pace) -> Result<Claim, ReplayError> {
        let now = Instant::now();
        if pace.claimed_until > now + LEASE / 2 {
            return Ok(Claim::Held);
        }
        let was_held = pace.claimed_until > now;
        let (at, owner) = (Timestamp::now(), instance::owner());
        let answer = self.change(LetterOperation::Claim { replay, owner, at, until: at + LEASE }).await?;
        if answer != OperationAnswer::Done(true) {
            return Ok(Claim::Refused);
        }
        if !was_held {
            // What it remembers is out of date, if another process has carried the replay out meanwhile.
            *pace = Pace::new();
        }
        pace.claimed_until = now + LEASE;
        Ok(if was_held { Claim::Held } else { Claim::New })
    }

    async fn finish(&self, replay: i64) -> Result<(), ReplayError> {
        if self.change(LetterOperation::Finish { replay: claimed(replay), at: Timestamp::now() }).await?
            != OperationAnswer::Done(true)
        {
            return Ok(());
        }
        info!(replay, "a replay of dead letters has ended");
        Ok(())
    }

    pub(super) async fn change(&self, change: LetterOperation) -> Result<OperationAnswer, ReplayError> {
        Ok(self.deps.ledger.carry_out(change).await?)
    }

    fn set_waiting(&self, replay: i64, reason: Option<Waiting>) {
        match reason {
            Some(reason) => drop(self.lock_waiting().insert(replay, reason)),
            None => drop(self.lock_waiting().remove(&replay)),
        }
    }

    fn lock_waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A replay that could not be continued is left alone for a while.
fn pause_if_failed(pace: &mut Pace, result: Result<(), ReplayError>) {
    match result {
        Ok(()) => drop(FAILURES.ended("step")),
        Err(error) => {
            pace.not_before = Instant::now() + FAILURE_PAUSE;
            log_failure(&error);
        }
    }
}

fn log_failure(error: &ReplayError) {
    if let Some(due) = FAILURES.occurred("step") {
        warn!(error = %chain(error), repeated = due.repeated, "cannot continue the replays of dead letters; retrying");
    }
}
