//! Commands whose output cannot be written.

use std::fs::File;
use std::io;
use std::process::{Command, Output, Stdio};

fn run_check(stdout: Stdio) -> Output {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
    Command::new(env!("CARGO_BIN_EXE_orderd")).args(["check", "--config", config]).stdout(stdout).output().unwrap()
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = run_check(writer.into());
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).contains("output")), (Some(0), false));
}

#[test]
fn a_full_device_is_reported() {
    let output = run_check(File::create("/dev/full").unwrap().into());
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the output"));
}
