//! What is recorded about replays, read from a ledger: the same for a daemon and for a command that reads the ledger itself.
//!
//! Why a replay waits is not recorded: only the process that carries it out knows.

use jiff::Timestamp;

use super::requests::{ListedReplay, ReplayLetters, ReplayReport};
use crate::ledger::{LetterProgress, OpenError, ReplayReader};

/// Replays that are listed.
const MAX_LISTED: usize = 100;
/// Letters that are named in a report, of each kind.
pub(super) const MAX_NAMED: usize = 20;

/// How far a replay is; `None` if there is none with this number.
///
/// # Errors
/// The ledger cannot be read.
pub async fn read_replay(
    ledger: &(impl ReplayReader + ?Sized),
    id: i64,
    now: Timestamp,
) -> Result<Option<ReplayReport>, OpenError> {
    let Some(replay) = ledger.replay(id, now).await? else { return Ok(None) };
    let failed_again = ledger.replay_letters(id, LetterProgress::FailedAgain, None, 0, MAX_NAMED).await?;
    let not_replayed = ledger.replay_letters(id, LetterProgress::Skipped, None, 0, MAX_NAMED).await?;
    Ok(Some(ReplayReport { waiting: None, replay, failed_again, not_replayed }))
}

/// Letters of a replay, by number, after this one; all, or only those that are so far. `None` if there is no such replay.
///
/// # Errors
/// The ledger cannot be read.
pub async fn read_replay_letters(
    ledger: &(impl ReplayReader + ?Sized),
    id: i64,
    progress: Option<LetterProgress>,
    after: i64,
    limit: usize,
) -> Result<Option<ReplayLetters>, OpenError> {
    if ledger.replay(id, Timestamp::now()).await?.is_none() {
        return Ok(None);
    }
    let wanted = LetterProgress::ALL.iter().position(|known| Some(*known) == progress);
    let progress = wanted.map_or(LetterProgress::ALL, |index| &LetterProgress::ALL[index..=index]);
    let mut letters = Vec::new();
    for progress in progress {
        letters.extend(ledger.replay_letters(id, *progress, None, after, limit + 1).await?);
    }
    letters.sort_by_key(|letter| letter.id);
    let has_more = letters.len() > limit;
    letters.truncate(limit);
    Ok(Some(ReplayLetters { next: letters.last().filter(|_| has_more).map(|letter| letter.id), letters }))
}

/// The latest replays, the last one first.
///
/// # Errors
/// The ledger cannot be read.
pub async fn read_replays(
    ledger: &(impl ReplayReader + ?Sized),
    now: Timestamp,
) -> Result<Vec<ListedReplay>, OpenError> {
    let replays = ledger.replays(false, MAX_LISTED, now).await?;
    Ok(replays.into_iter().map(|replay| ListedReplay { waiting: None, replay }).collect())
}
