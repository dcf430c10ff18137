//! Replays of stored dead letters, and what else a person does with them: plain values, and the traits of a ledger that records them.
//!
//! ```text
//! a replay       selecting ─► running ─► finished
//!                    └─────────┴─► stopping ─► stopped
//! its letters    selected ─► publishing ─► published ─► processed | cancelled | failed_again
//!                    │           │             └─► retrying, and then one of these; unknown: no outcome in time
//!                    │           └─► skipped (why: `code`)
//!                    └─► returned: the replay was stopped before
//! ```
//! A stored letter is `replaying` from its selection to its outcome, so it is in one replay at most.

mod operation;

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::dead_letters::{Counted, DeadLetterFilter, LetterState, named};
use super::error::{LedgerError, OpenError};
use super::journal::JournalHead;

pub use super::dead_letters::LetterProgress;
pub use operation::{
    BeginAnswer, ChangeAnswer, ClaimedReplay, LeftOutLetter, LetterChange, LetterEdit, LetterOperation, NewReplay,
    OperationAnswer, PublishAnswer, ToPublish, ToSelect,
};

/// The most letters that a replay, or another action, may name by their numbers.
pub const MAX_SELECTED_IDS: usize = 10_000;

/// The most replays that have not ended.
pub const MAX_ACTIVE_REPLAYS: usize = 16;

/// How many causes of one replay are distinguished. Services choose the codes of their failures.
pub(in crate::ledger) const MAX_CAUSES: usize = 64;

/// Why a letter is skipped that a filter has found: it may be another letter, delivered again. It is replayed if it is named.
pub const MAYBE_DUPLICATE: &str = "maybe_duplicate";

named! {
    /// How far a replay is.
    ReplayState {
        /// Its letters are being claimed.
        Selecting = "selecting",
        /// They are being published.
        Running = "running",
        /// What was not published is being given back.
        Stopping = "stopping",
        /// Each of its letters has its outcome, or none was seen in time.
        Finished = "finished",
        /// It has ended before.
        Stopped = "stopped",
    }
}

impl ReplayState {
    /// Whether nothing more is published.
    pub fn has_ended(self) -> bool {
        match self {
            ReplayState::Selecting | ReplayState::Running | ReplayState::Stopping => false,
            ReplayState::Finished | ReplayState::Stopped => true,
        }
    }
}

/// Which letters are meant. In JSON: [`SelectionFields`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SelectionFields", into = "SelectionFields")]
pub enum LetterSelection {
    /// These, by their numbers.
    Ids(Vec<i64>),
    /// Those that a filter finds.
    Filter {
        /// The filter.
        filter: Box<DeadLetterFilter>,
        /// Only letters up to this number: what is stored later is not meant.
        up_to: i64,
    },
}

/// Which letters are meant: either `ids` or `filter`, as [`SelectionSchema`] describes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectionFields {
    /// These, by their numbers; at most 10,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<i64>>,
    /// Those that this filter finds, of all that are stored when the request arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Box<DeadLetterFilter>>,
    /// With `filter`: only letters up to this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_to: Option<i64>,
}

/// Which letters are meant: by their numbers, or by a filter.
#[derive(ToSchema)]
#[schema(as = Selection)]
#[serde(untagged)]
pub enum SelectionSchema {
    /// These.
    Ids(SelectionByIds),
    /// Those that a filter finds.
    Filter(Box<SelectionByFilter>),
}

/// These letters.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectionByIds {
    /// Their numbers.
    #[schema(min_items = 1, max_items = 10_000)]
    pub ids: Vec<i64>,
}

/// Those letters that a filter finds, of all that are stored when the request arrives.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectionByFilter {
    /// The filter.
    pub filter: DeadLetterFilter,
    /// Only letters up to this number.
    pub up_to: Option<i64>,
}

impl TryFrom<SelectionFields> for LetterSelection {
    type Error = &'static str;

    fn try_from(fields: SelectionFields) -> Result<Self, Self::Error> {
        match fields {
            SelectionFields { ids: Some(ids), filter: None, up_to: None } => Ok(LetterSelection::Ids(ids)),
            SelectionFields { ids: None, filter: Some(filter), up_to } => {
                Ok(LetterSelection::Filter { filter, up_to: up_to.unwrap_or(i64::MAX) })
            }
            SelectionFields { ids: None, filter: None, .. } => {
                Err("a selection has either `ids` or `filter`, this one has none")
            }
            SelectionFields { ids: Some(_), filter: Some(_), .. } => {
                Err("a selection has either `ids` or `filter`, this one has both")
            }
            SelectionFields { ids: Some(_), filter: None, up_to: Some(_) } => {
                Err("`up_to` is for a selection by `filter`")
            }
        }
    }
}

impl From<LetterSelection> for SelectionFields {
    fn from(selection: LetterSelection) -> Self {
        match selection {
            LetterSelection::Ids(ids) => SelectionFields { ids: Some(ids), ..SelectionFields::default() },
            LetterSelection::Filter { filter, up_to } => {
                SelectionFields { ids: None, filter: Some(filter), up_to: Some(up_to) }
            }
        }
    }
}

/// How a replay is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayOptions {
    /// The queue that the letters are published to; null: each to the one that it came from.
    pub to: Option<String>,
    /// How many are published a second at most.
    #[schema(minimum = 1, maximum = 1000)]
    pub rate: u32,
    /// The replay stops when more than so many percent of the latest outcomes are that a letter failed again; from 0 to 100.
    #[schema(minimum = 0, maximum = 100)]
    pub stop_at: u8,
    /// Whether one letter, then ten are published first, and their outcome awaited.
    pub canary: bool,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        ReplayOptions { to: None, rate: 50, stop_at: 10, canary: true }
    }
}

/// A replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Replay {
    /// Its number.
    pub id: i64,
    /// How far it is.
    pub state: ReplayState,
    /// Who has started it.
    pub by: String,
    /// How it is carried out.
    pub options: ReplayOptions,
    /// When it was started.
    #[schema(value_type = String, format = DateTime)]
    pub began_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why it was stopped: `requested`, `too_many_failed` or `refused` (by the broker).
    pub end_reason: Option<String>,
    /// What the broker said, if it refused what was published.
    pub end_detail: Option<String>,
    /// Who has stopped it.
    pub stopped_by: Option<String>,
    /// Its letters, by how far they are.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub letters: BTreeMap<LetterProgress, u64>,
    /// Those that were not published, by the reason.
    pub skipped: BTreeMap<String, u64>,
    /// Those that were published longer ago than an outcome takes.
    pub overdue: u64,
    /// Those that were published more than a minute ago, and of which nothing was seen since.
    pub slow: u64,
    /// The latest outcomes, at most 100.
    pub recent: u64,
    /// How many of those are that it failed again.
    pub recent_failed: u64,
    /// Its letters, by where they go and why they had failed.
    #[serde(skip)]
    pub groups: Vec<ReplayGroup>,
}

/// The letters of a replay that go to one queue and had failed for one cause.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplayGroup {
    /// The queue; empty: not known yet.
    pub queue: String,
    /// The code with which they had failed; empty: one of many.
    pub cause: String,
    /// How many, by how far they are.
    pub letters: BTreeMap<LetterProgress, u64>,
    /// Those that were published longer ago than an outcome takes.
    pub overdue: u64,
}

impl ReplayGroup {
    /// How many of its letters are in one of these states.
    pub fn count(&self, progress: &[LetterProgress]) -> u64 {
        progress.iter().map(|progress| self.letters.get(progress).copied().unwrap_or(0)).sum()
    }

    /// How many were published and have no outcome yet, although it is not too late for one.
    pub fn in_flight(&self) -> u64 {
        self.count(LetterProgress::IN_FLIGHT).saturating_sub(self.overdue)
    }
}

impl LetterProgress {
    /// Those that were published, or may have been, and have no outcome yet.
    pub const IN_FLIGHT: &[LetterProgress] =
        &[LetterProgress::Publishing, LetterProgress::Published, LetterProgress::Retrying];
}

impl Replay {
    /// How many of its letters are in this state.
    pub fn count(&self, progress: LetterProgress) -> u64 {
        self.letters.get(&progress).copied().unwrap_or(0)
    }

    /// All of its letters.
    pub fn total(&self) -> u64 {
        self.letters.values().sum()
    }

    /// How many were published and have no outcome yet, although it is not too late for one.
    pub fn in_flight(&self) -> u64 {
        let without = LetterProgress::IN_FLIGHT.iter().map(|progress| self.count(*progress)).sum::<u64>();
        without.saturating_sub(self.overdue)
    }
}

/// What becomes of letters that may be on their way, if their replay is stopped in the ledger and was stopping before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfPublished {
    /// They are given up: their outcome is unknown until it is seen.
    GiveUp,
    /// A daemon publishes them to the end.
    Keep,
}

/// A replay that was stopped in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedStop {
    /// The replay.
    pub replay: Replay,
    /// The last entry in the journal about it; `None` if nothing was changed.
    pub journal: Option<JournalHead>,
}

/// A letter of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplayLetter {
    /// The letter's number.
    pub id: i64,
    /// How far it is.
    pub progress: LetterProgress,
    /// Why it was skipped, or with which code it has failed.
    pub code: Option<String>,
    /// The letter that it has become, if it was dead-lettered again.
    pub came_back_as: Option<i64>,
}

/// What is known about a letter before something is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayCandidate {
    /// Its number.
    pub id: i64,
    /// For the sum of all.
    pub counted: Counted,
    /// The last replay that has taken it.
    pub replay: Option<i64>,
    /// Whether that replay has ended, and no outcome was seen.
    pub is_abandoned: bool,
    /// Its state.
    pub state: LetterState,
    /// Whether it may be another letter, delivered again.
    pub maybe_duplicate: bool,
    /// The queue in which it first failed.
    pub origin_queue: Option<String>,
    /// The consumer that failed; empty if there is none.
    pub consumer: String,
    /// The status of the order with its identity, unless it is known to be another order.
    pub order_status: Option<String>,
}

/// Records what persons do with stored letters.
pub trait LetterOperationWriter: Send + Sync + 'static {
    /// Carries out one change, in one transaction. Durable and during an outage like [`super::LedgerWriter::record`]. It is recorded
    /// after what the consumers record, and never takes the room of that.
    ///
    /// # Errors
    /// As for [`super::LedgerWriter::record`]. Also [`LedgerError::Unavailable`] if there is no room for the change alone: then there
    /// is no outage.
    fn carry_out(&self, change: LetterOperation) -> BoxFuture<'static, Result<OperationAnswer, LedgerError>>;
}

/// Reads replays.
pub trait ReplayReader: Send + Sync + 'static {
    /// A replay; `None` if there is none with this number. `now` is what is overdue or not.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn replay(&self, id: i64, now: Timestamp) -> BoxFuture<'static, Result<Option<Replay>, OpenError>>;

    /// The latest replays, the last one first. `active`: only those that have not ended, the first one first.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn replays(&self, active: bool, limit: usize, now: Timestamp)
    -> BoxFuture<'static, Result<Vec<Replay>, OpenError>>;

    /// Letters of a replay in this state, by number, after this one. `group`: only those with this queue and this cause.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn replay_letters(
        &self,
        replay: i64,
        progress: LetterProgress,
        group: Option<(String, String)>,
        after: i64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayLetter>, OpenError>>;

    /// What a replay that is selecting means, and the number of the last letter that it has selected.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn replay_selection(&self, id: i64) -> BoxFuture<'static, Result<Option<(LetterSelection, i64)>, OpenError>>;

    /// A page of the letters of a selection, by number, after this one: of those that are named in any state, of those that a filter finds
    /// in these states, whatever the filter says.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn replay_candidates(
        &self,
        selection: LetterSelection,
        states: Vec<LetterState>,
        after: i64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayCandidate>, OpenError>>;

    /// The highest number of a stored letter; 0 if there is none.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn last_letter(&self) -> BoxFuture<'static, Result<i64, OpenError>>;
}
