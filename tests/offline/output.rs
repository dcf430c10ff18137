//! Commands whose output cannot be written: a reader that is gone, and a full disk.

use std::fs::File;
use std::io;
use std::process::{Command, Output, Stdio};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");

/// Every command that prints without a daemon or a broker, with its exit code when the output can be written.
fn commands() -> Vec<(Vec<String>, i32)> {
    let directory = std::env::temp_dir().join("orderd-test-no-ledger-here");
    let ledger = format!("ledger.directory={}", directory.display());
    let with_config = |arguments: &[&str]| {
        let arguments = [arguments, &["--config", CONFIG, "--set", &ledger]].concat();
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = |arguments: &[&str]| arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>();
    vec![
        (with_config(&["check"]), 0),
        (with_config(&["check", "--format", "json"]), 0),
        (with_config(&["check", "--permissions"]), 0),
        // The exit code of a refused configuration is kept, too.
        (with_config(&["check", "--format", "json", "--set", "log.level=nonsense"]), 78),
        (with_config(&["probe", "--format", "json", "--set", "admin.listen=127.0.0.1:1"]), 69),
        (plain(&["completions", "bash"]), 0),
        (plain(&["completions", "zsh"]), 0),
        (plain(&["man"]), 0),
        (plain(&["--help"]), 0),
        (plain(&["help", "run"]), 0),
        (plain(&["--version"]), 0),
    ]
}

fn run(arguments: &[String], stdout: Stdio, stderr: Stdio) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orderd")).args(arguments).stdout(stdout).stderr(stderr).output().unwrap()
}

fn closed_pipe() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_device() -> Stdio {
    File::create("/dev/full").unwrap().into()
}

#[test]
fn a_closed_pipe_is_silent_and_changes_no_exit_code() {
    for (arguments, expected) in commands() {
        let output = run(&arguments, closed_pipe(), Stdio::piped());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {error}");
        assert!(!error.contains("output") && !error.contains("panicked"), "{arguments:?}: {error}");
    }
}

#[test]
fn a_full_device_is_reported_with_70() {
    for (arguments, _) in commands() {
        let output = run(&arguments, full_device(), Stdio::piped());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{arguments:?}: {error}");
        assert!(error.contains("cannot write the output"), "{arguments:?}: {error}");
    }
}

#[test]
fn errors_that_cannot_be_written_change_no_exit_code() {
    for stderr in [closed_pipe, full_device] {
        for (arguments, expected) in commands() {
            assert_eq!(run(&arguments, Stdio::piped(), stderr()).status.code(), Some(expected), "{arguments:?}");
        }
        let missing = ["check".to_owned(), "--config".to_owned(), "/nowhere/orderd.toml".to_owned()];
        assert_eq!(run(&missing, Stdio::piped(), stderr()).status.code(), Some(78));
        assert_eq!(run(&["--nonsense".to_owned()], Stdio::piped(), stderr()).status.code(), Some(64));
    }
}
