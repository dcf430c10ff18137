//! Adds the store of dead letters up for the status: regularly, and soon after somebody has done something with dead letters or a replay
//! has got further. Reading it takes time, so it is never done more often than it can be afforded.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::chain::chain;
use crate::dead_letters::RunningReplay;
use crate::ledger::{LedgerReader, UnresolvedDeadLetters};
use crate::shutdown::Shutdown;

/// How often the store is added up if nothing is done.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long the sums may be behind after something was done, unless adding up takes long.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Between two sums, at least this many times as long as the last one took.
const PAUSE_FACTOR: u32 = 20;

/// What makes the sums out of date.
pub(super) struct StoreChanges {
    /// Somebody has changed dead letters.
    pub actions: watch::Receiver<()>,
    /// The replays that have not ended.
    pub replays: watch::Receiver<Vec<RunningReplay>>,
}

/// Adds the store up and passes the sums to `publish`, until a shutdown begins.
pub(super) async fn sum_up(
    reader: Arc<dyn LedgerReader>,
    publish: impl Fn(Result<UnresolvedDeadLetters, String>),
    mut changes: StoreChanges,
    shutdown: Shutdown,
) {
    loop {
        let begun = Instant::now();
        // What changes while the store is read is counted the next time.
        changes.actions.mark_unchanged();
        changes.replays.mark_unchanged();
        publish(reader.unresolved_dead_letters().await.map_err(|error| chain(&error)));
        let pause = MIN_INTERVAL.max(begun.elapsed() * PAUSE_FACTOR);
        if !shutdown.sleep(pause).await {
            return;
        }
        // Cancel-safe: all only wait.
        tokio::select! {
            () = sleep(INTERVAL.saturating_sub(pause)) => {}
            Ok(()) = changes.actions.changed() => {}
            Ok(()) = changes.replays.changed() => {}
            () = shutdown.begun() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::ledger::LetterWriter;
    use crate::ledger::conformance::stored_letter;
    use crate::ledger::memory::MemoryLedger;

    #[tokio::test(start_paused = true)]
    async fn the_store_is_added_up_soon_after_an_action_and_otherwise_every_ten_seconds() {
        let ledger = Arc::new(MemoryLedger::default());
        let (acted, replays) = (watch::Sender::new(()), watch::Sender::new(Vec::new()));
        let changes = StoreChanges { actions: acted.subscribe(), replays: replays.subscribe() };
        let (sender, mut sums) = mpsc::unbounded_channel();
        let publish = move |sums: Result<UnresolvedDeadLetters, String>| {
            let messages: u64 = sums.unwrap().sums.iter().map(|sum| sum.messages).sum();
            sender.send((messages, Instant::now())).unwrap();
        };
        let shutdown = Shutdown::new();
        let running = tokio::spawn(sum_up(Arc::clone(&ledger) as _, publish, changes, shutdown.clone()));
        let (before, first) = sums.recv().await.unwrap();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let (regular, second) = sums.recv().await.unwrap();
        assert_eq!((before, regular, second - first), (0, 1, INTERVAL));
        ledger.store_letter(stored_letter("ord-2", 2)).await.unwrap();
        acted.send_replace(());
        let (after, third) = sums.recv().await.unwrap();
        assert_eq!((after, third - second), (2, MIN_INTERVAL));
        replays.send_replace(Vec::new());
        let (_, fourth) = sums.recv().await.unwrap();
        assert_eq!(fourth - third, MIN_INTERVAL);
        shutdown.begin();
        running.await.unwrap();
    }
}
