//! Replays in memory: there are none. `conformance::replays` has the rules for ledgers that have them.

use futures_util::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;

use super::MemoryLedger;
use crate::ledger::dead_letters::LetterState;
use crate::ledger::error::{LedgerError, OpenError};
use crate::ledger::replays::{
    LetterOperation, LetterOperationWriter, LetterProgress, LetterSelection, OperationAnswer, Replay, ReplayCandidate,
    ReplayLetter, ReplayReader,
};

impl LetterOperationWriter for MemoryLedger {
    fn carry_out(&self, _change: LetterOperation) -> BoxFuture<'static, Result<OperationAnswer, LedgerError>> {
        ready(Err(LedgerError::refused("change dead letters", std::io::Error::other("it is in memory")))).boxed()
    }
}

impl ReplayReader for MemoryLedger {
    fn replay(&self, _id: i64, _now: Timestamp) -> BoxFuture<'static, Result<Option<Replay>, OpenError>> {
        ready(Ok(None)).boxed()
    }

    fn replays(
        &self,
        _active: bool,
        _limit: usize,
        _now: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<Replay>, OpenError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn replay_letters(
        &self,
        _replay: i64,
        _progress: LetterProgress,
        _group: Option<(String, String)>,
        _after: i64,
        _limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayLetter>, OpenError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn replay_selection(&self, _id: i64) -> BoxFuture<'static, Result<Option<(LetterSelection, i64)>, OpenError>> {
        ready(Ok(None)).boxed()
    }

    fn replay_candidates(
        &self,
        _selection: LetterSelection,
        _states: Vec<LetterState>,
        _after: i64,
        _limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayCandidate>, OpenError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn last_letter(&self) -> BoxFuture<'static, Result<i64, OpenError>> {
        ready(Ok(0)).boxed()
    }
}
