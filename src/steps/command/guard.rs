//! A second process of orderd, which outlives it: once orderd is gone, however it ended, it ends the process groups of commands
//! that are left. A child that hangs does not see the end of its own standard input.
//!
//! ```text
//! orderd → guard    +4711    this group was started
//!                   -4711    it is gone
//! ```
//! The end of this input is orderd's end. Without the guard, commands work as well: what goes wrong with it is only logged.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tracing::warn;

use crate::telemetry::RepeatedLog;

/// The program that runs, also if its file was replaced.
const PROGRAM: &str = "/proc/self/exe";
/// The hidden subcommand of the guard.
const SUBCOMMAND: &str = "guard-commands";
/// How long a child of an orderd that is gone may take to end because its input ended, and then because of SIGTERM. Together less than the
/// margin of a lease, so that no other instance repeats the call while it still runs.
const WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Failures to start the guard or to write to it.
static FAILURES: RepeatedLog = RepeatedLog::new();

/// The groups that are to be ended, and the guard once there was one.
#[derive(Debug, Default)]
pub(super) struct GroupGuard(Mutex<GuardState>);

#[derive(Debug, Default)]
struct GuardState {
    groups: BTreeSet<i32>,
    process: Option<GuardProcess>,
}

#[derive(Debug)]
struct GuardProcess {
    child: Child,
    input: ChildStdin,
}

impl GroupGuard {
    /// This group was started.
    pub(super) fn started(&self, group: Pid) {
        self.change(group, true);
    }

    /// Nothing of this group is left.
    pub(super) fn ended(&self, group: Pid) {
        self.change(group, false);
    }

    fn change(&self, group: Pid, is_started: bool) {
        let group = group.as_raw_nonzero().get();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_started {
            state.groups.insert(group)
        } else {
            state.groups.remove(&group)
        };
        if let Err(error) = state.write(&line(group, is_started))
            && let Some(due) = FAILURES.occurred("guard")
        {
            let repeated = due.repeated;
            warn!(%error, repeated, "cannot start the process that ends commands which hang when orderd is killed");
        }
    }
}

impl GuardState {
    /// Writes to the guard. If it has died, starts a new one and sends it all groups.
    fn write(&mut self, line: &str) -> io::Result<()> {
        if let Some(process) = &mut self.process {
            if process.input.write_all(line.as_bytes()).is_ok() {
                return Ok(());
            }
            // It was killed, or does not read.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        self.process = None;
        let mut process = GuardProcess::start()?;
        self.groups.iter().try_for_each(|group| process.input.write_all(self::line(*group, true).as_bytes()))?;
        self.process = Some(process);
        Ok(())
    }
}

impl GuardProcess {
    fn start() -> io::Result<Self> {
        let mut child = Command::new(PROGRAM)
            .arg0("orderd")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends orderd, such as Ctrl-C, must not end it.
            .process_group(0)
            .spawn()?;
        let input = child.stdin.take().expect("it is piped");
        // A guard that does not read must not stop orderd.
        ioctl_fionbio(&input, true)?;
        Ok(GuardProcess { child, input })
    }
}

fn line(group: i32, is_started: bool) -> String {
    format!("{}{group}\n", if is_started { '+' } else { '-' })
}

/// The guard itself: waits until orderd is gone, and then until nothing of the groups is left.
pub fn guard_commands(input: impl BufRead) {
    let mut groups = groups_at_end(input);
    wait(&mut groups);
    // A stopped process receives SIGTERM only once it continues.
    [Signal::TERM, Signal::CONT].iter().for_each(|sent| signal(&groups, *sent));
    wait(&mut groups);
    signal(&groups, Signal::KILL);
}

/// The groups that are left at the end of the input.
fn groups_at_end(input: impl BufRead) -> Vec<Pid> {
    let mut groups = BTreeSet::new();
    for line in input.lines().map_while(Result::ok) {
        let Some((change, Ok(group))) = line.split_at_checked(1).map(|(change, group)| (change, group.parse())) else {
            continue;
        };
        if change == "+" {
            groups.insert(group)
        } else {
            groups.remove(&group)
        };
    }
    groups.into_iter().filter_map(Pid::from_raw).collect()
}

/// Waits until nothing of the groups is left, for a limited time.
fn wait(groups: &mut Vec<Pid>) {
    let end = Instant::now() + WAIT;
    loop {
        groups.retain(|group| test_kill_process_group(*group).is_ok());
        if groups.is_empty() || Instant::now() >= end {
            return;
        }
        thread::sleep(POLL);
    }
}

fn signal(groups: &[Pid], signal: Signal) {
    for group in groups {
        // An error means that it is gone.
        let _ = kill_process_group(*group, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(input: &str) -> Vec<i32> {
        groups_at_end(input.as_bytes()).iter().map(|group| group.as_raw_nonzero().get()).collect()
    }

    #[test]
    fn the_groups_that_have_not_ended_are_left() {
        assert_eq!(left("+7\n+8\n+9\n-8\n+7\n"), [7, 9]);
        assert_eq!(left("-7\n+\nx\n\n+8"), [8]);
        assert!(left("").is_empty());
    }
}
