//! Stores one delivery in the ledger. Whether it is acked is decided by the collector.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{debug, warn};

use super::super::fingerprint::fingerprint;
use super::super::letter_parser::{BodyAccess, LetterParser};
use super::{Collector, Outcome};
use crate::chain::chain;
use crate::instance;
use crate::ledger::{LedgerError, OutageCause, StoreAnswer};
use crate::message::{Delivery, DeliveryId};
use crate::metrics::{Collected, KeptCause};

/// A larger body would keep the ledger's writer from the orders for seconds.
const MAX_STORED_BODY: usize = 64 << 20;

impl Collector {
    /// Stores a delivery.
    pub(super) async fn store(&self, delivery: Delivery, session: Arc<str>) -> (DeliveryId, Outcome) {
        let id = delivery.id;
        if delivery.message.missing_bytes > 0 || delivery.message.body.len() > MAX_STORED_BODY {
            return (id, Outcome::Kept(KeptCause::TooLarge));
        }
        let letter = {
            let _turn = self.reading.acquire().await;
            let suspicious =
                LetterParser::is_suspicious(&delivery).then(|| fingerprint(self.queue.as_str(), &delivery));
            let access = match self.body_access(suspicious).await {
                Ok(access) => access,
                Err(error) => return (id, self.not_recorded(&error)),
            };
            let (parser, queue) = (Arc::clone(&self.deps.parser), self.queue);
            let reading =
                tokio::task::spawn_blocking(move || parser.parse(queue, &delivery, &session, access, Timestamp::now()));
            // Without a result it died of a defect, which must not cost the other messages.
            let Ok(letter) = reading.await else { return (id, Outcome::Kept(KeptCause::Refused)) };
            // Storing it may take long, and a process may end meanwhile for another reason.
            if let (Some(fingerprint), BodyAccess::Parse) = (suspicious, access)
                && let Err(error) = self.deps.ledger.end_parsing(fingerprint).await
            {
                return (id, self.not_recorded(&error));
            }
            letter
        };
        let queue = self.queue.as_str();
        let outcome = match self.deps.ledger.store_letter(letter).await {
            Ok(StoreAnswer::Stored(number)) => {
                debug!(queue, number, "stored a dead letter");
                Outcome::Collected(Collected::Stored)
            }
            Ok(StoreAnswer::Duplicate(number)) => {
                debug!(queue, number, "a dead letter was stored before");
                Outcome::Collected(Collected::Duplicate)
            }
            Err(error) => self.not_recorded(&error),
        };
        (id, outcome)
    }

    /// Whether the body may be read. If the message has come back often, each process that reads it says so before and after: one
    /// that is ended by it does not, and the next one then stores it without parsing it.
    async fn body_access(&self, suspicious: Option<[u8; 32]>) -> Result<BodyAccess, LedgerError> {
        let Some(fingerprint) = suspicious else { return Ok(BodyAccess::Parse) };
        let has_ended_another = self.deps.ledger.begin_parsing(fingerprint, instance::owner()).await?;
        if has_ended_another {
            warn!(
                queue = self.queue.as_str(),
                "a dead letter is stored without parsing its body: a process ended while it parsed it"
            );
        }
        Ok(if has_ended_another { BodyAccess::Skip } else { BodyAccess::Parse })
    }

    fn not_recorded(&self, error: &LedgerError) -> Outcome {
        let queue = self.queue.as_str();
        debug!(queue, error = %chain(error), "the ledger does not record a dead letter");
        match error {
            LedgerError::Refused { .. } => Outcome::Kept(KeptCause::Refused),
            LedgerError::Unavailable { cause: OutageCause::DiskFull | OutageCause::IoError, .. } => Outcome::NoRoom,
            LedgerError::Unavailable { .. } | LedgerError::Outdated { .. } | LedgerError::Closed => {
                Outcome::NotRecorded
            }
        }
    }
}
