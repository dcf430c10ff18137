//! Configuration files that are not files.

use std::path::Path;
use std::process::Command;

fn check(file: &Path) -> (Option<i32>, String) {
    let mut command = crate::orderd();
    let output = command.args(["check", "--config"]).arg(file).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_configuration_that_would_block_or_never_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("orderd.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for file in [&*pipe, Path::new("/dev/zero"), directory.path()] {
        let (code, error) = check(file);
        assert_eq!(code, Some(78), "{error}");
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_configuration_can_be_read_from_standard_input() {
    let config = std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml")).unwrap();
    let mut command = crate::orderd();
    let output = command.args(["check", "--config", "/dev/stdin"]).stdin(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
