//! Opening the ledger, which other instances on the same host may use too.
//!
//! It waits for a lock that passes, and for nothing else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::chain::chain;
use crate::ledger::{OpenError, SqliteLedger, remote_file_system};
use crate::shutdown::Shutdown;

/// How long another instance may take to make a ledger of an earlier version new: many times what was measured for five
/// million orders.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two tries, each of which waits for the lock itself.
const PAUSE: Duration = Duration::from_secs(1);

/// Opens it aside: making one of an earlier version new may take minutes, and health checks are answered meanwhile.
/// `None` when a shutdown came first.
pub(super) async fn open(directory: &Path, shutdown: &Shutdown) -> Result<Option<Arc<SqliteLedger>>, OpenError> {
    let begun = Instant::now();
    loop {
        let theirs = directory.to_owned();
        let opening = tokio::task::spawn_blocking(move || SqliteLedger::open(&theirs));
        match opening.await.expect("opening a ledger neither panics nor is it cancelled") {
            Ok(ledger) => {
                tell_where(directory);
                return Ok(Some(Arc::new(ledger)));
            }
            Err(error @ OpenError::Locked { .. }) if begun.elapsed() < PATIENCE => {
                warn!(error = %chain(&error), "waiting for the ledger");
                if !shutdown.sleep(PAUSE).await {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn tell_where(directory: &Path) {
    if let Some(file_system) = remote_file_system(directory) {
        warn!(
            directory = %directory.display(),
            file_system,
            "the ledger is on a network file system, where locks may not hold and a sync may not be one: never let \
             instances on two hosts use it, and better keep it on a local disk"
        );
    }
}
