//! Duration of reports, traces and retention on a large, generated ledger.
//!
//! `cargo bench --bench report -- [orders] [days] [products] [directory]`: by default five million orders in a year and
//! a thousand products, in two currencies. SQL statements fill the tables of a new ledger, including the sums of sales;
//! orderd's own migration then fills the sums of orders.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orderd::ledger::report::{GroupBy, PointInTime, ReportQuery};
use orderd::ledger::sqlite::{FILE_NAME, SqliteLedger, SqliteReader};
use orderd::ledger::{LedgerMaintenance, LedgerReader};
use rusqlite::Connection;

/// The daemon's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs of each query, of which the median is printed.
const ROUNDS: usize = 9;
/// End of the generated period.
const NOW: &str = "2026-11-22T08:30:00Z";

fn main() {
    let given: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |n: usize, default| given.get(n).map_or(default, |text| text.parse().expect("a number"));
    let (orders, days, products) = (number(0, 5_000_000), number(1, 365), number(2, 1_000));
    let scratch =
        tempfile::tempdir_in(given.get(3).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from));
    let scratch = scratch.expect("the directory is writable");
    let directory = scratch.path();
    let now: Timestamp = NOW.parse().expect("a time");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let generating = Instant::now();
    runtime.block_on(async { SqliteLedger::open(directory).expect("the ledger opens").close().await });
    generate(directory, now, orders, days, products);
    println!("{orders} orders of {days} days and {products} products generated in {:.0?}", generating.elapsed());
    let migrating = Instant::now();
    runtime.block_on(async { SqliteLedger::open(directory).expect("the ledger opens").close().await });
    println!("migrated, aggregates of orders included, in {:.1?}", migrating.elapsed());
    let size = std::fs::metadata(directory.join(FILE_NAME)).expect("it is there").len();
    println!("file: {} MiB", size >> 20);

    let reader = SqliteReader::new(directory.to_owned());
    for (since, days) in [("24h", 1), ("7d", 7), ("365d", 365)] {
        for by in [GroupBy::Product, GroupBy::Hour, GroupBy::Day, GroupBy::Status, GroupBy::Priority] {
            let query =
                ReportQuery { since: since.parse().expect("an age"), until: PointInTime::Ago(Duration::ZERO), by };
            let mut rows = 0;
            let time = median(|| {
                let report = runtime.block_on(reader.report(query, now)).expect("it can be read");
                rows = report.currencies.iter().map(|block| block.rows.len()).sum::<usize>();
            });
            println!("report of {days:>3} days by {by:<8}: {:>8.2} ms, {rows} rows", time.as_secs_f64() * 1e3);
        }
    }
    let mut order = 0;
    let time = median(|| {
        order += orders / 10;
        assert!(!runtime.block_on(reader.trace(&format!("ord-{order}"))).expect("it can be read").is_empty());
    });
    println!("trace: {:.2} ms", time.as_secs_f64() * 1e3);
    runtime.block_on(prune(directory, now, days));
}

fn generate(directory: &Path, now: Timestamp, orders: u64, days: u64, products: u64) {
    let file = Connection::open(directory.join(FILE_NAME)).expect("it opens");
    let step = days * 86_400_000 / orders;
    let first = now.as_millisecond() - i64::try_from(step * orders).expect("it is some years");
    let from = format!("WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {orders})");
    let at = format!("{first} + n * {step}");
    let product = format!("'Product ' || (n * 7919 % {products})");
    let total = "printf('%d.%02d', (1 + n % 3) * 1999 / 100, (1 + n % 3) * 1999 % 100)";
    let currency = "CASE n % 5 WHEN 0 THEN 'USD' ELSE 'EUR' END";
    let widths = [("minute", 60_000), ("hour", 3_600_000), ("day", 86_400_000)];
    // Cents as whole numbers, so that SQLite's own sums are exact.
    let sales = widths.map(|(name, width)| {
        format!(
            "INSERT INTO sales SELECT '{name}', processed_at - processed_at % {width} AS starts_at, currency, product,
                 count(*), sum(quantity), printf('%d.%02d', sum(cents) / 100, sum(cents) % 100)
             FROM (SELECT processed_at, currency, product, quantity, CAST(replace(total, '.', '') AS INTEGER) AS cents
                   FROM orders) GROUP BY 2, 3, 4;"
        )
    });
    let script = format!(
        "PRAGMA synchronous = off; PRAGMA cache_size = -200000; BEGIN;
         INSERT INTO orders {from} SELECT 'ord-' || n, 'processed', 'order', {product}, 1 + n % 3, '19.99', {total}, NULL,
             NULL, NULL, {total}, {currency}, n % 10 = 0,
             'customer-' || (n % 100000), {at}, {at}, {at} FROM n;
         INSERT INTO events {from} SELECT 'ord-' || n || '/notification/processed', 'notification', 'email',
             'ord-' || n, {at} FROM n;
         INSERT INTO events {from} SELECT 'ord-' || n || '/analytics/processed', 'analytics', 'processed',
             'ord-' || n, {at} FROM n;
         {} DROP TABLE order_sums; DROP TABLE order_items; PRAGMA user_version = 1; COMMIT;",
        sales.join("\n")
    );
    file.execute_batch(&script).expect("the rows are written");
}

/// Removes the older half, and prints the durations of its transactions.
async fn prune(directory: &Path, now: Timestamp, days: u64) {
    let ledger = SqliteLedger::open(directory).expect("the ledger opens");
    let before = now.checked_sub(Duration::from_secs(days * 86_400 / 2)).expect("it is some years");
    let (mut times, mut removed, started) = (Vec::new(), 0, Instant::now());
    loop {
        let chunk = Instant::now();
        let pruned = ledger.prune(before).await.expect("it can be written");
        times.push(chunk.elapsed());
        removed += pruned.orders + pruned.events + pruned.attempts + pruned.minutes;
        if !pruned.more || started.elapsed() > Duration::from_secs(30) {
            break;
        }
    }
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "retention: {removed} rows in {} transactions, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        percentile(50),
        percentile(99),
        percentile(100)
    );
    ledger.close().await;
}

fn median(mut query: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            query();
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}
