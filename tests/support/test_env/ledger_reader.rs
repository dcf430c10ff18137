//! Reads the ledger while orderd writes it.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::{PATIENCE, wait_until};

/// A read-only connection to the ledger file.
pub struct LedgerReader(Connection);

impl LedgerReader {
    /// Opens the ledger in this directory.
    pub fn open(directory: &Path) -> Self {
        let connection =
            Connection::open_with_flags(directory.join("orderd.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        LedgerReader(connection)
    }

    /// The result of a query for one number.
    pub fn number(&self, query: &str) -> u64 {
        self.0.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
    }

    /// The rows of a query, with columns joined by `|`.
    pub fn rows(&self, query: &str) -> Vec<String> {
        let mut statement = self.0.prepare(query).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let text = |column| {
                Ok(match row.get_ref(column)? {
                    ValueRef::Null => "-".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Real(number) => number.to_string(),
                    ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
                })
            };
            Ok((0..columns).map(text).collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
        });
        rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    /// Number of processed orders.
    pub fn processed(&self) -> u64 {
        self.number("SELECT count(*) FROM orders WHERE status = 'processed'")
    }

    /// Waits until exactly `orders` orders are processed and both events of each are recorded.
    pub fn await_settled(&self, orders: u64) {
        wait_until(&format!("{orders} orders and their events are recorded"), || {
            self.processed() == orders
                && self.number("SELECT count(*) FROM events WHERE name IN ('email', 'processed')") == 2 * orders
        });
    }
}
