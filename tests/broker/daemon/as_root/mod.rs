//! Tests that only root can run, because they mount file systems or cut a network. `make test` runs them if it runs as root, and
//! says so if not.

mod event_files;
mod half_open;
mod hung_disk;

use std::path::Path;
use std::process::Command;

/// Runs a program, which must succeed.
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
