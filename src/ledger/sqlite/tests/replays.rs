//! What a replay in a file leaves behind when another process stops it.

use super::super::{SqliteLedger, stop_replay};
use crate::ledger::conformance::replays::{publish, selected, state};
use crate::ledger::{HalfPublished, JournalQuery, LedgerReader, LetterState, PublishAnswer, ReplayState};

#[tokio::test]
async fn a_replay_is_stopped_in_the_ledger_without_a_daemon_and_keeps_only_what_may_be_on_its_way() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    selected(&ledger).await;
    assert!(matches!(publish(&ledger, "a", 1, 1).await, PublishAnswer::Publish { .. }));
    let stop_as = |half_published| stop_replay(directory.path(), 1, "local/ada", half_published).unwrap().unwrap();
    let stop = || stop_as(HalfPublished::GiveUp).replay;
    let stopping = stop();
    assert_eq!((stopping.state, stopping.stopped_by.as_deref()), (ReplayState::Stopping, Some("local/ada")));
    assert_eq!((state(&ledger, 1).await, state(&ledger, 2).await), (LetterState::Replaying, LetterState::Open));
    let again = stop_as(HalfPublished::Keep);
    assert_eq!((again.replay.state, again.journal), (ReplayState::Stopping, None));
    assert_eq!(stop().state, ReplayState::Stopped, "the second time, what may be on its way is given up");
    assert_eq!(stop().state, ReplayState::Stopped, "it has ended");
    assert!(stop_replay(directory.path(), 2, "local/ada", HalfPublished::GiveUp).unwrap().is_none());
    let page = ledger.journal(JournalQuery { limit: 10, ..JournalQuery::default() }).await.unwrap();
    let by_ada = page.entries.iter().filter(|entry| entry.actor == "local/ada" && entry.result["state"] == "stopping");
    assert_eq!(by_ada.count(), 1);
}
