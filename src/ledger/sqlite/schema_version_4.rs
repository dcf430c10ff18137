//! The tables of version 4 of the schema. It only has the statements; `schema` applies them.

/// Steps, and the statuses `failed` and `cancelled`. An order that was cancelled before it arrived has a row with `quantity` 0 and no
/// content until then.
pub(super) const VERSION_4: &str = "
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

    -- A message that is replayed begins anew with its retries.
    ALTER TABLE attempts RENAME TO attempts_3;
    CREATE TABLE attempts (
        identity       TEXT NOT NULL,     -- the order's id, else the message id
        consumer       TEXT NOT NULL,
        replay_key     TEXT NOT NULL,     -- x-replay-id of the replay after which it was made; empty: none
        retry_count    INTEGER NOT NULL,  -- delayed retries before this attempt, since the replay
        failure_kind   TEXT NOT NULL,
        failure_code   TEXT NOT NULL,
        failure_reason TEXT NOT NULL,
        delay          TEXT,              -- before the next attempt; NULL: the message was dead-lettered
        failed_at      INTEGER NOT NULL,
        PRIMARY KEY (identity, consumer, replay_key, retry_count)
    ) STRICT;
    INSERT INTO attempts SELECT identity, consumer, '', retry_count, failure_kind, failure_code, failure_reason, delay, failed_at
                         FROM attempts_3 ORDER BY rowid;
    DROP TABLE attempts_3;
    ALTER TABLE dead_letters ADD COLUMN replay_key TEXT NOT NULL DEFAULT '';  -- as in attempts

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

    -- Attempts to deliver a notification that have failed, at most the latest 100 of each.
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
        former_order_id TEXT,             -- the order that it was as it came, if it was edited to another one
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
        erased_at      INTEGER,           -- when its content was erased
        unread_by      TEXT               -- the version of orderd that reading the body has ended, with + if it read it again; NULL: it was read
    ) STRICT;
    CREATE INDEX stored_by_state ON stored_dead_letters (state);
    CREATE INDEX stored_by_reason ON stored_dead_letters (state, reason);
    CREATE INDEX stored_by_code ON stored_dead_letters (state, code);
    CREATE INDEX stored_by_consumer ON stored_dead_letters (state, consumer);
    CREATE INDEX stored_by_source ON stored_dead_letters (state, source);
    CREATE INDEX stored_by_failure ON stored_dead_letters (state, failed_at);
    CREATE INDEX stored_by_retries ON stored_dead_letters (state, retry_count);
    CREATE INDEX stored_by_total ON stored_dead_letters (state, currency, CAST(total AS REAL)) WHERE currency IS NOT NULL;
    CREATE INDEX stored_by_customer ON stored_dead_letters (customer_id) WHERE customer_id IS NOT NULL;
    CREATE INDEX stored_by_order ON stored_dead_letters (order_id) WHERE order_id IS NOT NULL;
    CREATE INDEX stored_by_former_order ON stored_dead_letters (former_order_id) WHERE former_order_id IS NOT NULL;
    CREATE INDEX stored_by_identity ON stored_dead_letters (identity) WHERE identity IS NOT NULL;
    CREATE INDEX stored_by_fingerprint ON stored_dead_letters (fingerprint);
    CREATE INDEX stored_by_unread ON stored_dead_letters (unread_by) WHERE unread_by IS NOT NULL;
    CREATE INDEX stored_by_end ON stored_dead_letters (closed_at) WHERE closed_at IS NOT NULL;
    -- Groups and sums are read from this index alone.
    CREATE INDEX stored_by_cause
        ON stored_dead_letters (state, source, reason, consumer, code, currency, total, failed_at, routing_key, retry_count);

    CREATE TABLE stored_contents (
        letter_id  INTEGER NOT NULL,
        revision   INTEGER NOT NULL,  -- 0: as it came; the highest is valid
        properties TEXT NOT NULL,     -- JSON
        headers    TEXT NOT NULL,     -- JSON, with types
        body       BLOB NOT NULL,
        edited_at  INTEGER,           -- NULL: as it came
        edited_by  TEXT,
        PRIMARY KEY (letter_id, revision)
    ) STRICT;

    CREATE TABLE stored_products (
        product   TEXT NOT NULL,
        letter_id INTEGER NOT NULL,
        PRIMARY KEY (product, letter_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX stored_products_by_letter ON stored_products (letter_id);

    -- The orders and customers that contents before an edit name, if they are others. Empty: not known.
    CREATE TABLE former_orders (
        letter_id   INTEGER NOT NULL,
        order_id    TEXT NOT NULL,
        customer_id TEXT NOT NULL,
        PRIMARY KEY (letter_id, order_id, customer_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX former_orders_by_order ON former_orders (order_id) WHERE order_id <> '';
    CREATE INDEX former_orders_by_customer ON former_orders (customer_id) WHERE customer_id <> '';

    -- What a search finds, in lower case.
    CREATE TABLE stored_texts (
        letter_id INTEGER PRIMARY KEY,
        text      TEXT NOT NULL
    ) STRICT;

    -- Messages whose body a process is reading that may have ended an earlier one. What is left here did end it.
    CREATE TABLE letter_readings (
        fingerprint BLOB NOT NULL PRIMARY KEY,
        process     TEXT NOT NULL,
        began_at    INTEGER NOT NULL  -- in seconds
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

    -- Replays of stored messages.
    CREATE TABLE replays (
        id           INTEGER PRIMARY KEY AUTOINCREMENT,
        state        TEXT NOT NULL,     -- selecting | running | stopping | finished | stopped
        actor        TEXT NOT NULL,     -- who has started it
        selection    TEXT,              -- JSON; removed when it has ended
        options      TEXT NOT NULL,     -- JSON
        token        BLOB NOT NULL,     -- random: no other replay has the same keys
        selected_to  INTEGER NOT NULL,  -- letters up to this number are selected
        began_at     INTEGER NOT NULL,
        ended_at     INTEGER,
        end_reason   TEXT,              -- why it was stopped: a stable code
        end_detail   TEXT,              -- the broker's text, if the broker refused what was published
        stopped_by   TEXT,              -- who has stopped it
        owner        TEXT,              -- the process that carries it out
        leased_until INTEGER
    ) STRICT;
    CREATE INDEX replays_by_state ON replays (state);

    CREATE TABLE replay_letters (
        replay_id    INTEGER NOT NULL,
        letter_id    INTEGER NOT NULL,
        key          TEXT,              -- the value of x-replay-id; NULL: it was never selected
        queue        TEXT NOT NULL DEFAULT '',  -- where it is published; empty: not known yet
        cause        TEXT NOT NULL DEFAULT '',  -- the code with which it had failed; empty: one of many
        state        TEXT NOT NULL,     -- selected | publishing | published | retrying | processed | cancelled
                                        -- | not_delivered | undone | failed_again | skipped | returned | unknown
        code         TEXT,              -- why it was skipped, or has failed
        reader       TEXT,              -- the process that is reading the letter
        tries        INTEGER NOT NULL DEFAULT 0,  -- how many processes have ended while they were reading it
        marked_at    INTEGER,           -- the time of its mark, the same in all copies
        revision     INTEGER,           -- of its content in them
        due_at       INTEGER,           -- until when an outcome is expected
        changed_at   INTEGER NOT NULL,
        ended_at     INTEGER,           -- when it had its outcome
        came_back_as INTEGER,           -- the letter that it has become
        PRIMARY KEY (replay_id, letter_id)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX replay_letters_by_key ON replay_letters (key) WHERE key IS NOT NULL;
    CREATE INDEX replay_letters_by_state ON replay_letters (replay_id, state, queue, cause, letter_id);
    CREATE INDEX replay_letters_by_end ON replay_letters (replay_id, ended_at) WHERE ended_at IS NOT NULL;
    CREATE INDEX replay_letters_by_letter ON replay_letters (letter_id);
    CREATE INDEX replay_letters_by_return ON replay_letters (came_back_as) WHERE came_back_as IS NOT NULL;

    -- How many of a replay's letters are in each state, so that they need not be counted. Removing a row of replay_letters does
    -- not change it.
    CREATE TABLE replay_counts (
        replay_id INTEGER NOT NULL,
        queue     TEXT NOT NULL,
        cause     TEXT NOT NULL,
        state     TEXT NOT NULL,
        skip_code TEXT NOT NULL,        -- why they were skipped; empty in other states
        letters   INTEGER NOT NULL,
        PRIMARY KEY (replay_id, queue, cause, state, skip_code)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER replay_letters_added AFTER INSERT ON replay_letters BEGIN
        INSERT INTO replay_counts VALUES (new.replay_id, new.queue, new.cause, new.state,
                                          iif(new.state = 'skipped', coalesce(new.code, ''), ''), 1)
        ON CONFLICT (replay_id, queue, cause, state, skip_code) DO UPDATE SET letters = letters + 1;
    END;
    CREATE TRIGGER replay_letters_moved AFTER UPDATE OF state, queue ON replay_letters
    WHEN new.state <> old.state OR new.queue <> old.queue BEGIN
        UPDATE replay_counts SET letters = letters - 1
        WHERE replay_id = old.replay_id AND queue = old.queue AND cause = old.cause AND state = old.state
              AND skip_code = iif(old.state = 'skipped', coalesce(old.code, ''), '');
        INSERT INTO replay_counts VALUES (new.replay_id, new.queue, new.cause, new.state,
                                          iif(new.state = 'skipped', coalesce(new.code, ''), ''), 1)
        ON CONFLICT (replay_id, queue, cause, state, skip_code) DO UPDATE SET letters = letters + 1;
    END;
";
