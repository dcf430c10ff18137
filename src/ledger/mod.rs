//! The ledger: the durable record of effects, behind traits.
//!
//! Checking whether an entry is known and recording its effect (the row, the aggregates) are one transaction, and the
//! answer is given only after its commit is on disk. What an answer means for a delivery is the handlers' decision,
//! never the ledger's.
//!
//! ```text
//! traits    LedgerWriter, LetterWriter, JournalWriter, LedgerReader, LedgerMaintenance; Ledger is all of them
//! entry, error, report, trace, totals, retention    inputs and results, and pure functions on them
//! dead_letters messages from the dead letter queues: what is stored of them, and what can be asked
//! journal   who did what: entries, their chain of hashes, and its verification
//! replays   what persons do with stored messages: replays, and how far their letters are
//! step_runs the steps of a message: claims, what is recorded about each, and pure transitions
//! state     whether it can record, and why not
//! alerts    operators' alerts, as they are kept
//! sqlite    the default implementation
//! memory    an implementation for tests
//! backup    what a backup reports
//! location  opens the implementation that the configuration asks for
//! ```

mod alerts;
mod backup;
mod buckets;
#[cfg(test)]
pub(crate) mod conformance;
mod dead_letters;
mod entry;
mod erase;
mod error;
mod figures;
mod journal;
mod location;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod memory_claims;
#[cfg(test)]
mod memory_counted;
#[cfg(test)]
mod memory_journal;
#[cfg(test)]
mod memory_letters;
#[cfg(test)]
mod memory_runs;
mod replay_outcome;
mod replays;
pub mod report;
mod retention;
pub mod sqlite;
mod state;
mod step_runs;
mod totals;
pub mod trace;
mod traits;

pub use alerts::{AlertAnswer, AlertBook, AlertRecord};
pub use backup::{BackupError, BackupProgress, BackupSummary};
pub use dead_letters::{
    Counted, DeadLetter, DeadLetterContent, DeadLetterDetail, DeadLetterFilter, DeadLetterGroup, DeadLetterGroups,
    DeadLetterPage, DeadLetterQuery, EndedParsing, FoundInLetter, GroupBuilder, Identification, LetterAttempt,
    LetterDelivery, LetterOrder, LetterOrigin, LetterReplay, LetterRevision, LetterSource, LetterState, LetterStep,
    MAX_SEARCH_BYTES, NewStoredLetter, STOP_CODES, StoppedReplay, StoreAnswer, UnresolvedDeadLetters, UnresolvedSum,
    WholeDeadLetters, session_id,
};
pub use entry::{
    CancelAnswer, CancelledOrder, FailedDelivery, LedgerEntry, NewAnalytics, NewAttempt, NewCancellation,
    NewDeadLetter, NewNotification, NewOrder, NotificationDelivery, OtherOrder, Recorded,
};
pub use erase::{ERASED, ErasedRows, ErasureOptions, ErasureSubject, ErasureTargets, UnfinishedSteps};
pub use error::{Cause, LedgerError, OpenError};
pub use figures::{ChargeSums, Figures, OrderFigures, OrdersByStatus};
pub use journal::{
    InvalidHash, JournalAction, JournalEntry, JournalFilter, JournalHash, JournalHead, JournalPage, JournalProblem,
    JournalProblemKind, JournalQuery, JournalVerification, LOCAL_ACTOR, NewJournalEntry, content_hash,
};
pub use location::LedgerLocation;
pub use replay_outcome::ReplayOutcome;
pub use replays::{
    BeginAnswer, ChangeAnswer, ClaimedReplay, HalfPublished, LeftOutLetter, LetterChange, LetterEdit, LetterOperation,
    LetterOperationWriter, LetterProgress, LetterSelection, MAX_ACTIVE_REPLAYS, MAX_SELECTED_IDS, MAYBE_DUPLICATE,
    NewReplay, OperationAnswer, PublishAnswer, RecordedStop, Replay, ReplayCandidate, ReplayGroup, ReplayLetter,
    ReplayOptions, ReplayReader, ReplayState, SelectionByFilter, SelectionByIds, SelectionFields, SelectionSchema,
    ToPublish, ToSelect,
};
pub use retention::Pruned;
pub use state::{LedgerState, Outage, OutageCause};
pub use step_runs::{
    CallOutcome, ClaimAnswer, ClaimPurpose, EndedCall, MessageHash, RecordedStep, RunClaim, RunFailure, RunKey,
    RunMessage, RunRecord, RunRecorded, RunState, StepAction, StepCallEntry, StepRun, StepStatus,
};
pub use totals::{OrderCounts, Revenue, Totals};
pub use traits::{JournalWriter, Ledger, LedgerMaintenance, LedgerReader, LedgerWriter, LetterWriter};
