//! Retention of runs: removes old ones with their steps, and erases what the steps of old dead letters have said.
//!
//! A run is kept while something may still come of it: while it is not finished, while its order has a row, and as long as its
//! message is a dead letter or a stored one is open, which may be replayed. Then what is done must not be done again, and what begins anew needs other
//! idempotency keys. Only the results of steps that could not be undone are kept with it: a person needs them.

use rusqlite::Connection;

use super::step_texts;
use crate::ledger::step_runs::RunKey;

/// Runs read in one transaction.
const BATCH_RUNS: i64 = 256;
/// Steps removed or erased in one transaction, and those of one more run. A result has at most 64 KiB.
const BATCH_STEPS: usize = 512;

/// The next runs in order of arrival, and what becomes of each.
const SELECT: &str = "
    SELECT rowid, scope, identity,
           CASE WHEN finished_at IS NULL OR coalesce(dead_lettered_at, finished_at) >= ?2 THEN 'keep'
                WHEN dead_lettered_at IS NOT NULL THEN iif(state = 'undone' AND erasure IS NOT 'done', 'erase', 'keep')
                WHEN EXISTS (SELECT 1 FROM stored_dead_letters WHERE stored_dead_letters.identity = step_runs.identity
                             AND state IN ('open', 'held', 'replaying')) THEN 'keep'
                WHEN scope = '' AND EXISTS (SELECT 1 FROM orders WHERE orders.id = step_runs.identity) THEN 'keep'
                ELSE 'remove' END,
           started_at < ?2
    FROM step_runs WHERE rowid > ?1 ORDER BY rowid LIMIT ?3";

/// What one call has done.
#[derive(Debug, Default)]
pub(super) struct PrunedRuns {
    pub removed: usize,
    pub erased: usize,
    /// The pass continues.
    pub more: bool,
}

/// A pass over the runs.
#[derive(Debug, Default)]
pub(super) struct RunPruner {
    /// The last row read in this pass; 0 before the first.
    cursor: i64,
}

impl RunPruner {
    /// Prunes the next runs, within the open transaction. The pass ends at the end of the table, or at a batch without old rows.
    pub(super) fn prune(&mut self, connection: &Connection, before: i64) -> rusqlite::Result<PrunedRuns> {
        let mut select = connection.prepare(SELECT)?;
        let rows = select.query_map((self.cursor, before, BATCH_RUNS), |row| {
            let key = RunKey { scope: row.get(1)?, identity: row.get(2)? };
            Ok((row.get::<_, i64>(0)?, key, row.get::<_, String>(3)?, row.get::<_, bool>(4)?))
        })?;
        let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        let (mut pruned, mut steps) = (PrunedRuns::default(), 0);
        for (rowid, key, action, _) in &rows {
            match action.as_str() {
                "remove" => {
                    steps += remove(connection, *rowid, key)?;
                    pruned.removed += 1;
                }
                "erase" => {
                    steps += step_texts::erase(connection, key)?;
                    step_texts::set_erasure(connection, key, Some("done"))?;
                    pruned.erased += 1;
                }
                _ => {}
            }
            if steps >= BATCH_STEPS {
                self.cursor = *rowid;
                return Ok(PrunedRuns { more: true, ..pruned });
            }
        }
        let any_old = rows.iter().any(|(.., started_before)| *started_before);
        pruned.more = any_old && rows.len() == usize::try_from(BATCH_RUNS).expect("it is positive");
        self.cursor = rows.last().filter(|_| pruned.more).map_or(0, |(rowid, ..)| *rowid);
        Ok(pruned)
    }
}

/// Removes a run and its steps, and returns how many these were.
fn remove(connection: &Connection, rowid: i64, RunKey { scope, identity }: &RunKey) -> rusqlite::Result<usize> {
    let mut steps = connection.prepare_cached("DELETE FROM steps WHERE scope = ?1 AND identity = ?2")?;
    let steps = steps.execute((scope, identity))?;
    connection.prepare_cached("DELETE FROM step_runs WHERE rowid = ?1")?.execute([rowid])?;
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::super::SqliteLedger;
    use super::super::tests::other;
    use super::*;
    use crate::ledger::LedgerMaintenance;

    #[tokio::test]
    async fn each_row_is_found_by_an_index() {
        let directory = tempfile::tempdir().unwrap();
        SqliteLedger::open(directory.path()).unwrap().close().await;
        let connection = other(&directory);
        let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {SELECT}")).unwrap();
        let plan = explain.query_map((0, 0, BATCH_RUNS), |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<String> = plan.map(Result::unwrap).collect();
        let searches = |table: &str, index: &str| plan.iter().any(|line| line.contains(table) && line.contains(index));
        assert!(searches("SEARCH step_runs", "INTEGER PRIMARY KEY (rowid>?)"), "{plan:?}");
        assert!(searches("SEARCH orders", "INDEX sqlite_autoindex_orders_1 (id=?)"), "{plan:?}");
        assert!(!plan.iter().any(|line| line.contains("SCAN") || line.contains("TEMP B-TREE")), "{plan:?}");
        // Asked whenever another process has committed.
        let sql = format!("EXPLAIN QUERY PLAN {}", step_texts::ANY_REQUESTED);
        let plan: String = connection.query_row(&sql, [], |row| row.get(3)).unwrap();
        assert!(plan.contains("step_runs_to_erase"), "{plan}");
    }
}
