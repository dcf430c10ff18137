//! Opens the ledger, which other instances on the same host may share.
//!
//! It waits for what may end: a lock of another instance, a full disk. Every other error is returned at once.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::chain::chain;
use crate::ledger::{Ledger, LedgerLocation, OpenError, Outage};
use crate::shutdown::Shutdown;
use crate::status::StatusRegistry;

/// Waits between two attempts to open the ledger. Each attempt also waits for the lock.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(5) };

/// Opens the ledger without blocking the runtime, because a migration may take minutes and health checks must be
/// answered meanwhile. `None` if a shutdown began first.
pub(super) async fn open(
    location: &LedgerLocation,
    registry: &StatusRegistry,
    shutdown: &Shutdown,
) -> Result<Option<Arc<dyn Ledger>>, OpenError> {
    let mut outage: Option<Outage> = None;
    let mut attempt = 0;
    loop {
        let error = match location.open().await {
            Ok(ledger) => {
                if outage.is_some() {
                    info!("opened the ledger");
                }
                return Ok(Some(ledger));
            }
            Err(error) => error,
        };
        let Some(cause) = error.temporary_cause() else { return Err(error) };
        let detail = chain(&error);
        if outage.as_ref().is_none_or(|outage| outage.cause != cause) {
            warn!(error = detail, cause = cause.as_str(), "cannot open the ledger; retrying");
        }
        let since = outage.map_or_else(Timestamp::now, |outage| outage.since);
        outage = Some(Outage { cause, detail, since });
        registry.set_opening_outage(outage.clone());
        if !shutdown.sleep(RETRY_BACKOFF.wait(attempt, fastrand::f64())).await {
            return Ok(None);
        }
        attempt += 1;
    }
}
