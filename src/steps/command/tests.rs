//! Commands as real child processes: small shell and Python scripts that answer, die, hang, flood and lie.

mod ending;
mod long_lived;
mod per_message;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::{ChildProcesses, CommandMode, CommandName, CommandService, CommandSettings};
use crate::recovery::FailureKind;
use crate::steps::{FailureCause, StepAnswer, StepCall, StepFailure, StepService, TraceContext};

/// Longer than any call that is expected to be answered takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// The time of a call that is expected not to be answered.
const SHORT: Duration = Duration::from_millis(300);

/// A loop that answers each request with its pid and the order's id.
const ANSWERS: &str = r#"
import json, os, sys
print('{"orderd": 1}', flush=True)
for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps({"id": call["id"], "result": {"pid": os.getpid(), "order": call["request"]["order"]["id"]}}), flush=True)
"#;

struct TestEnv {
    directory: TempDir,
    processes: ChildProcesses,
}

impl TestEnv {
    fn new() -> Self {
        TestEnv { directory: tempfile::tempdir().unwrap(), processes: ChildProcesses::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file with a script, which may be executed.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn python(&self, script: &str) -> CommandSettings {
        let script = self.script("command.py", script);
        self.command(CommandMode::LongLived, &["python3", script.to_str().unwrap()])
    }

    fn shell(&self, mode: CommandMode, script: &str) -> CommandSettings {
        let script = self.script("command.sh", &format!("#!/bin/sh\n{script}"));
        self.command(mode, &[script.to_str().unwrap()])
    }

    /// A command that runs in the test's directory.
    fn command(&self, mode: CommandMode, words: &[&str]) -> CommandSettings {
        CommandSettings {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            mode,
            environment: [].into(),
            working_directory: self.directory.path().to_owned(),
        }
    }

    fn service(&self, settings: &CommandSettings, max_children: usize) -> CommandService {
        let name = CommandName { consumer: "order".into(), step: "charge".into() };
        CommandService::new(settings, name, max_children, &self.processes)
    }

    /// Waits until a file has something in it, and returns that.
    async fn written(&self, name: &str) -> String {
        until(|| fs::read_to_string(self.path(name)).ok().filter(|text| text.ends_with('\n'))).await.trim().to_owned()
    }
}

/// Polls until there is a value. Fails after a minute.
async fn until<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            match poll() {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(LONG, polling).await.expect("it happens within a minute")
}

/// Waits until a process is gone; a zombie is.
async fn gone(pid: &str) {
    until(|| (!is_running(pid)).then_some(())).await;
}

fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    // The state follows the name, which is in parentheses.
    stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

fn signal(pid: &str, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn call(service: &CommandService, order: &str, timeout: Duration) -> Result<StepAnswer, StepFailure> {
    call_with(service, &format!("{order}/charge"), format!("{{\"order\":{{\"id\":\"{order}\"}}}}"), timeout).await
}

async fn call_with(
    service: &CommandService,
    idempotency_key: &str,
    body: String,
    timeout: Duration,
) -> Result<StepAnswer, StepFailure> {
    let trace = TraceContext { traceparent: Some("00-trace-span-01"), tracestate: Some("shop=1,bank=2") };
    let body = &Bytes::from(body);
    service.call(StepCall { idempotency_key, body, trace, timeout }).await
}

/// A field of the answer to a call that must succeed.
async fn field(service: &CommandService, order: &str, field: &str) -> String {
    let answer = call(service, order, LONG).await.unwrap_or_else(|failure| panic!("{failure}"));
    let result: serde_json::Value = serde_json::from_str(answer.result.get()).unwrap();
    match &result[field] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The code of a call that must time out.
async fn timed_out(service: &CommandService, timeout: Duration) -> String {
    let failure = call(service, "ord-1", timeout).await.expect_err("it fails");
    assert_eq!(failure.failure.kind, FailureKind::TimedOut, "{failure}");
    assert!(failure.is_unavailable(), "{failure}");
    failure.failure.code
}

/// The code of a call that must fail, once that was checked to be a transient failure which the circuit breaker counts.
async fn transient(service: &CommandService, timeout: Duration) -> String {
    let failure = call(service, "ord-1", timeout).await.expect_err("it fails");
    assert_eq!(failure.failure.kind, FailureKind::Transient, "{failure}");
    assert!(failure.is_unavailable(), "{failure}");
    failure.failure.code
}
