//! One child process of a command: how it is started, and how it ends, with everything that it has started itself.
//!
//! Each child leads a process group of its own, which is killed when the child ends for whatever reason. A task reaps it and
//! reads its standard error; [`ChildProcesses`] waits for all of them. If orderd itself is killed, a child sees the end of its
//! standard input, and the guard ends what is left.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::BufReader;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::CommandName;
use super::guard::GroupGuard;
use super::output_log::{Output, OutputLog, StderrReader};
use super::settings::CommandSettings;

/// How long a child may take to end after its standard input was closed and it was sent SIGTERM. Then it is killed.
const STOP_WAIT: Duration = Duration::from_secs(3);
/// How long to wait after a child's end for the rest of what it wrote. Only a process that has left the group keeps a pipe open
/// for longer.
pub(super) const LAST_OUTPUT: Duration = Duration::from_millis(200);
/// How long to wait for the end of a child that was killed. Only one that waits for a disk that hangs takes longer.
const KILLED_WAIT: Duration = Duration::from_secs(1);

/// How much of the end of its standard error is shown with the way a child ended, in bytes.
const SHOWN_STDERR_BYTES: usize = 512;

/// All children of the daemon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ChildProcesses {
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// `None`: nothing ends children if this process is killed.
    guard: Option<Arc<GroupGuard>>,
}

impl ChildProcesses {
    /// No children yet. Those to come are ended also if this process, which must be `orderd`, is killed.
    pub fn guarded() -> Self {
        ChildProcesses { guard: Some(Arc::default()), ..Self::default() }
    }

    /// Ends all children, also those in the middle of a call, and waits until they have ended: a little longer than [`STOP_WAIT`] at
    /// most, unless the operating system cannot end one.
    pub async fn finish(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs a task that [`ChildProcesses::finish`] waits for. It must end soon once [`ChildProcesses::stopping`] resolves.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// Resolves when all children are to end. Cancel-safe.
    pub(super) async fn stopping(&self) {
        self.stopping.cancelled().await;
    }
}

/// Starts the children of one command.
pub(super) struct ChildStarter {
    pub settings: CommandSettings,
    pub name: CommandName,
    pub processes: ChildProcesses,
    log: Arc<OutputLog>,
}

/// A child that was started. Dropping it ends it: its standard input is closed and it is sent SIGTERM, then it is killed.
#[derive(Debug)]
pub(super) struct RunningChild {
    pub pid: u32,
    /// `None` once it is closed.
    pub stdin: Option<ChildStdin>,
    pub stdout: BufReader<ChildStdout>,
    /// Dropped to stop it; sent to kill it.
    kill: Option<oneshot::Sender<()>>,
    exit: watch::Receiver<Option<ChildExit>>,
}

/// How a child ended.
#[derive(Debug, Clone)]
pub(super) struct ChildExit {
    /// `None` if the operating system does not know, or it has not ended.
    pub status: Option<ExitStatus>,
    /// It was killed because it wrote too much to standard error.
    pub flooded: bool,
    /// The end of what it wrote to standard error.
    pub stderr: String,
}

impl ChildStarter {
    pub(super) fn new(settings: CommandSettings, name: CommandName, processes: ChildProcesses) -> Self {
        let log = Arc::new(OutputLog::new(name.clone()));
        ChildStarter { settings, name, processes, log }
    }

    /// Starts a child, with these variables besides those of the settings.
    pub(super) fn start(&self, variables: &[(&str, &str)]) -> io::Result<RunningChild> {
        let (_, arguments) = self.settings.words.split_first().expect("checked: a command has at least the program");
        let mut child = Command::new(self.settings.executable()?)
            .args(arguments)
            .env_clear()
            .envs(self.settings.variables())
            .envs(variables.iter().copied())
            .current_dir(&self.settings.working_directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let group = ProcessGroup::of(&child, self.processes.guard.clone());
        let pid = child.id().unwrap_or_default();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = (stdout.expect("it is piped"), stderr.expect("it is piped"));
        let (kill, killed) = oneshot::channel();
        let (ended, exit) = watch::channel(None);
        let stderr = StderrReader::new(stderr, pid);
        let supervision = Supervision { child, group, stderr, log: Arc::clone(&self.log), killed, ended };
        let stopping = self.processes.stopping.clone();
        self.processes.spawn(async move { supervision.run(stopping.cancelled()).await });
        debug!(consumer = %self.name.consumer, step = %self.name.step, pid, "started a command");
        Ok(RunningChild { pid, stdin, stdout: BufReader::new(stdout), kill: Some(kill), exit })
    }
}

impl RunningChild {
    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Resolves when it has ended. Cancel-safe.
    pub(super) fn exited(&self) -> impl Future<Output = ChildExit> + use<> {
        wait_for_exit(self.exit.clone())
    }

    /// Kills it and returns how it ended: before, if it had already ended by itself.
    pub(super) async fn kill(mut self) -> ChildExit {
        let exit = self.exit.clone();
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
        let unknown = ChildExit { status: None, flooded: false, stderr: String::new() };
        tokio::time::timeout(KILLED_WAIT, wait_for_exit(exit)).await.unwrap_or(unknown)
    }
}

async fn wait_for_exit(mut exit: watch::Receiver<Option<ChildExit>>) -> ChildExit {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone().expect("waited until it is there"),
        // The task that reaps it was aborted: the runtime stops.
        Err(_) => ChildExit { status: None, flooded: false, stderr: String::new() },
    }
}

/// What the task of a child owns.
struct Supervision {
    child: Child,
    group: ProcessGroup,
    stderr: StderrReader,
    log: Arc<OutputLog>,
    /// Resolves if the child is to be killed, fails if its owner is gone.
    killed: oneshot::Receiver<()>,
    ended: watch::Sender<Option<ChildExit>>,
}

impl Supervision {
    /// Reads the child's standard error and reaps it. Ends it when it is to be killed, when its owner is gone, when orderd stops,
    /// or when it writes too much.
    async fn run(self, stopping: impl Future<Output = ()>) {
        let Supervision { mut child, mut group, mut stderr, log, mut killed, ended } = self;
        let (mut reads, mut flooded, mut is_ending) = (true, false, false);
        let mut kill_at: Option<Instant> = None;
        let mut stopping = std::pin::pin!(stopping);
        let status = loop {
            let kill_time = kill_at.unwrap_or_else(Instant::now);
            // Cancel-safe: waiting and reading are, and the others only wait.
            let is_killed = tokio::select! {
                status = child.wait() => break status.ok(),
                output = stderr.read(&log), if reads => match output {
                    Output::Some => continue,
                    Output::End => {
                        reads = false;
                        continue;
                    }
                    Output::Flood => {
                        (reads, flooded) = (false, true);
                        true
                    }
                },
                order = &mut killed, if !is_ending => order.is_ok(),
                () = &mut stopping, if !is_ending => false,
                () = sleep_until(kill_time), if kill_at.is_some() => true,
            };
            is_ending = true;
            if is_killed {
                kill_at = None;
                group.signal(Signal::KILL);
            } else {
                group.signal(Signal::TERM);
                // A stopped process receives SIGTERM only once it continues.
                group.signal(Signal::CONT);
                kill_at = Some(Instant::now() + STOP_WAIT);
            }
        };
        // What it has started and left behind. It must go before its output is awaited.
        group.end();
        if reads {
            stderr.finish(&log, LAST_OUTPUT).await;
        }
        ended.send_replace(Some(ChildExit { status, flooded, stderr: stderr.tail() }));
    }
}

/// The process group of a child, which is killed when this is dropped.
#[derive(Debug)]
struct ProcessGroup {
    /// `None` once nothing of it is left.
    group: Option<Pid>,
    guard: Option<Arc<GroupGuard>>,
}

impl ProcessGroup {
    fn of(child: &Child, guard: Option<Arc<GroupGuard>>) -> Self {
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Some(group), Some(guard)) = (group, &guard) {
            guard.started(group);
        }
        ProcessGroup { group, guard }
    }

    fn signal(&self, signal: Signal) {
        let Some(group) = self.group else { return };
        match kill_process_group(group, signal) {
            // Nothing of it is left.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                warn!(group = group.as_raw_nonzero().get(), %error, "cannot signal the processes of a command")
            }
        }
    }

    /// Kills what is left. Must be called right after the child was reaped: later, its number may be that of another process.
    fn end(&mut self) {
        self.signal(Signal::KILL);
        if let (Some(group), Some(guard)) = (self.group.take(), &self.guard) {
            guard.ended(group);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.end();
    }
}

/// Continues "the command …".
impl fmt::Display for ChildExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => write!(f, "exited with code {code}")?,
            Some((None, Some(signal))) => write!(f, "was killed by signal {signal}")?,
            Some((None, None)) | None => f.write_str("closed its output")?,
        }
        let start = self.stderr.floor_char_boundary(self.stderr.len().saturating_sub(SHOWN_STDERR_BYTES));
        if self.stderr.is_empty() { Ok(()) } else { write!(f, " ({})", &self.stderr[start..]) }
    }
}
