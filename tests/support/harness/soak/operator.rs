//! An operator who replays dead letters while faults happen. Some of the waiting commands are killed.
//!
//! It starts replays only; the daemon carries them out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::super::audit;
use super::super::environment::Environment;
use super::super::{Outcome, interrupt};

/// The codes of orders that the shop's services have refused.
const REFUSALS: [&str; 3] = ["http_402", "http_409", "http_422"];
/// Percentages of `--stop-at`: replays that stop soon, and replays that do not.
const STOP_AT: [&str; 2] = ["10", "100"];
/// How long a waiting command is left alone, at most; then it is killed.
const LONGEST_WAIT: u64 = 8_000;
const POLL: Duration = Duration::from_millis(100);
/// How long the last replays may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// The running operator.
#[derive(Debug)]
pub struct Operator {
    paused: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Operator {
    /// Starts to replay what the services have refused, again and again.
    pub fn start(environment: &Environment, program: &Path, seed: u64) -> Operator {
        let (paused, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let replay = Replay::new(environment, program);
        let flags = (Arc::clone(&paused), Arc::clone(&stopped));
        let thread = thread::spawn(move || operate(&replay, &mut Rng::with_seed(seed), &flags.0, &flags.1));
        Operator { paused, stopped, thread: Some(thread) }
    }

    /// Starts no further replay until [`Operator::resume`]. Those that run continue.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    pub fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It ends without a result.
            let _ = thread.join();
        }
    }
}

fn operate(replay: &Replay, random: &mut Rng, paused: &AtomicBool, stopped: &AtomicBool) {
    while !stopped.load(Ordering::SeqCst) {
        if !paused.load(Ordering::SeqCst)
            && let Ok(mut command) =
                replay.command(REFUSALS[random.usize(..REFUSALS.len())], STOP_AT[random.usize(..STOP_AT.len())]).spawn()
        {
            end(&mut command, Duration::from_millis(random.u64(..LONGEST_WAIT)), stopped);
        }
        thread::sleep(POLL);
    }
}

/// Waits for the command, and kills it when its time is over.
fn end(command: &mut Child, time: Duration, stopped: &AtomicBool) {
    let begin = Instant::now();
    while matches!(command.try_wait(), Ok(None)) {
        if begin.elapsed() > time || stopped.load(Ordering::SeqCst) {
            // An error means that it has exited already.
            let _ = command.kill();
            let _ = command.wait();
            return;
        }
        thread::sleep(POLL);
    }
}

/// The command that replays the dead letters with a code.
struct Replay {
    program: PathBuf,
    config_file: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Replay {
    fn new(environment: &Environment, program: &Path) -> Replay {
        Replay {
            program: program.to_owned(),
            config_file: environment.config_file.clone(),
            settings: environment.settings().to_vec(),
        }
    }

    fn command(&self, code: &str, stop_at: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["dead-letters", "replay", "--yes", "--code", code, "--stop-at", stop_at, "--config"])
            .arg(&self.config_file);
        command.envs(self.settings.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// Whether no replay runs, and no replayed message is under way.
pub fn is_idle(ledger: &Path) -> Outcome<bool> {
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM replays WHERE state NOT IN ('finished', 'stopped'))
        AND NOT EXISTS (SELECT 1 FROM replay_letters WHERE state IN ('selected', 'publishing', 'published', 'retrying'))";
    Ok(audit::open(ledger)?.query_row(sql, [], |row| row.get(0))?)
}

/// Replays what the services have refused until nothing of it is left.
pub fn replay_all(environment: &Environment, program: &Path, ledger: &Path) -> Outcome<()> {
    let (begin, replay) = (Instant::now(), Replay::new(environment, program));
    loop {
        let (mut left, idle) = (0, is_idle(ledger)?);
        for code in REFUSALS {
            let sql = "SELECT count(*) FROM stored_dead_letters WHERE state = 'open' AND code = ?1";
            let open: i64 = audit::open(ledger)?.query_row(sql, [code], |row| row.get(0))?;
            left += open;
            if open > 0 {
                // Whether it succeeds shows in the ledger.
                replay.command(code, "100").status()?;
            }
        }
        if left == 0 && idle {
            return Ok(());
        }
        if begin.elapsed() > DEADLINE {
            return Err(format!("{left} dead letters are not replayed within {DEADLINE:?}").into());
        }
        interrupt::sleep(POLL)?;
    }
}
