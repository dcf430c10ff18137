//! Opens the ledger, which other instances on the same host may share.
//!
//! It waits for another instance's lock, and for nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::chain::chain;
use crate::ledger::{Ledger, LedgerLocation, OpenError};
use crate::shutdown::Shutdown;

/// How long to wait for another instance that migrates the ledger: many times what was measured for five million orders.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two attempts to open, each of which waits for the lock itself.
const PAUSE: Duration = Duration::from_secs(1);

/// Opens the ledger without blocking the runtime: a migration may take minutes, and health checks must be answered
/// meanwhile. `None` if a shutdown began first.
pub(super) async fn open(location: &LedgerLocation, shutdown: &Shutdown) -> Result<Option<Arc<dyn Ledger>>, OpenError> {
    let started = Instant::now();
    loop {
        match location.open().await {
            Ok(ledger) => return Ok(Some(ledger)),
            Err(error @ OpenError::Locked { .. }) if started.elapsed() < LOCK_TIMEOUT => {
                warn!(error = %chain(&error), "waiting for the ledger");
                if !shutdown.sleep(PAUSE).await {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
