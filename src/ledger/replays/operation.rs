//! What is recorded when persons act on stored letters, and the answers. Plain values.

use bytes::Bytes;
use jiff::Timestamp;

use super::{LetterSelection, ReplayOptions};
use crate::ledger::dead_letters::{LetterOrder, LetterState};
use crate::ledger::entry::NewOrder;

/// A replay to be started.
#[derive(Debug, Clone)]
pub struct NewReplay {
    /// Who starts it.
    pub by: String,
    /// Which letters.
    pub selection: LetterSelection,
    /// How.
    pub options: ReplayOptions,
    /// When.
    pub at: Timestamp,
}

/// A letter that is to be selected.
#[derive(Debug, Clone)]
pub struct ToSelect {
    /// Its number.
    pub letter: i64,
    /// The queue that it will go to; empty if that is not known.
    pub queue: String,
}

/// A letter that is about to be published.
#[derive(Debug, Clone)]
pub struct ToPublish {
    /// Its number.
    pub letter: i64,
    /// The order that it is, if it is a valid one.
    pub order: Option<Box<NewOrder>>,
}

/// A letter that a replay does not publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOutLetter {
    /// Its number.
    pub letter: i64,
    /// Why: a stable code.
    pub code: &'static str,
    /// Whether it was certainly not published, although it was about to be.
    pub is_unpublished: bool,
}

/// What a person does with letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterChange {
    /// Puts them aside.
    Hold {
        /// Why, or where it is tracked.
        note: String,
    },
    /// Opens them again: those put aside, and those whose replay has ended without an outcome.
    Release,
    /// Discards them.
    Discard {
        /// Why.
        reason: String,
    },
}

/// A new content of a letter.
#[derive(Debug, Clone)]
pub struct LetterEdit {
    /// The letter.
    pub letter: i64,
    /// The revision that was edited.
    pub base: i64,
    /// The new body.
    pub body: Bytes,
    /// The properties as JSON, if they change.
    pub properties: Option<String>,
    /// What the new body says about the order.
    pub order: LetterOrder,
    /// The order's identity, if the letter's is that of its order.
    pub identity: Option<String>,
    /// What a search finds.
    pub search: String,
    /// The order that it is now, if it is a valid one.
    pub whole_order: Option<Box<NewOrder>>,
    /// Who has edited it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A replay, and the process that has claimed it. Its claim must last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedReplay {
    /// The replay.
    pub id: i64,
    /// The process.
    pub owner: String,
}

/// One change, recorded in one transaction.
#[derive(Debug, Clone)]
pub enum LetterOperation {
    /// Starts a replay.
    Begin(Box<NewReplay>),
    /// Claims a replay for a process, so that no other carries it out meanwhile. A claim of the same process is renewed.
    Claim {
        /// The replay.
        replay: i64,
        /// The process.
        owner: String,
        /// When it asks.
        at: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// Selects letters of a replay, the next ones by number, if they are open.
    Select {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// The letters.
        letters: Vec<ToSelect>,
        /// Whether they are named: then those that are left out are recorded, too.
        is_named: bool,
        /// Whether there are no more.
        is_last: bool,
        /// When.
        at: Timestamp,
    },
    /// Letters are about to be read, or were: reading one may end the process. One that other processes were reading when they ended is read
    /// alone, since of several it is not known which one has ended them: only the first letter is about to be read, if it is such a one, or
    /// else those before the first such one.
    Reading {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// The letters.
        letters: Vec<i64>,
        /// Whether it is over.
        has_ended: bool,
        /// When.
        at: Timestamp,
    },
    /// Letters are about to be published. Those whose very order was processed or cancelled meanwhile are not: they are closed.
    BeginPublishing {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// The letters.
        letters: Vec<ToPublish>,
        /// How many are published at most. All of which the order was processed or cancelled are closed.
        limit: usize,
        /// When.
        at: Timestamp,
    },
    /// The broker has confirmed letters.
    Published {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// The letters.
        letters: Vec<i64>,
        /// When.
        at: Timestamp,
        /// Until when their outcome is expected.
        due: Timestamp,
    },
    /// Letters go to other queues than before: the consumers have changed.
    Move {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// The letters, each with its new queue.
        letters: Vec<ToSelect>,
        /// When.
        at: Timestamp,
    },
    /// Letters are not published, and opened again. Those that may have been published are `unknown`.
    Skip {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// The letters.
        letters: Vec<LeftOutLetter>,
        /// When.
        at: Timestamp,
    },
    /// Stops a replay.
    Stop {
        /// The replay.
        replay: i64,
        /// Who stops it; `None`: the replay itself.
        by: Option<String>,
        /// Why: a stable code.
        reason: &'static str,
        /// What the broker said, if it is the reason.
        detail: Option<String>,
        /// When.
        at: Timestamp,
    },
    /// Opens some letters of a replay again that were not published. `Answer`: whether there are more.
    GiveBack {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// How many at most.
        limit: usize,
        /// When.
        at: Timestamp,
    },
    /// Ends a replay: letters without an outcome are `unknown` from then on.
    Finish {
        /// The replay, and who carries it out.
        replay: ClaimedReplay,
        /// When.
        at: Timestamp,
    },
    /// Changes letters.
    Letters {
        /// Their numbers.
        ids: Vec<i64>,
        /// What is done with them.
        change: LetterChange,
        /// Only those that are still in one of these states; empty: in any.
        states: Vec<LetterState>,
        /// Who does it.
        by: String,
        /// When.
        at: Timestamp,
    },
    /// Edits a letter.
    Edit(Box<LetterEdit>),
}

impl LetterOperation {
    /// About how much memory it takes, in bytes.
    pub(in crate::ledger) fn bytes(&self) -> usize {
        let more = match self {
            LetterOperation::Begin(replay) => match &replay.selection {
                LetterSelection::Ids(ids) => size_of_val(&ids[..]),
                LetterSelection::Filter { .. } => 0,
            },
            LetterOperation::BeginPublishing { letters, .. } => {
                let order = |letter: &ToPublish| letter.order.as_ref().map_or(0, |order| order.bytes());
                let bytes = letters.iter().map(order);
                size_of_val(&letters[..]) + bytes.sum::<usize>()
            }
            LetterOperation::Published { letters, .. } | LetterOperation::Reading { letters, .. } => {
                size_of_val(&letters[..])
            }
            LetterOperation::Skip { letters, .. } => size_of_val(&letters[..]),
            LetterOperation::Select { letters, .. } | LetterOperation::Move { letters, .. } => {
                size_of_val(&letters[..]) + letters.iter().map(|letter| letter.queue.len()).sum::<usize>()
            }
            LetterOperation::Letters { ids, .. } => size_of_val(&ids[..]),
            LetterOperation::Edit(edit) => edit.body.len() + edit.search.len(),
            LetterOperation::Claim { .. }
            | LetterOperation::Stop { .. }
            | LetterOperation::GiveBack { .. }
            | LetterOperation::Finish { .. } => 0,
        };
        size_of::<LetterOperation>() + more
    }
}

/// What becomes of a letter that was about to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishAnswer {
    /// It is to be published, with this value of `x-replay-id`.
    Publish {
        /// The value.
        key: String,
        /// SHA-256 of the letter as it came.
        fingerprint: [u8; 32],
        /// The time of its mark.
        marked_at: Timestamp,
        /// Whether it was never to be published before in this replay.
        is_first: bool,
    },
    /// Its order was processed or cancelled meanwhile: it is closed.
    Closed,
    /// There is no room for it: as many are published as may be.
    NoRoom,
    /// It is no longer to be published.
    NotSelected,
    /// Another process carries the replay out, or it has ended.
    NotClaimed,
}

/// The answer to the start of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeginAnswer {
    /// The number of the replay.
    pub replay: i64,
}

/// What became of a letter that a person acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeAnswer {
    /// The change is recorded.
    Changed,
    /// It was so before.
    Unchanged,
    /// There is no letter with this number.
    Missing,
    /// Its state does not allow the change.
    Refused(LetterState),
    /// It was edited meanwhile.
    Outdated,
    /// The ledger has an order with its id, of which the new content would be another one.
    OtherOrder,
}

/// The answer to a [`LetterOperation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationAnswer {
    /// To [`LetterOperation::Begin`].
    Begun(BeginAnswer),
    /// To [`LetterOperation::Begin`]: [`super::MAX_ACTIVE_REPLAYS`] have not ended.
    TooManyReplays,
    /// Whether the change was made: the replay is claimed, was stopped, has ended.
    Done(bool),
    /// Whether there is more to do.
    More(bool),
    /// To [`LetterOperation::Reading`]: how many processes have ended while they were reading each that is about to be read, the first ones
    /// of those that were named. Empty if the claim has ended.
    Reading(Vec<u32>),
    /// To [`LetterOperation::BeginPublishing`], in the same order.
    Publishing(Vec<PublishAnswer>),
    /// To [`LetterOperation::Letters`] and [`LetterOperation::Edit`], in the same order.
    Letters(Vec<ChangeAnswer>),
}
