//! The tables, and the migrations that take a file of an older version to this one.
//!
//! Table and column names are a contract with programs that read the file. Never edit a migration that has been
//! released: add another.

use rusqlite::{Connection, TransactionBehavior};

use super::order_sums;

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

/// Steps, and the statuses `failed` and `cancelled`. An order that was cancelled before it arrived has a row with `quantity` 0 and no
/// content until then.
const VERSION_4: &str = "
    -- status is one of accepted | processed | failed | cancelled.
    ALTER TABLE orders ADD COLUMN email TEXT;                        -- for the notification of a cancellation
    ALTER TABLE orders ADD COLUMN phone TEXT;                        -- for the same
    ALTER TABLE orders ADD COLUMN locale TEXT;                       -- the customer's language, for the same
    ALTER TABLE orders ADD COLUMN notify TEXT;                       -- the notification channel it asks for
    ALTER TABLE orders ADD COLUMN cancelled_at INTEGER;              -- set with status cancelled
    ALTER TABLE orders ADD COLUMN was_announced INTEGER;             -- 0 | 1, set with cancelled_at: its events were or may have been published
    ALTER TABLE orders ADD COLUMN cancellation_finished_at INTEGER;  -- its steps are undone, and its events are confirmed
    ALTER TABLE orders ADD COLUMN prevented_at INTEGER;              -- when it arrived, if it was cancelled before that

    -- Orders cancelled in this time after they were processed, which reports subtract from those processed.
    ALTER TABLE order_sums ADD COLUMN cancelled INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE order_sums ADD COLUMN cancelled_quantity INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE order_sums ADD COLUMN cancelled_goods TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN cancelled_shipping TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN cancelled_fees TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN cancelled_tax TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN cancelled_discount TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN cancelled_total TEXT NOT NULL DEFAULT '0';
    -- Orders prevented in this time: cancelled before they were processed.
    ALTER TABLE order_sums ADD COLUMN prevented INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE order_sums ADD COLUMN prevented_quantity INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE order_sums ADD COLUMN prevented_goods TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN prevented_shipping TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN prevented_fees TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN prevented_tax TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN prevented_discount TEXT NOT NULL DEFAULT '0';
    ALTER TABLE order_sums ADD COLUMN prevented_total TEXT NOT NULL DEFAULT '0';

    CREATE TABLE step_runs (
        scope              TEXT NOT NULL,     -- empty for orders, else the consumer
        identity           TEXT NOT NULL,     -- the order's id, else the message's identity
        state              TEXT NOT NULL,     -- running | done | undoing | undone | undo_failed
        round              INTEGER NOT NULL,  -- 1; one more each time it begins anew with a replayed message
        fence              INTEGER NOT NULL,  -- one more with each claim
        owner              TEXT NOT NULL,     -- the process that claimed it last
        leased_until       INTEGER,           -- NULL: not claimed
        queue              TEXT NOT NULL,     -- of the message that claimed it last to call steps
        message_hash       BLOB NOT NULL,     -- SHA-256 of the message that claimed it last
        failure_kind       TEXT,              -- why it is undone
        failure_code       TEXT,
        failure_reason     TEXT,
        dead_letter_reason TEXT,              -- x-dead-letter-reason
        retries            INTEGER,           -- delayed retries before it failed
        failed_at          INTEGER,
        undo_from          INTEGER,           -- when it was decided to undo it
        started_at         INTEGER NOT NULL,
        finished_at        INTEGER,
        dead_lettered_at   INTEGER,
        replayed_at        INTEGER,           -- the last x-replayed-at with which it was claimed: each counts once
        erasure            TEXT,              -- of results and texts: NULL | requested (when it ends) | done
        PRIMARY KEY (scope, identity)
    ) STRICT;

    -- Empty, unless somebody waits for the end of a run whose results are to be erased.
    CREATE INDEX step_runs_to_erase ON step_runs (scope, identity) WHERE erasure = 'requested';

    CREATE TABLE steps (
        scope          TEXT NOT NULL,     -- as in step_runs
        identity       TEXT NOT NULL,
        step           TEXT NOT NULL,
        action         TEXT NOT NULL,     -- do | undo
        round          INTEGER NOT NULL,  -- of its run when it was first called
        is_current     INTEGER NOT NULL,  -- 0: of an earlier round | 1
        position       INTEGER NOT NULL,  -- in the sequence of the last calls, from 0
        undoable       INTEGER NOT NULL,  -- 0 | 1
        status         TEXT NOT NULL,     -- called | done | failed
        attempts       INTEGER NOT NULL,
        first_retry    INTEGER NOT NULL,  -- the message's delayed retries before the first attempt
        uncertain      INTEGER NOT NULL,  -- 1: a failed attempt may have had its effect
        result         TEXT,              -- JSON, with status done
        failure_kind   TEXT,              -- of the last failed attempt
        failure_code   TEXT,
        failure_reason TEXT,
        started_at     INTEGER NOT NULL,  -- the first attempt
        called_at      INTEGER NOT NULL,  -- the last attempt
        finished_at    INTEGER,           -- the end of the last attempt
        PRIMARY KEY (scope, identity, step, action, round)
    ) STRICT;

    -- Of a notification: the provider that accepted it, NULL for the file, and its recipient, shortened so that it names nobody.
    ALTER TABLE events ADD COLUMN provider TEXT;
    ALTER TABLE events ADD COLUMN recipient TEXT;
    ALTER TABLE events ADD COLUMN not_delivered TEXT;                -- why a notification was skipped, such as no_address

    -- Attempts to deliver a notification that have failed, at most 100 of each.
    CREATE TABLE notification_attempts (
        identity       TEXT NOT NULL,     -- the message id
        number         INTEGER NOT NULL,  -- from 1
        channel        TEXT NOT NULL,
        provider       TEXT NOT NULL,     -- the channel, or one of its fallbacks
        recipient      TEXT,              -- shortened so that it names nobody
        failure_kind   TEXT NOT NULL,
        failure_code   TEXT NOT NULL,
        failure_reason TEXT NOT NULL,
        failed_at      INTEGER NOT NULL,
        PRIMARY KEY (identity, number)
    ) STRICT;

    -- Notifications that an instance is delivering.
    CREATE TABLE notification_claims (
        id            TEXT NOT NULL PRIMARY KEY,  -- the message id
        owner         TEXT NOT NULL,              -- a process
        claimed_until INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- Operators' alerts that are open, or whose end has not been reported yet.
    CREATE TABLE alerts (
        scope       TEXT NOT NULL,     -- a virtual host, or a host and the configuration of an instance on it
        cause       TEXT NOT NULL,     -- kind and subject
        title       TEXT NOT NULL,
        detail      TEXT NOT NULL,
        instance    TEXT NOT NULL,     -- the process that opened it
        opened_at   INTEGER NOT NULL,  -- when the cause began
        observed_at INTEGER NOT NULL,  -- the last time; up to a minute ago while it lasts
        resolved_at INTEGER,
        reported_at INTEGER,           -- when a message last said that it is open
        PRIMARY KEY (scope, cause)
    ) STRICT, WITHOUT ROWID;

    -- Messages about alerts: at most one row.
    CREATE TABLE alert_messages (
        version      INTEGER NOT NULL,  -- grows with each change of both tables
        messages     INTEGER NOT NULL,  -- sent so far
        sent_at      INTEGER,           -- the last of them
        sender       TEXT,              -- the process that is sending one
        sender_until INTEGER
    ) STRICT;

    -- Messages taken out of dead_letter_queue and unrouted_queue.
    CREATE TABLE stored_dead_letters (
        id             INTEGER PRIMARY KEY AUTOINCREMENT,
        state          TEXT NOT NULL,     -- open | held | replaying | replayed | discarded
        source         TEXT NOT NULL,     -- dead_letter_queue | unrouted_queue
        origin         TEXT NOT NULL,     -- who put it there: orderd | broker | others
        reason         TEXT NOT NULL,     -- x-dead-letter-reason, the broker's reason, foreign, or unrouted
        broker_reason  TEXT,              -- the broker's, if the broker dead-lettered it
        code           TEXT NOT NULL,
        failure_kind   TEXT,
        failure_reason TEXT,
        consumer       TEXT NOT NULL,     -- as in dead_letters; empty: none
        retry_count    INTEGER NOT NULL,
        identity       TEXT,              -- as in dead_letters
        order_id       TEXT,              -- the order that it is, or is about
        customer_id    TEXT,
        product        TEXT,              -- of the first line
        products       INTEGER NOT NULL,  -- how many different ones
        total          TEXT,
        currency       TEXT,              -- set with total
        origin_queue   TEXT,
        exchange       TEXT NOT NULL,
        routing_key    TEXT NOT NULL,
        message_id     TEXT,
        user_id        TEXT,
        bytes          INTEGER NOT NULL,  -- of the body
        failed_at      INTEGER NOT NULL,  -- if that is not known: collected_at
        collected_at   INTEGER NOT NULL,
        closed_at      INTEGER,           -- set with replayed and discarded
        note           TEXT,
        fingerprint    BLOB NOT NULL,     -- SHA-256 of all that the message contains
        session        TEXT NOT NULL,     -- the subscription that received it
        maybe_duplicate_of INTEGER,       -- the stored one with this content that it may be
        erased_at      INTEGER            -- when its content was erased
    ) STRICT;
    CREATE INDEX stored_by_state ON stored_dead_letters (state);
    CREATE INDEX stored_by_reason ON stored_dead_letters (state, reason);
    CREATE INDEX stored_by_code ON stored_dead_letters (state, code);
    CREATE INDEX stored_by_consumer ON stored_dead_letters (state, consumer);
    CREATE INDEX stored_by_source ON stored_dead_letters (state, source);
    CREATE INDEX stored_by_failure ON stored_dead_letters (state, failed_at);
    CREATE INDEX stored_by_customer ON stored_dead_letters (customer_id) WHERE customer_id IS NOT NULL;
    CREATE INDEX stored_by_order ON stored_dead_letters (order_id) WHERE order_id IS NOT NULL;
    CREATE INDEX stored_by_identity ON stored_dead_letters (identity) WHERE identity IS NOT NULL;
    CREATE INDEX stored_by_fingerprint ON stored_dead_letters (fingerprint);
    CREATE INDEX stored_by_end ON stored_dead_letters (closed_at) WHERE closed_at IS NOT NULL;
    -- Groups and sums are read from this index alone.
    CREATE INDEX stored_by_cause
        ON stored_dead_letters (state, source, reason, consumer, code, currency, total, failed_at);

    CREATE TABLE stored_contents (
        letter_id  INTEGER NOT NULL,
        revision   INTEGER NOT NULL,  -- 0: as it came; the highest is valid
        properties TEXT NOT NULL,     -- JSON
        headers    TEXT NOT NULL,     -- JSON, with types
        body       BLOB NOT NULL,
        PRIMARY KEY (letter_id, revision)
    ) STRICT;

    CREATE TABLE stored_products (
        product   TEXT NOT NULL,
        letter_id INTEGER NOT NULL,
        PRIMARY KEY (product, letter_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX stored_products_by_letter ON stored_products (letter_id);

    -- What a search finds, in lower case.
    CREATE TABLE stored_texts (
        letter_id INTEGER PRIMARY KEY,
        text      TEXT NOT NULL
    ) STRICT;

    -- Messages whose body a process is reading that may have ended an earlier one. What is left here did end it.
    CREATE TABLE letter_readings (
        fingerprint BLOB NOT NULL PRIMARY KEY,
        process     TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- Who did what. Never changed, never removed, and without what `orderd erase` may have to remove.
    CREATE TABLE journal (
        seq      INTEGER PRIMARY KEY,  -- 1, 2, 3, ...
        at       INTEGER NOT NULL,
        actor    TEXT NOT NULL,
        action   TEXT NOT NULL,
        subject  TEXT NOT NULL,        -- JSON
        result   TEXT NOT NULL,        -- JSON
        previous BLOB NOT NULL,        -- the hash of the entry before; zeros in the first
        hash     BLOB NOT NULL         -- SHA-256 of all of these
    ) STRICT;
    -- The last entry, so that it is noticed if entries at the end are removed. At most one row.
    CREATE TABLE journal_head (
        seq  INTEGER NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
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
        let Some(migration) = usize::try_from(found).ok().and_then(|done| migrations.get(done)) else { return Ok(()) };
        transaction.execute_batch(migration.tables)?;
        if let Some(fill) = migration.fill {
            fill(&transaction)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", found + 1)?;
        transaction.commit()?;
    }
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
