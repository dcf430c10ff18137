//! orderd doing the whole job: `orderd run` in release, with its durable ledger, on orders preloaded.
//!
//! It only watches: passive declarations and, when the queues are empty, a look into the ledger.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection as Ledger, OpenFlags};

use super::ceiling::{EVENT_QUEUES, ORDER_QUEUE};
use super::daemon::{Daemon, cpu_of};
use super::minimal_client::Connection;
use super::node::Node;
use super::report::Side;

const ORDERD: &str = env!("CARGO_BIN_EXE_orderd");
/// Between two looks: what a run is found to take longer than it does, at the most.
const POLL: Duration = Duration::from_millis(20);
/// A run that has not ended by then is stuck, or the machine is not fit for a measurement.
const DEADLINE: Duration = Duration::from_secs(600);
const DRAIN: Duration = Duration::from_secs(60);
/// How long the broker may take to account for the last acknowledgements.
const SETTLE: Duration = Duration::from_secs(15);

/// Runs orderd on `count` preloaded orders, in a fresh `directory`. Also returns the most memory it had
/// resident since its start, in bytes.
///
/// The clock starts at the last look that found no consumer on the order queue, and stops when a look finds
/// all three queues empty and then every order and event in the ledger. So start-up is left out, as it is for
/// the ceiling, and everything uncertain is counted against orderd.
pub fn run(node: &Node, count: u64, directory: &Path, settings: &[(&str, String)]) -> io::Result<(Side, u64)> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    let mut watch = Connection::open(node.amqp_port)?;
    let mut daemon = start(node, directory, settings)?;
    let Start { at: begin, cpu, broker_cpu } = await_consumer(node, &mut watch, &mut daemon)?;
    loop {
        let mut ready = 0;
        for queue in [ORDER_QUEUE].into_iter().chain(EVENT_QUEUES) {
            ready += watch.inspect(queue)?.0;
        }
        if ready == 0 && recorded(directory)? == (count, 2 * count) {
            break;
        }
        daemon.check_alive()?;
        if begin.elapsed() > DEADLINE {
            let done = recorded(directory)?;
            let tail = daemon.log_tail();
            return Err(io::Error::other(format!("after {DEADLINE:?}: {ready} ready, {done:?} recorded\n{tail}")));
        }
        thread::sleep(POLL);
    }
    let side = Side::new(count, begin.elapsed(), daemon.cpu()? - cpu, cpu_of(node.pid)? - broker_cpu);
    let memory = daemon.peak_memory()?;
    await_settled(node)?;
    let status = daemon.terminate(DRAIN)?;
    if !status.success() {
        return Err(io::Error::other(format!("orderd ended with {status}")));
    }
    Ok((side, memory))
}

fn start(node: &Node, directory: &Path, settings: &[(&str, String)]) -> io::Result<Daemon> {
    let all = [
        ("ORDERD_BROKER__ADDRESSES", format!("127.0.0.1:{}", node.amqp_port)),
        ("ORDERD_MANAGEMENT__URL", format!("http://127.0.0.1:{}", node.management_port)),
        ("ORDERD_LEDGER__DIRECTORY", directory.join("ledger").display().to_string()),
        ("ORDERD_ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
    ];
    Daemon::start(Path::new(ORDERD), &[&all, settings].concat(), &directory.join("orderd.log"))
}

/// The moment the clock starts, and what had been used by then.
struct Start {
    at: Instant,
    cpu: Duration,
    broker_cpu: Duration,
}

fn await_consumer(node: &Node, watch: &mut Connection, daemon: &mut Daemon) -> io::Result<Start> {
    let start = Instant::now();
    loop {
        let before = Start { at: Instant::now(), cpu: daemon.cpu()?, broker_cpu: cpu_of(node.pid)? };
        if watch.inspect(ORDER_QUEUE)?.1 > 0 {
            return Ok(before);
        }
        daemon.check_alive()?;
        if start.elapsed() > DRAIN {
            return Err(io::Error::other(format!("orderd has not begun to consume:\n{}", daemon.log_tail())));
        }
        thread::sleep(POLL);
    }
}

/// Orders processed and events recorded.
fn recorded(directory: &Path) -> io::Result<(u64, u64)> {
    let file: PathBuf = directory.join("ledger/orderd.db");
    let count = |ledger: &Ledger, sql: &str| ledger.query_row(sql, [], |row| row.get::<_, i64>(0));
    Ledger::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .and_then(|ledger| {
            let orders = count(&ledger, "SELECT count(*) FROM orders WHERE status = 'processed'")?;
            Ok((orders.cast_unsigned(), count(&ledger, "SELECT count(*) FROM events")?.cast_unsigned()))
        })
        .map_err(io::Error::other)
}

/// Waits until the broker holds nothing at all, unacknowledged messages included.
fn await_settled(node: &Node) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        let listing = node.ctl(&["-q", "list_queues", "--no-table-headers", "name", "messages"])?;
        let left: Vec<&str> = listing.lines().filter(|line| !line.trim().ends_with("\t0")).collect();
        if left.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > SETTLE {
            return Err(io::Error::other(format!("the queues are not empty: {}", left.join(", "))));
        }
        thread::sleep(POLL);
    }
}
