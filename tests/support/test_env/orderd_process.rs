//! A child process of `orderd`: its output, its log and its exit code.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use serde_json::Value;

use super::wait_until;
use crate::support::http;

/// A running `orderd`; killed when dropped.
pub struct OrderdProcess {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl OrderdProcess {
    /// A child whose output goes to these files.
    pub(super) fn new(child: Child, stdout: PathBuf, stderr: PathBuf) -> Self {
        OrderdProcess { child, stdout, stderr }
    }

    /// All output so far: stdout, then stderr.
    pub fn output(&self) -> String {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        read(&self.stdout) + &read(&self.stderr)
    }

    /// The standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    /// The command line, which every user of the machine can read.
    pub fn command_line(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cmdline", self.child.id())).unwrap().replace('\0', " ")
    }

    /// The most memory that it has used so far, in MiB.
    pub fn peak_memory_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux shows it");
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// The log so far, line by line; each line must be JSON.
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.stderr).unwrap();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        whole.lines().map(parse).collect()
    }

    /// The lines with this message.
    pub fn log_lines(&self, message: &str) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// Address of the admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        wait_until("the admin listener answers", || self.has_logged("admin server started"));
        self.log_lines("admin server started")[0]["address"].as_str().unwrap().parse().unwrap()
    }

    /// The header line with the token that commands need if none is configured.
    pub fn command_token(&self) -> String {
        let token = fs::read_to_string(self.stderr.with_file_name("ledger").join("admin-token")).unwrap();
        format!("Authorization: Bearer {}\r\n", token.trim())
    }

    /// Whether any log line has this message.
    pub fn has_logged(&self, message: &str) -> bool {
        !self.log_lines(message).is_empty()
    }

    /// The errors logged so far, as `message: cause`.
    pub fn logged_errors(&self) -> Vec<String> {
        let errors = self.log().into_iter().filter(|line| line["level"] == "ERROR");
        errors
            .map(|line| {
                let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
                text("message") + ": " + &text("error")
            })
            .collect()
    }

    /// A counter of a consumer, from the totals that orderd logs when it stops.
    pub fn final_count(&self, consumer: &str, counter: &str) -> u64 {
        let counts = self.log_lines("since start");
        let line = counts.iter().find(|line| line["consumer"] == consumer);
        line.and_then(|line| line[counter].as_u64()).unwrap_or_else(|| panic!("no {counter} of {consumer}"))
    }

    /// The answer of `GET /api/v1/status`.
    pub fn status(&self) -> Value {
        http::json(self.admin_address(), "/api/v1/status")
    }

    /// Makes orderd reload its configuration with SIGHUP, and returns the report.
    pub fn reload(&self) -> Value {
        let last = || self.status()["daemon"]["last_reload"].clone();
        let before = last();
        self.signal("HUP");
        wait_until("the reload is reported", || last() != before);
        last()["report"].clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `TERM`, `INT`, `HUP`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", "kill -$0 $1", name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success(), "cannot send {name}");
    }

    /// Whether orderd has ended, though the kernel may not have freed all of its threads yet: one may wait for a disk.
    pub fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.contains(") Z ")
    }

    /// The exit status, or `None` while orderd runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until orderd exits, and returns the exit code.
    pub fn wait_for_exit(&mut self) -> i32 {
        wait_until("orderd exits", || self.exit_status().is_some());
        self.exit_status().unwrap().code().expect("orderd was not killed by a signal")
    }

    /// Waits for exit code 78 (configuration), and returns the only error logged besides findings, which say the same while orderd
    /// waits for the broker to change.
    pub fn startup_error(&mut self) -> String {
        assert_eq!(self.wait_for_exit(), 78, "{}", self.output());
        let mut errors = self.logged_errors();
        errors.retain(|error| !error.starts_with("new finding"));
        assert_eq!(errors.len(), 1, "{errors:#?}");
        errors[0].clone()
    }

    /// Sends TERM, waits until orderd has drained, and returns the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal("TERM");
        self.wait_for_exit()
    }

    /// Kills orderd with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for OrderdProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().filter(|line| !line.contains("Processing Order")).collect();
            eprintln!("end of orderd's output:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
