//! Actions and the executor with a ledger in a file, and a publisher that publishes nothing.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::super::reading::KnownConsumers;
use super::*;
use crate::ledger::conformance::stored_letter;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{LetterSelection, LetterWriter, ReplayOptions, ReplayState};
use crate::message::{ExchangeNames, Publication, Publisher, TrustedUsers, Unpublished};
use crate::metrics::CollectionPause;
use crate::shutdown::Shutdown;

struct NoPublisher;

impl Publisher for NoPublisher {
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>> {
        async move { panic!("publishes {}", publications.len()) }.boxed()
    }
}

mod acting;
pub(super) mod deciding;
mod executing;

/// The parts that act on dead letters.
struct Fixture {
    consumers: watch::Sender<KnownConsumers>,
    ledger: Arc<SqliteLedger>,
    replayer: Arc<Replayer>,
    actions: LetterActions,
    pause: watch::Sender<Option<CollectionPause>>,
    shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

/// Actions with these consumers.
fn fixture(consumers: KnownConsumers) -> Fixture {
    fixture_with(consumers, Arc::new(NoPublisher), Arc::new(|_| QueueAccess::Open))
}

fn fixture_with(consumers: KnownConsumers, publisher: Arc<dyn Publisher>, access: AccessToQueue) -> Fixture {
    let consumers = watch::Sender::new(consumers);
    let directory = tempfile::tempdir().unwrap();
    let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
    let (pause, shutdown) = (watch::Sender::new(None), Shutdown::new());
    let replayer = Arc::new(Replayer::new(ReplayDeps {
        ledger: Arc::<SqliteLedger>::clone(&ledger),
        publisher,
        names: Arc::new(ExchangeNames::new("orders")),
        users: Arc::new(TrustedUsers::known("orderd")),
        max_body: 1 << 20,
        consumers: consumers.subscribe(),
        access,
        pause: pause.subscribe(),
        shutdown: shutdown.clone(),
    }));
    Fixture {
        consumers,
        ledger,
        actions: LetterActions::new(Arc::clone(&replayer)),
        replayer,
        pause,
        shutdown,
        _directory: directory,
    }
}

#[tokio::test]
async fn on_a_nearly_full_disk_dead_letters_are_not_changed_and_replays_wait_but_can_be_stopped() {
    let Fixture { ledger, replayer, actions, pause, shutdown, _directory, .. } = fixture(acting::shop());
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let selection = LetterSelection::Ids(vec![1]);
    let request =
        || ReplayRequest { selection: selection.clone(), options: ReplayOptions::default(), dry_run: false, after: 0 };
    let begun = actions.start(request(), "ada".to_owned()).await.unwrap();
    pause.send_replace(Some(CollectionPause::DiskSpace));
    let running = tokio::spawn(Arc::clone(&replayer).run());
    while replayer.waits_for(begun.replay.id).is_none() {
        tokio::task::yield_now().await;
    }
    let hold_it = LetterRequest { selection: selection.clone(), note: "later".to_owned(), dry_run: false, after: 0 };
    let held = actions.change_letters(LetterChangeKind::Hold, hold_it, "ada".to_owned()).await;
    assert!(matches!(held, Err(ActionError::DiskSpace)), "{held:?}");
    assert!(matches!(actions.start(request(), "ada".to_owned()).await, Err(ActionError::DiskSpace)));
    assert!(actions.plan(&request()).await.is_ok(), "it changes nothing");
    let stopped = actions.stop(begun.replay.id, "ada".to_owned()).await.unwrap();
    assert_eq!(stopped.replay.state, ReplayState::Stopping);
    pause.send_replace(None);
    replayer.wake();
    while actions.replay(begun.replay.id).await.unwrap().replay.state != ReplayState::Stopped {
        tokio::task::yield_now().await;
    }
    shutdown.begin();
    running.await.unwrap().unwrap();
}
