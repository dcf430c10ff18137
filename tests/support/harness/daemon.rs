//! `orderd run` as a child process, with settings in its environment.
//!
//! It never signals a process that it has not started.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The annotated default configuration, which all of these programs use.
pub const CONFIG: &str = "config/orderd.toml";
/// Clock ticks per second in `/proc/PID/stat`: the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const POLL: Duration = Duration::from_millis(20);
const TAIL_LINES: usize = 20;

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program run` with this configuration file and these settings, which take precedence. Appends stdout and
    /// stderr to `log`.
    pub fn start(program: &Path, config: &Path, settings: &[(&str, String)], log: &Path) -> io::Result<Daemon> {
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory)?;
        }
        let output = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(["run", "--config"])
            .arg(config)
            .envs(settings.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            // Ctrl-C must reach only the parent, which then stops the daemon with TERM.
            .process_group(0)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", program.display())))?;
        Ok(Daemon { child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns an error with the end of the log if the daemon has exited.
    pub fn check_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!("orderd has exited ({status}):\n{}", self.log_tail()))),
        }
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        // The shell's built-in `kill`: a minimal system may have no other.
        Command::new("sh").args(["-c", "kill -\"$1\" \"$0\"", &self.pid().to_string(), name]).status().map(drop)
    }

    /// Sends TERM and waits until the daemon exits. Kills it at the deadline.
    pub fn terminate(&mut self, deadline: Duration) -> io::Result<ExitStatus> {
        self.signal("TERM")?;
        let begin = Instant::now();
        while begin.elapsed() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        self.child.kill()?;
        self.child.wait()?;
        Err(io::Error::other(format!("orderd did not exit within {deadline:?} of TERM:\n{}", self.log_tail())))
    }

    /// Leaves the daemon running after this process has exited. Returns its process id.
    pub fn leave_running(self) -> u32 {
        let pid = self.pid();
        std::mem::forget(self);
        pid
    }

    /// Kills the daemon with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// CPU time of all threads, user and system.
    pub fn cpu(&self) -> io::Result<Duration> {
        cpu_of(self.pid())
    }

    /// Peak resident memory, in bytes.
    pub fn peak_memory(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::other("/proc/PID/status has no VmHWM"))
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either it has exited already, or an earlier error is being reported.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all threads of a process, user and system.
pub fn cpu_of(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program name is in parentheses and may contain spaces, so fields are counted from the closing one.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
}
