//! The dead letters in the status: what collectors do, and what the store has. It only assembles readings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::dead_letters::RunningReplay;
use crate::ledger::{LetterSource, LetterState, UnresolvedDeadLetters, UnresolvedSum};
use crate::metrics::{CollectorCounters, CollectorReading};

/// The dead letters in the ledger, and those on their way there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeadLettersStatus {
    /// The collectors, by queue; empty if an earlier orderd answered.
    #[serde(default)]
    pub collectors: BTreeMap<String, CollectorStatus>,
    /// Messages in the store in the state `open`.
    #[serde(default)]
    pub open: u64,
    /// Messages in the store in the state `held`.
    #[serde(default)]
    pub held: u64,
    /// Messages in the store in the state `replaying`.
    #[serde(default)]
    pub replaying: u64,
    /// All of these by queue, reason and state.
    #[serde(default)]
    pub by_reason: Vec<UnresolvedLetters>,
    /// What the orders among them cost, by currency; amounts are decimal text.
    #[serde(default)]
    pub money: BTreeMap<String, String>,
    /// When the first of those in the state `open` failed; `None` if there are none.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub oldest: Option<Timestamp>,
    /// When the store was added up; `None` if it was not yet.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub counted_at: Option<Timestamp>,
    /// Why it could not be added up the last time.
    #[serde(default)]
    pub count_error: Option<String>,
    /// The replays that have not ended.
    #[serde(default)]
    pub replays: Vec<ActiveReplay>,
}

/// A replay that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActiveReplay {
    /// Its number.
    pub id: i64,
    /// `selecting`, `running` or `stopping`.
    pub state: String,
    /// Who has started it.
    pub by: String,
    /// Its letters, by how far they are.
    pub letters: BTreeMap<String, u64>,
    /// Why it waits, or some of its letters do: a stable name.
    pub waiting_cause: Option<String>,
    /// The same for people.
    pub waiting: Option<String>,
}

impl From<&RunningReplay> for ActiveReplay {
    fn from(RunningReplay { replay, waiting }: &RunningReplay) -> Self {
        let letters = replay.letters.iter().map(|(progress, letters)| (progress.as_str().to_owned(), *letters));
        ActiveReplay {
            id: replay.id,
            state: replay.state.as_str().to_owned(),
            by: replay.by.clone(),
            letters: letters.collect(),
            waiting_cause: waiting.as_ref().map(|waiting| waiting.cause.as_str().to_owned()),
            waiting: waiting.as_ref().map(|waiting| waiting.text.clone()),
        }
    }
}

/// The messages in the store with one reason and state that are neither replayed nor discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnresolvedLetters {
    /// The queue that they were taken from.
    pub source: String,
    /// Why they were there.
    pub reason: String,
    /// `open`, `held` or `replaying`.
    pub state: String,
    /// How many.
    pub messages: u64,
}

/// What the collector of one queue has done since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CollectorStatus {
    /// It is to collect: `dead_letters.collect`.
    pub enabled: bool,
    /// It has a subscription.
    pub subscribed: bool,
    /// Why its last attempt to subscribe failed.
    pub subscribe_error: Option<String>,
    /// Why it does not subscribe for now: `consumers`, `connection_limit` or `disk_space`.
    #[serde(default)]
    pub pause: Option<String>,
    /// Messages received; `received = stored + duplicates + released + in_flight`.
    pub received: u64,
    /// Stored.
    pub stored: u64,
    /// Stored before.
    pub duplicates: u64,
    /// Returned to the queue.
    pub released: u64,
    /// Received and neither acked nor returned, those that stay in the queue included.
    pub in_flight: u64,
    /// Messages that stay in the queue because they are larger than `broker.max_body`.
    pub too_large: u64,
    /// Messages that stay in the queue because the ledger refuses them.
    pub refused: u64,
}

/// The last sums of the store.
#[derive(Debug, Clone, Default)]
struct Counted {
    open: UnresolvedDeadLetters,
    at: Option<Timestamp>,
    error: Option<String>,
}

/// The counters of the collectors, and the last sums of the store.
#[derive(Debug, Default)]
pub(super) struct DeadLetterRegistry {
    dead_letter_queue: Arc<CollectorCounters>,
    unrouted_queue: Arc<CollectorCounters>,
    counted: Mutex<Counted>,
    /// Set once replays are carried out.
    replays: OnceLock<watch::Receiver<Vec<RunningReplay>>>,
}

impl DeadLetterRegistry {
    pub fn collector(&self, queue: LetterSource) -> &Arc<CollectorCounters> {
        match queue {
            LetterSource::DeadLetterQueue => &self.dead_letter_queue,
            LetterSource::UnroutedQueue => &self.unrouted_queue,
        }
    }

    /// The counts of all collectors.
    pub fn readings(&self) -> impl Iterator<Item = (LetterSource, CollectorReading)> {
        LetterSource::ALL.iter().map(|queue| (*queue, self.collector(*queue).read()))
    }

    /// Enters the sums; after an error, the former ones stay.
    pub fn set_open(&self, open: Result<UnresolvedDeadLetters, String>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        match open {
            Ok(open) => *counted = Counted { open, at: Some(Timestamp::now()), error: None },
            Err(error) => counted.error = Some(error),
        }
    }

    /// Only the first call has an effect.
    pub fn set_replays(&self, replays: watch::Receiver<Vec<RunningReplay>>) {
        // Once in the life of a daemon.
        let _ = self.replays.set(replays);
    }

    fn replays(&self) -> Vec<ActiveReplay> {
        self.replays.get().map_or_else(Vec::new, |replays| replays.borrow().iter().map(ActiveReplay::from).collect())
    }

    /// The last sums.
    pub fn open(&self) -> UnresolvedDeadLetters {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).open.clone()
    }

    /// Whether they could be read the last time.
    pub fn is_current(&self) -> bool {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.at.is_some() && counted.error.is_none()
    }

    pub fn status(&self) -> DeadLettersStatus {
        let Counted { open, at, error } = self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sums = &open.sums;
        let by_reason = |UnresolvedSum { source, reason, state, messages, .. }: &UnresolvedSum| UnresolvedLetters {
            source: source.as_str().to_owned(),
            reason: reason.clone(),
            state: state.as_str().to_owned(),
            messages: *messages,
        };
        let count = |state| sums.iter().filter(|sum| sum.state == state).map(|sum| sum.messages).sum();
        DeadLettersStatus {
            collectors: self.readings().map(|(queue, reading)| (queue.as_str().to_owned(), reading.into())).collect(),
            open: count(LetterState::Open),
            held: count(LetterState::Held),
            replaying: count(LetterState::Replaying),
            by_reason: sums.iter().map(by_reason).collect(),
            money: open.money().into_iter().map(|(currency, sum)| (currency, sum.to_string())).collect(),
            oldest: open.oldest(),
            counted_at: at,
            count_error: error,
            replays: self.replays(),
        }
    }
}

impl From<CollectorReading> for CollectorStatus {
    fn from(reading: CollectorReading) -> Self {
        let CollectorReading { enabled, subscribed, subscribe_error, received, stored, duplicates, pause, .. } =
            reading;
        let CollectorReading { released, in_flight, too_large, refused, .. } = reading;
        CollectorStatus {
            enabled,
            subscribed,
            subscribe_error,
            pause: pause.map(|cause| cause.as_str().to_owned()),
            received,
            stored,
            duplicates,
            released,
            in_flight,
            too_large,
            refused,
        }
    }
}
