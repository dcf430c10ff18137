//! Opens the ledger, which other instances on the same host may share.
//!
//! It waits for a lock of another instance. Every other error is returned at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::chain::chain;
use crate::ledger::{Ledger, LedgerLocation, OpenError};
use crate::shutdown::Shutdown;

/// How long to wait for another instance that migrates the ledger: many times the duration measured for five million
/// orders.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two attempts to open the ledger. Each attempt also waits for the lock.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Opens the ledger without blocking the runtime, because a migration may take minutes and health checks must be
/// answered meanwhile. `None` if a shutdown began first.
pub(super) async fn open(location: &LedgerLocation, shutdown: &Shutdown) -> Result<Option<Arc<dyn Ledger>>, OpenError> {
    let started = Instant::now();
    loop {
        match location.open().await {
            Ok(ledger) => return Ok(Some(ledger)),
            Err(error @ OpenError::Locked { .. }) if started.elapsed() < LOCK_TIMEOUT => {
                warn!(error = %chain(&error), "waiting for the ledger");
                if !shutdown.sleep(RETRY_PAUSE).await {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
