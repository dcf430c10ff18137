//! Cost of the ledger: CPU time per order, which has five entries, with many orders in flight.
//!
//! `cargo bench --bench ledger -- [orders] [concurrency] [products] [sequential|random] [directory]`.
//! CPU time is the sum over all threads of the process.

mod threads;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orderd::domain::{Amounts, Charges, Currency, Item, OrderId, Sale};
use orderd::ledger::sqlite::{SqliteLedger, Tuning};
use orderd::ledger::{
    LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter, NewAnalytics, NewNotification, NewOrder,
    NotificationDelivery, Recorded,
};
use rust_decimal::Decimal;
use threads::threads;

/// The daemon's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Load {
    orders: u64,
    concurrency: u64,
    products: u64,
    random: bool,
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |n: usize, default| given.get(n).map_or(default, |text| text.parse().expect("a number"));
    let load = Load {
        orders: number(0, 200_000),
        concurrency: number(1, 400),
        products: number(2, 10),
        random: given.get(3).is_some_and(|keys| keys == "random"),
    };
    let scratch =
        tempfile::tempdir_in(given.get(4).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from));
    let scratch = scratch.expect("the directory is writable");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(measure(load, scratch.path()));
}

async fn measure(load: Load, directory: &Path) {
    let ledger = Arc::new(SqliteLedger::open_with(directory, tuning()).expect("the ledger opens"));
    let load = Arc::new(load);
    let next = Arc::new(AtomicU64::new(0));
    let (started, cpu) = (Instant::now(), CpuTime::now());
    let tasks: Vec<_> = (0..load.concurrency)
        .map(|_| {
            let (ledger, load, next) = (Arc::clone(&ledger), Arc::clone(&load), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= load.orders {
                        return;
                    }
                    record_order(&ledger, n, &load).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no entry fails");
    }
    let (elapsed, cpu, commits) = (started.elapsed(), CpuTime::now().since(cpu), ledger.commits());
    let memory = resident_kib();
    ledger.close().await;
    let counting = Instant::now();
    let totals = ledger.totals().await.expect("the ledger can be read");
    assert_eq!(totals.orders["order"].processed, load.orders);
    let per_order = |time: Duration| time.as_secs_f64() * 1e6 / load.orders as f64;
    println!(
        "orders {} concurrency {} products {} {}: {:.1} µs CPU per order (writer {:.1}, callers {:.1}), {:.0} orders/s, \
         {:.0} entries per commit, {} MiB file, {} KiB resident, totals in {:?}",
        load.orders,
        load.concurrency,
        load.products,
        if load.random { "random" } else { "sequential" },
        per_order(cpu.all),
        per_order(cpu.writer),
        per_order(cpu.all.saturating_sub(cpu.writer)),
        load.orders as f64 / elapsed.as_secs_f64(),
        load.orders as f64 * 5.0 / commits as f64,
        std::fs::metadata(directory.join("orderd.db")).map_or(0, |file| file.len() >> 20),
        memory,
        counting.elapsed(),
    );
}

/// The default tuning, or other settings from environment variables, to compare them.
fn tuning() -> Tuning {
    let mut tuning = Tuning::default();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u32>().expect("a number"));
    if let Some(batch) = number("BATCH") {
        tuning.batch = batch as usize;
    }
    if let Some(micros) = number("GATHER_US") {
        tuning.gather = Duration::from_micros(micros.into());
    }
    if let Some(kib) = number("CACHE_KIB") {
        tuning.cache_kib = kib;
    }
    if let Some(pages) = number("CHECKPOINT_PAGES") {
        tuning.checkpoint_pages = pages;
    }
    tuning
}

/// Records one order with the daemon's entries, in the daemon's sequence.
async fn record_order(ledger: &SqliteLedger, n: u64, load: &Load) {
    let id = if load.random {
        format!("{:016x}", n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    } else {
        format!("ord-{n}")
    };
    let (product, total) = (format!("Product {}", n % load.products), Decimal::new(120_000, 2));
    let currency: Currency = "EUR".parse().expect("a currency");
    let at = Timestamp::now();
    let items: Arc<[Item]> = [Item::new(product.clone(), 3, Decimal::new(40_000, 2))].into();
    let order = NewOrder {
        id: OrderId::new(id.clone()).expect("a valid id"),
        consumer: "order".into(),
        amounts: Amounts::new(&items, Charges::default(), currency).expect("a valid order"),
        items,
        priority: false,
        customer_id: Some(format!("customer-{}", n % 1_000)),
        email: Some(format!("customer-{}@example.com", n % 1_000)),
        phone: None,
        locale: None,
        notify: None,
        placed_at: Some(at),
        at,
    };
    let record = async |entry| assert_eq!(ledger.record(entry).await.expect("it is recorded"), Recorded::New);
    record(LedgerEntry::AcceptOrder(Box::new(order))).await;
    let finished = LedgerEntry::FinishOrder { id: OrderId::new(id.clone()).expect("a valid id"), at };
    record(finished).await;
    let notification = format!("{id}/notification/processed");
    record(LedgerEntry::LookUpNotification { id: notification.clone() }).await;
    let order_id = Some(id.clone());
    let channel = "email".to_owned();
    let delivery = NotificationDelivery::default();
    let notification = NewNotification { id: notification, order_id, channel, at, delivery };
    record(LedgerEntry::Notification(Box::new(notification))).await;
    let sale = Sale::new([(product, 3, total)], currency, at);
    record(LedgerEntry::Analytics(Box::new(NewAnalytics {
        id: format!("{id}/analytics/processed"),
        order_id: Some(id),
        name: "processed".to_owned(),
        sale: Some(sale),
        at,
    })))
    .await;
}

#[derive(Clone, Copy)]
struct CpuTime {
    all: Duration,
    writer: Duration,
}

impl CpuTime {
    fn now() -> Self {
        let mut time = CpuTime { all: Duration::ZERO, writer: Duration::ZERO };
        for (_, name, spent) in threads() {
            time.all += spent;
            if name == "ledger" {
                time.writer += spent;
            }
        }
        time
    }

    fn since(self, start: Self) -> Self {
        CpuTime { all: self.all.saturating_sub(start.all), writer: self.writer.saturating_sub(start.writer) }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
