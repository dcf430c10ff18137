//! Opens the ledger, which other instances on the same host may share.
//!
//! It waits for what may end: a lock of another instance, a full disk. Every other error is returned at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::chain::chain;
use crate::ledger::{Ledger, LedgerLocation, LedgerState, OpenError, Outage, OutageCause};
use crate::shutdown::Shutdown;
use crate::status::StatusRegistry;

/// Waits between two attempts to open the ledger. Each attempt also waits for the lock.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(5) };

/// When opening counts as slow. Waiting for a lock takes less.
const SLOW_AFTER: Duration = Duration::from_secs(5);
const SLOW: &str =
    "opening the ledger has not finished; the disk hangs or is overloaded, or the ledger is being migrated";

/// Resolves once nothing can ever be recorded in the open ledger again, and returns why. Cancel-safe.
pub(super) async fn unusable(mut state: watch::Receiver<LedgerState>) -> OutageCause {
    let is_final = |state: &LedgerState| matches!(state, LedgerState::Unavailable(outage) if outage.cause.is_final());
    match state.wait_for(is_final).await.as_deref() {
        Ok(LedgerState::Unavailable(outage)) => outage.cause,
        Ok(LedgerState::Recording | LedgerState::Closed) | Err(_) => std::future::pending().await,
    }
}

/// Opens the ledger without blocking the runtime, because a migration may take minutes and health checks must be
/// answered meanwhile. `None` if a shutdown began first: opening is then given up, which is as safe as a crash.
pub(super) async fn open(
    location: &LedgerLocation,
    registry: &StatusRegistry,
    shutdown: &Shutdown,
) -> Result<Option<Arc<dyn Ledger>>, OpenError> {
    let mut outage: Option<Outage> = None;
    let mut attempt = 0;
    loop {
        let mut opening = pin!(location.open());
        // Cancel-safe: the ledger is closed again once it is open.
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                () = shutdown.begun() => return Ok(None),
                () = tokio::time::sleep(SLOW_AFTER), if outage.as_ref().is_none_or(|outage| outage.cause != OutageCause::Hung) => {
                    warn!(detail = SLOW, "opening the ledger takes long");
                    let since = outage.map_or_else(Timestamp::now, |outage| outage.since);
                    outage = Some(Outage { cause: OutageCause::Hung, detail: SLOW.to_owned(), since });
                    registry.set_opening_outage(outage.clone());
                }
            }
        };
        let error = match opened {
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
