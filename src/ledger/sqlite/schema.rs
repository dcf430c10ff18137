//! The tables, and the migrations that take a file of an older version to this one.
//!
//! Table and column names are a contract with programs that read the file. Never edit a migration that has been
//! released: add another.

use std::collections::BTreeSet;

use rusqlite::{Connection, TransactionBehavior};

use super::order_sums;
use super::schema_version_4::VERSION_4;

/// Marks the file as an orderd ledger (`PRAGMA application_id`): the letters `ordr`.
pub(super) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"ordr");

/// Migrates a file to the next version.
pub(super) struct Migration {
    pub tables: &'static str,
    /// Fills new tables from old ones.
    pub fill: Option<fn(&Connection) -> rusqlite::Result<()>>,
}

/// Migration n takes a file from version n - 1 to version n. Times are milliseconds since 1970 UTC, amounts are decimal
/// text.
///
/// The busy tables keep their rows in order of arrival, and their keys in a narrow index. Ids in random order, such as
/// UUIDs, then touch far fewer pages than with `WITHOUT ROWID` (a third less CPU time, measured); ids in ascending
/// order cost the same. `sales` and `order_sums` are small and found by their keys alone.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { tables: VERSION_1, fill: None },
    Migration { tables: VERSION_2, fill: None },
    Migration { tables: VERSION_3, fill: None },
    Migration { tables: VERSION_4, fill: Some(order_sums::count_uncounted) },
];

const VERSION_1: &str = "
    CREATE TABLE orders (
        id           TEXT NOT NULL PRIMARY KEY,
        status       TEXT NOT NULL,     -- accepted | processed
        consumer     TEXT NOT NULL,
        product      TEXT NOT NULL,
        quantity     INTEGER NOT NULL,
        price        TEXT NOT NULL,     -- of one piece
        total        TEXT NOT NULL,     -- price times quantity
        currency     TEXT NOT NULL,     -- ISO 4217; XXX where the order named none
        priority     INTEGER NOT NULL,  -- 0 | 1
        customer_id  TEXT,
        placed_at    INTEGER,
        accepted_at  INTEGER NOT NULL,
        processed_at INTEGER            -- set with status processed
    ) STRICT;

    CREATE TABLE events (
        id          TEXT NOT NULL,     -- the message id
        kind        TEXT NOT NULL,     -- notification | analytics
        name        TEXT NOT NULL,     -- the channel, or what happened
        order_id    TEXT,
        recorded_at INTEGER NOT NULL,
        PRIMARY KEY (id, kind)
    ) STRICT;

    CREATE TABLE attempts (
        identity       TEXT NOT NULL,     -- the order's id, else the message id
        consumer       TEXT NOT NULL,
        retry_count    INTEGER NOT NULL,  -- delayed retries before this attempt
        failure_kind   TEXT NOT NULL,
        failure_code   TEXT NOT NULL,
        failure_reason TEXT NOT NULL,
        delay          TEXT,              -- before the next attempt; NULL: the message was dead-lettered
        failed_at      INTEGER NOT NULL,
        PRIMARY KEY (identity, consumer, retry_count)
    ) STRICT;

    CREATE TABLE dead_letters (
        identity         TEXT NOT NULL,
        consumer         TEXT NOT NULL,
        reason           TEXT NOT NULL,     -- x-dead-letter-reason
        retry_count      INTEGER NOT NULL,
        failure_kind     TEXT NOT NULL,
        failure_code     TEXT NOT NULL,
        failure_reason   TEXT NOT NULL,
        origin_queue     TEXT,
        failed_at        INTEGER NOT NULL,  -- the last attempt
        dead_lettered_at INTEGER NOT NULL,
        PRIMARY KEY (identity, consumer)
    ) STRICT;

    CREATE TABLE sales (
        granularity TEXT NOT NULL,     -- minute | hour | day, in UTC
        starts_at   INTEGER NOT NULL,
        currency    TEXT NOT NULL,
        product     TEXT NOT NULL,
        orders      INTEGER NOT NULL,
        quantity    INTEGER NOT NULL,
        revenue     TEXT NOT NULL,     -- the exact sum of the orders' totals
        PRIMARY KEY (granularity, starts_at, currency, product)
    ) STRICT, WITHOUT ROWID;
";

const VERSION_2: &str = "
    CREATE TABLE order_sums (
        granularity        TEXT NOT NULL,     -- minute | hour, in UTC
        starts_at          INTEGER NOT NULL,
        currency           TEXT NOT NULL,
        priority           INTEGER NOT NULL,  -- 0 | 1
        accepted           INTEGER NOT NULL,  -- orders accepted in this time
        accepted_quantity  INTEGER NOT NULL,
        accepted_total     TEXT NOT NULL,     -- the exact sum of their totals
        processed          INTEGER NOT NULL,  -- orders processed in this time
        processed_quantity INTEGER NOT NULL,
        processed_total    TEXT NOT NULL,
        PRIMARY KEY (granularity, starts_at, currency, priority)
    ) STRICT, WITHOUT ROWID;
";

/// Orders with several lines, and with charges besides their goods. An order with one line has no row in `order_items`, since
/// a second row would make recording most orders slower.
const VERSION_3: &str = "
    ALTER TABLE orders RENAME TO orders_2;

    CREATE TABLE orders (
        id           TEXT NOT NULL PRIMARY KEY,
        status       TEXT NOT NULL,     -- accepted | processed
        consumer     TEXT NOT NULL,
        product      TEXT,              -- NULL: the order has several lines, in order_items
        quantity     INTEGER NOT NULL,  -- pieces, of all lines
        price        TEXT,              -- of one piece; NULL as product
        goods_total  TEXT NOT NULL,     -- the sum of the lines
        shipping     TEXT,              -- NULL: the order does not say, as the next three
        fees         TEXT,              -- such as a fee for the payment; may be negative
        tax          TEXT,
        tax_included INTEGER,           -- 0 | 1: the prices include the tax; NULL as tax
        discount     TEXT,
        total        TEXT NOT NULL,     -- what the order costs
        currency     TEXT NOT NULL,     -- ISO 4217; XXX where the order named none
        priority     INTEGER NOT NULL,  -- 0 | 1
        customer_id  TEXT,
        placed_at    INTEGER,
        accepted_at  INTEGER NOT NULL,
        processed_at INTEGER            -- set with status processed
    ) STRICT;

    INSERT INTO orders SELECT id, status, consumer, product, quantity, price, total, NULL, NULL, NULL, NULL, NULL,
                              total, currency, priority, customer_id, placed_at, accepted_at, processed_at FROM orders_2 ORDER BY rowid;
    DROP TABLE orders_2;

    CREATE TABLE order_items (
        order_id TEXT NOT NULL,
        line     INTEGER NOT NULL,  -- from 1
        product  TEXT NOT NULL,
        quantity INTEGER NOT NULL,
        price    TEXT NOT NULL,     -- of one piece
        total    TEXT NOT NULL,     -- of the line
        PRIMARY KEY (order_id, line)
    ) STRICT, WITHOUT ROWID;

    ALTER TABLE order_sums RENAME COLUMN accepted_total TO accepted_goods;
    ALTER TABLE order_sums RENAME COLUMN processed_total TO processed_goods;
    ALTER TABLE order_sums ADD COLUMN accepted_shipping TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN accepted_fees TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN accepted_tax TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN accepted_discount TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN processed_shipping TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN processed_fees TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN processed_tax TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN processed_discount TEXT NOT NULL DEFAULT '0';
    -- What customers paid: goods and charges.
    ALTER TABLE order_sums ADD COLUMN accepted_total TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN processed_total TEXT NOT NULL DEFAULT '0';
    UPDATE order_sums SET accepted_total = accepted_goods, processed_total = processed_goods;
";

/// Why a file cannot be migrated.
#[derive(Debug)]
pub(super) enum MigrateError {
    /// The file is of a later version than the last migration.
    Newer { found: i32, known: i32 },
    /// The file holds another program's tables.
    Foreign,
    /// The file has content, but no tables.
    NoTables,
    /// The file lacks columns of its version.
    OtherSchema { version: i32, missing: String },
    /// SQLite refused.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for MigrateError {
    fn from(error: rusqlite::Error) -> Self {
        MigrateError::Sqlite(error)
    }
}

/// The version that `migrations` lead to.
pub(super) fn last_version(migrations: &[Migration]) -> i32 {
    i32::try_from(migrations.len()).expect("there are few schema versions")
}

/// Applies the migrations that the file lacks, each in one transaction with its new version number, so that a crash
/// leaves a complete version. `is_new` is asked about a file without tables: whether the file has no content either. Without
/// its write-ahead log, the copy of a ledger may have no tables, and must not be taken for a new one.
pub(super) fn migrate(
    connection: &mut Connection,
    migrations: &[Migration],
    is_new: impl Fn() -> bool,
) -> Result<(), MigrateError> {
    // Overwrites the rows of a table that is dropped. In free pages, `orderd erase` would not find its customers.
    let set =
        |connection: &Connection, on: i64| connection.pragma_update_and_check(None, "secure_delete", on, |_| Ok(()));
    let before = connection.pragma_query_value(None, "secure_delete", |row| row.get(0))?;
    set(connection, 1)?;
    let result = migrate_each(connection, migrations, is_new);
    set(connection, before)?;
    result
}

fn migrate_each(
    connection: &mut Connection,
    migrations: &[Migration],
    is_new: impl Fn() -> bool,
) -> Result<(), MigrateError> {
    let known = last_version(migrations);
    loop {
        // Immediate, so that when two processes start at once, the second sees what the first has done.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = version(&transaction)?;
        // Other programs number their versions too.
        if found != 0 && (found < 0 || application_id(&transaction)? != APPLICATION_ID) {
            return Err(MigrateError::Foreign);
        }
        if found > known {
            return Err(MigrateError::Newer { found, known });
        }
        if found == 0 && !has_no_tables(&transaction)? {
            return Err(MigrateError::Foreign);
        }
        if found == 0 && !is_new() {
            return Err(MigrateError::NoTables);
        }
        let Some(migration) = usize::try_from(found).ok().and_then(|done| migrations.get(done)) else {
            return check_columns(&transaction, migrations);
        };
        transaction.execute_batch(migration.tables)?;
        if let Some(fill) = migration.fill {
            fill(&transaction)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", found + 1)?;
        transaction.commit()?;
    }
}

/// Named in an error.
const MAX_MISSING: usize = 3;

/// A version that is not released yet may change, but its number does not. Without a column, each record of its kind would fail.
fn check_columns(connection: &Connection, migrations: &[Migration]) -> Result<(), MigrateError> {
    let expected = Connection::open_in_memory()?;
    for migration in migrations {
        expected.execute_batch(migration.tables)?;
    }
    let (expected, found) = (columns(&expected)?, columns(connection)?);
    let missing: Vec<&str> = expected.difference(&found).take(MAX_MISSING).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(MigrateError::OtherSchema { version: version(connection)?, missing: missing.join(", ") })
}

/// All columns, with their tables.
fn columns(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let mut select = connection.prepare(
        "SELECT tables.name || '.' || columns.name FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns
         WHERE tables.type = 'table'",
    )?;
    select.query_map([], |row| row.get(0))?.collect()
}

/// Whether the file is a ledger, of any version.
pub(super) fn is_ledger(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(application_id(connection)? == APPLICATION_ID && version(connection)? > 0)
}

fn application_id(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "application_id", |row| row.get(0))
}

/// Writes the version that the file has: a write that changes nothing, to prove that writing is possible.
pub(super) fn write_version(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "user_version", version(connection)?)
}

/// The version stored in the file; 0 for a new file.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn has_no_tables(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}
