//! Many stored dead letters, made up by SQLite itself. The benchmark uses this file too.

use rusqlite::Connection;

/// Stores this many letters with bodies of this length: of 5,000 customers, with 300 products, 50 codes, three currencies and up to 2 KB of
/// text each. Nine of ten are open; the others are in replay 7, and most of them came back.
pub fn generate(connection: &Connection, letters: i64, body_bytes: usize) {
    let sql = format!(
        "PRAGMA synchronous = off;
         BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT {letters}) SELECT n FROM n;
         INSERT INTO stored_dead_letters
             (state, source, origin, reason, code, failure_kind, failure_reason, consumer, retry_count, identity, order_id,
              customer_id, product, products, total, currency, origin_queue, exchange, routing_key, message_id, user_id,
              bytes, failed_at, collected_at, fingerprint, session)
         SELECT CASE WHEN n % 10 <> 0 THEN 'open' WHEN n % 1000 = 770 THEN 'held' WHEN n % 100 = 50 THEN 'discarded' ELSE 'replayed' END,
                iif(n % 20 = 1, 'unrouted_queue', 'dead_letter_queue'), 'orderd',
                iif(n % 3 = 0, 'retries_exhausted', 'permanent'), 'code_' || (n % 50), 'permanent',
                'the payment service has refused the card of customer ' || n, iif(n % 4 = 0, 'priority', 'order'), n % 4,
                'ord-' || n, 'ord-' || n, 'customer-' || (n % 5000), 'product ' || (n % 300), 1, (n % 1000) || '.10',
                CASE WHEN n % 5 = 0 THEN 'USD' WHEN n % 7 = 0 THEN 'GBP' ELSE 'EUR' END,
                'order_queue', 'orders.dead_letter', 'order.normal.web', 'ord-' || n, 'orderd',
                {body_bytes}, 1000 * n, 1000 * n + 7, randomblob(32), 'a' FROM n;
         INSERT INTO stored_contents SELECT n, 0, '{{}}', '{{}}', CAST(printf('%-{body_bytes}s', 'ord-' || n) AS BLOB), NULL, NULL FROM n;
         INSERT INTO stored_products SELECT 'product ' || (n % 300), n FROM n;
         INSERT INTO stored_texts
         SELECT n, 'ord-' || n || char(10) || 'customer-' || (n % 5000) || printf('%.*c', 1950, 'x') || n || '@example.com' FROM n;
         INSERT INTO replays (id, state, actor, options, token, selected_to, began_at)
         VALUES (7, 'finished', 'ada', '{{}}', x'00', {letters}, 1);
         INSERT INTO replay_letters (replay_id, letter_id, key, state, marked_at, changed_at, ended_at, came_back_as)
         SELECT 7, n, 'key ' || n, 'failed_again', 1000 * n, 1000 * n, 1000 * n, n + 1 FROM n WHERE n % 10 = 0;
         COMMIT;"
    );
    connection.execute_batch(&sql).expect("the rows are written");
}
