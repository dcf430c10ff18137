//! The desk and the executor with a ledger in a file, and a publisher that publishes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::super::letter_reader::KnownConsumers;
use super::*;
use crate::ledger::conformance::stored_letter;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{LetterSelection, LetterWriter, ReplayOptions, ReplayState};
use crate::message::{ExchangeNames, Publication, Publisher, TrustedUsers, Unpublished};
use crate::metrics::HoldCause;
use crate::shutdown::Shutdown;

struct NoPublisher;

impl Publisher for NoPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        async move { panic!("publishes {}", publications.len()) }.boxed()
    }
}

mod acting;

/// The parts of a desk.
struct Fixture {
    ledger: Arc<SqliteLedger>,
    replayer: Arc<Replayer>,
    desk: Desk,
    hold: watch::Sender<Option<HoldCause>>,
    shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

/// A desk of these consumers.
fn fixture(consumers: KnownConsumers) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
    let (hold, shutdown) = (watch::Sender::new(None), Shutdown::new());
    let replayer = Arc::new(Replayer::new(ReplayDeps {
        ledger: Arc::<SqliteLedger>::clone(&ledger),
        publisher: Arc::new(NoPublisher),
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        consumers: watch::Sender::new(consumers).subscribe(),
        access: Arc::new(|_| QueueAccess::Open),
        hold: hold.subscribe(),
        shutdown: shutdown.clone(),
    }));
    Fixture { ledger, desk: Desk::new(Arc::clone(&replayer)), replayer, hold, shutdown, _directory: directory }
}

#[tokio::test]
async fn on_a_nearly_full_disk_dead_letters_are_not_changed_and_replays_wait_but_can_be_stopped() {
    let Fixture { ledger, replayer, desk, hold, shutdown, _directory } = fixture(BTreeMap::new());
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let selection = LetterSelection::Ids(vec![1]);
    let request =
        || ReplayRequest { selection: selection.clone(), options: ReplayOptions::default(), dry_run: false, after: 0 };
    let begun = desk.start(request(), "ada".to_owned()).await.unwrap();
    hold.send_replace(Some(HoldCause::DiskSpace));
    let running = tokio::spawn(Arc::clone(&replayer).run());
    while replayer.waits_for(begun.replay.id).is_none() {
        tokio::task::yield_now().await;
    }
    let hold_it = LetterRequest { selection: selection.clone(), note: "later".to_owned(), dry_run: false, after: 0 };
    let held = desk.change_letters(LetterAction::Hold, hold_it, "ada".to_owned()).await;
    assert!(matches!(held, Err(DeskError::DiskSpace)), "{held:?}");
    assert!(matches!(desk.start(request(), "ada".to_owned()).await, Err(DeskError::DiskSpace)));
    assert!(desk.plan(&request()).await.is_ok(), "it changes nothing");
    let stopped = desk.stop(begun.replay.id, "ada".to_owned()).await.unwrap();
    assert_eq!(stopped.replay.state, ReplayState::Stopping);
    hold.send_replace(None);
    replayer.wake();
    while desk.replay(begun.replay.id).await.unwrap().replay.state != ReplayState::Stopped {
        tokio::task::yield_now().await;
    }
    shutdown.begin();
    running.await.unwrap().unwrap();
}
