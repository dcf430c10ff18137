//! Failed attempts and dead letters, within the open transaction.
//!
//! A dead letter changes an order only if it is that order by its content: another order may have the same id.

use rusqlite::{OptionalExtension, params};

use super::{RecordError, Statements, recorded};
use crate::ledger::entry::{NewAttempt, NewDeadLetter, NewOrder, Recorded};
use crate::ledger::sqlite::cancellation;
use crate::ledger::sqlite::order_items::{Compared, compare};

impl Statements<'_> {
    /// If the same failure was to be dead-lettered before, it is not any more.
    pub(super) fn insert_retried(&mut self, attempt: &NewAttempt) -> Result<Recorded, RecordError> {
        let recorded = self.insert_attempt(attempt)?;
        if recorded == Recorded::New {
            let failed_at = attempt.failed_at.as_millisecond();
            let NewAttempt { identity, consumer, retry_count, code, .. } = attempt;
            let key = (identity, consumer, retry_count, failed_at, code, attempt.replay_key());
            self.delete_retried.execute(key).map_err(RecordError::Batch)?;
        }
        Ok(recorded)
    }

    fn insert_attempt(&mut self, attempt: &NewAttempt) -> Result<Recorded, RecordError> {
        let rows = self.insert_attempt.execute(params![
            attempt.identity,
            attempt.consumer,
            attempt.retry_count,
            attempt.kind,
            attempt.code,
            attempt.reason,
            attempt.delay,
            attempt.failed_at.as_millisecond(),
            attempt.replay_key(),
        ])?;
        Ok(recorded(rows))
    }

    /// Writes two rows and the order's status. If the second fails, the whole batch fails, so that neither exists without the other.
    pub(super) fn insert_dead_letter(&mut self, letter: &NewDeadLetter) -> Result<Recorded, RecordError> {
        let mut fails = None;
        if let Some(order) = &letter.order {
            match self.compare_stored(order)? {
                Some(Compared::Cancelled | Compared::Revoked) => return Ok(Recorded::Cancelled),
                Some(Compared::CancelledUnknown) => {
                    // Other orders with this id are compared with it from now on.
                    cancellation::prevent(self.connection, &mut self.order_sums, order).map_err(RecordError::Batch)?;
                    return Ok(Recorded::Cancelled);
                }
                Some(Compared::Accepted) => fails = Some(&order.id),
                Some(Compared::Different | Compared::Failed | Compared::Processed) | None => {}
            }
        }
        let attempt = &letter.attempt;
        self.insert_attempt(attempt)?;
        let rows = self
            .insert_dead_letter
            .execute(params![
                attempt.identity,
                attempt.consumer,
                letter.reason,
                attempt.retry_count,
                attempt.kind,
                attempt.code,
                attempt.reason,
                letter.origin_queue,
                attempt.failed_at.as_millisecond(),
                letter.at.as_millisecond(),
                attempt.replay_key(),
            ])
            .map_err(RecordError::Batch)?;
        if let Some(id) = fails {
            cancellation::fail(self.connection, id).map_err(RecordError::Batch)?;
        }
        Ok(recorded(rows))
    }

    /// How the order with this id compares with this one; `None` if there is none.
    fn compare_stored(&mut self, order: &NewOrder) -> Result<Option<Compared>, RecordError> {
        let connection = self.connection;
        let compared = self.select_order.query_row([order.id.as_str()], |row| compare(connection, row, order));
        Ok(compared.optional()?)
    }
}
