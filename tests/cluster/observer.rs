//! Watches a daemon while faults happen: when orders are settled, and when it is ready.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::audit::Progress;

const POLL: Duration = Duration::from_millis(200);

/// What has been seen since the last [`Observer::begin`].
#[derive(Debug, Default, Clone)]
pub struct Observed {
    /// The longest time without a settled order.
    pub longest_stall: Duration,
    /// How long it was not ready.
    pub not_ready: Duration,
    /// The checks that failed at any time.
    pub failed_checks: BTreeSet<String>,
    /// The longest time without a settled order while it was ready.
    pub longest_stall_while_ready: Duration,
    /// The longest time without an order that the broker has confirmed to the producer.
    pub longest_producer_stall: Duration,
}

/// A background thread that watches.
pub struct Observer {
    observed: Arc<Mutex<Observed>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts to watch a daemon's admin address and ledger, and the number of orders confirmed to the producer.
    pub fn start(admin: SocketAddr, ledger: PathBuf, confirmed: Arc<AtomicU64>) -> Observer {
        let (observed, stopped) = (Arc::new(Mutex::new(Observed::default())), Arc::new(AtomicBool::new(false)));
        let (shared, end) = (Arc::clone(&observed), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || watch(admin, &ledger, &confirmed, &shared, &end));
        Observer { observed, stopped, thread: Some(thread) }
    }

    /// Forgets what has been seen so far, and returns it.
    pub fn take(&self) -> Observed {
        std::mem::take(&mut *self.observed.lock().unwrap())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(
    admin: SocketAddr,
    ledger: &std::path::Path,
    confirmed: &AtomicU64,
    observed: &Mutex<Observed>,
    stopped: &AtomicBool,
) {
    let (mut settled, mut changed, mut stalled_ready) = (0, Instant::now(), Duration::ZERO);
    let mut last = Instant::now();
    let (mut produced, mut produced_at) = (0, Instant::now());
    while !stopped.load(Ordering::Relaxed) {
        std::thread::sleep(POLL);
        let failed = failed_checks(admin);
        let progress = Progress::read(ledger, "");
        let (now, step) = (Instant::now(), last.elapsed());
        last = now;
        let mut observed = observed.lock().unwrap();
        if progress.processed + progress.dead_lettered != settled {
            (settled, changed, stalled_ready) = (progress.processed + progress.dead_lettered, now, Duration::ZERO);
        }
        if confirmed.load(Ordering::Relaxed) != produced {
            (produced, produced_at) = (confirmed.load(Ordering::Relaxed), now);
        }
        match &failed {
            Some(failed) if failed.is_empty() => stalled_ready += step,
            _ => observed.not_ready += step,
        }
        observed.longest_stall = observed.longest_stall.max(now - changed);
        observed.longest_producer_stall = observed.longest_producer_stall.max(now - produced_at);
        observed.longest_stall_while_ready = observed.longest_stall_while_ready.max(stalled_ready);
        observed.failed_checks.extend(failed.unwrap_or_default());
    }
}

/// The names of the readiness checks that fail; `None` if the daemon does not answer.
fn failed_checks(admin: SocketAddr) -> Option<Vec<String>> {
    let status = status(admin)?;
    let checks = status["checks"].as_array()?.iter().filter(|check| check["ok"] == false);
    Some(checks.filter_map(|check| check["name"].as_str().map(str::to_owned)).collect())
}

/// The daemon's status.
pub fn status(admin: SocketAddr) -> Option<Value> {
    let mut stream = TcpStream::connect_timeout(&admin, POLL).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET /api/v1/status HTTP/1.0\r\nHost: {admin}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}
