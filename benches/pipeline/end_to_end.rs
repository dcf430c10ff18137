//! orderd itself: an optimized `orderd run` with its durable ledger, on preloaded orders.
//!
//! Progress is observed only by passive declarations and, once the queues are empty, by reading the ledger.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection as Ledger, OpenFlags};

use super::ceiling::{EVENT_QUEUES, ORDER_QUEUE};
use super::daemon::{CONFIG, Daemon, cpu_of};
use super::minimal_client::Connection;
use super::node::Node;
use super::report::Measurement;

const ORDERD: &str = env!("CARGO_BIN_EXE_orderd");
/// Time between two observations, which is also the largest error of the measured time.
const POLL: Duration = Duration::from_millis(20);
/// A run that takes longer is stuck, or the machine is too slow for a measurement.
const DEADLINE: Duration = Duration::from_secs(600);
const DRAIN: Duration = Duration::from_secs(60);
/// How long the broker may take to process the last acknowledgements.
const SETTLE: Duration = Duration::from_secs(15);

/// Runs orderd on `count` preloaded orders, in an empty `directory`. Also returns orderd's peak resident memory, in bytes.
///
/// The time is measured from the last observation without a consumer on the order queue to the first one with all three
/// queues empty and every order and event in the ledger. So start-up is excluded, as it is for the ceiling, and the error
/// of the measurement is to orderd's disadvantage.
pub fn run(node: &Node, count: u64, directory: &Path, settings: &[(&str, String)]) -> io::Result<(Measurement, u64)> {
    run_until(node, count, (ORDER_QUEUE, (count, 2 * count)), directory, settings)
}

/// [`run`] on `count` preloaded notifications.
pub fn notify(
    node: &Node,
    count: u64,
    directory: &Path,
    settings: &[(&str, String)],
) -> io::Result<(Measurement, u64)> {
    run_until(node, count, (EVENT_QUEUES[0], (0, count)), directory, settings)
}

/// `work` is the queue with the messages, and the orders and events that are recorded at the end.
fn run_until(
    node: &Node,
    count: u64,
    work: (&str, (u64, u64)),
    directory: &Path,
    settings: &[(&str, String)],
) -> io::Result<(Measurement, u64)> {
    let (queue, expected) = work;
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    let mut connection = Connection::open(node.amqp_port)?;
    let mut daemon = start(node, directory, settings)?;
    let Start { at: begin, cpu, broker_cpu } = await_consumer(node, queue, &mut connection, &mut daemon)?;
    loop {
        let mut ready = 0;
        for queue in [ORDER_QUEUE].into_iter().chain(EVENT_QUEUES) {
            ready += connection.inspect(queue)?.0;
        }
        if ready == 0 && recorded(directory)? == expected {
            break;
        }
        daemon.check_alive()?;
        if begin.elapsed() > DEADLINE {
            let recorded = recorded(directory)?;
            let tail = daemon.log_tail();
            return Err(io::Error::other(format!("after {DEADLINE:?}: {ready} ready, {recorded:?} recorded\n{tail}")));
        }
        thread::sleep(POLL);
    }
    let measurement = Measurement::new(count, begin.elapsed(), daemon.cpu()? - cpu, cpu_of(node.pid)? - broker_cpu);
    let memory = daemon.peak_memory()?;
    await_settled(node)?;
    let status = daemon.terminate(DRAIN)?;
    if !status.success() {
        return Err(io::Error::other(format!("orderd exited with {status}")));
    }
    Ok((measurement, memory))
}

fn start(node: &Node, directory: &Path, settings: &[(&str, String)]) -> io::Result<Daemon> {
    let all = [
        ("ORDERD_BROKER__ADDRESSES", format!("127.0.0.1:{}", node.amqp_port)),
        ("ORDERD_MANAGEMENT__URL", format!("http://127.0.0.1:{}", node.management_port)),
        ("ORDERD_LEDGER__DIRECTORY", directory.join("ledger").display().to_string()),
        ("ORDERD_ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
    ];
    Daemon::start(Path::new(ORDERD), Path::new(CONFIG), &[&all, settings].concat(), &directory.join("orderd.log"))
}

/// The start of the measurement, and the CPU time used before it.
struct Start {
    at: Instant,
    cpu: Duration,
    broker_cpu: Duration,
}

fn await_consumer(node: &Node, queue: &str, connection: &mut Connection, daemon: &mut Daemon) -> io::Result<Start> {
    let start = Instant::now();
    loop {
        let before = Start { at: Instant::now(), cpu: daemon.cpu()?, broker_cpu: cpu_of(node.pid)? };
        if connection.inspect(queue)?.1 > 0 {
            return Ok(before);
        }
        daemon.check_alive()?;
        if start.elapsed() > DRAIN {
            return Err(io::Error::other(format!("orderd does not consume:\n{}", daemon.log_tail())));
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

/// Waits until all queues are empty, including unacknowledged messages.
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
