//! Notifications: their claims, the attempts to deliver them that failed, and the record of their delivery.
//!
//! It must never decide which entries share a transaction.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, Statement, params};

use super::record_error::{RecordError, recorded};
use crate::ledger::entry::{FailedDelivery, MAX_FAILED_DELIVERIES, NewNotification, NotificationDelivery, Recorded};

/// The prepared statements.
pub(super) struct Notifications<'c> {
    claim: Statement<'c>,
    release: Statement<'c>,
    end_claim: Statement<'c>,
    insert: Statement<'c>,
    insert_failed: Statement<'c>,
    delete_oldest: Statement<'c>,
}

impl<'c> Notifications<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Notifications {
            claim: connection.prepare(
                "INSERT INTO notification_claims (id, owner, claimed_until) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, claimed_until = excluded.claimed_until
                 WHERE owner = excluded.owner OR claimed_until <= ?4",
            )?,
            release: connection.prepare("DELETE FROM notification_claims WHERE id = ?1 AND owner = ?2")?,
            end_claim: connection.prepare("DELETE FROM notification_claims WHERE id = ?1")?,
            insert: connection.prepare(
                "INSERT INTO events (id, kind, name, order_id, recorded_at, provider, recipient, not_delivered)
                 VALUES (?1, 'notification', ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id, kind) DO NOTHING",
            )?,
            insert_failed: connection.prepare(
                "INSERT INTO notification_attempts (identity, number, channel, provider, recipient, failure_kind,
                                                    failure_code, failure_reason, failed_at)
                 SELECT ?1, coalesce(max(number), 0) + 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 FROM notification_attempts
                 WHERE identity = ?1",
            )?,
            delete_oldest: connection.prepare(&format!(
                "DELETE FROM notification_attempts WHERE identity = ?1 AND number <=
                    (SELECT max(number) FROM notification_attempts WHERE identity = ?1) - {MAX_FAILED_DELIVERIES}"
            ))?,
        })
    }

    /// Claims one that is not recorded.
    pub(super) fn claim(
        &mut self,
        id: &str,
        owner: &Arc<str>,
        at: Timestamp,
        until: Timestamp,
    ) -> rusqlite::Result<Recorded> {
        match self.claim.execute((id, &**owner, until.as_millisecond(), at.as_millisecond()))? {
            0 => Ok(Recorded::Held),
            _ => Ok(Recorded::New),
        }
    }

    pub(super) fn release(
        &mut self,
        id: &str,
        owner: &Arc<str>,
        failed: &[FailedDelivery],
    ) -> Result<Recorded, RecordError> {
        let released = self.release.execute((id, &**owner))?;
        self.insert_failed(id, failed)?;
        Ok(recorded(released))
    }

    /// Records a delivery and ends the claim.
    pub(super) fn insert(&mut self, new: &NewNotification) -> Result<Recorded, RecordError> {
        let NewNotification { id, order_id, channel, at, delivery } = new;
        let NotificationDelivery { provider, recipient, failed, not_delivered } = delivery;
        self.end_claim.execute([id])?;
        let row = (id, channel, order_id, at.as_millisecond(), provider, recipient, not_delivered);
        let rows = self.insert.execute(row)?;
        self.insert_failed(id, failed)?;
        Ok(recorded(rows))
    }

    /// If one fails, the whole batch does: the statements before it have done something already.
    fn insert_failed(&mut self, id: &str, failed: &[FailedDelivery]) -> Result<(), RecordError> {
        for FailedDelivery { channel, provider, recipient, kind, code, reason, at } in failed {
            let row = params![id, channel, provider, recipient, kind, code, reason, at.as_millisecond()];
            self.insert_failed.execute(row).map_err(RecordError::Batch)?;
        }
        if !failed.is_empty() {
            self.delete_oldest.execute([id]).map_err(RecordError::Batch)?;
        }
        Ok(())
    }
}
