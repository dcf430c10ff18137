//! The log messages that the broker tests expect, against those in the source. A test that asserts the absence of a
//! message could otherwise not fail once that message is reworded.

use std::fs;
use std::path::{Path, PathBuf};

/// The methods of the test support that take a log message.
const LOG_METHODS: [&str; 2] = ["has_logged(\"", "log_lines(\""];

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The literal log messages that a test file names.
fn expected_messages(text: &str) -> Vec<&str> {
    let after = LOG_METHODS.iter().flat_map(|method| text.split(method).skip(1));
    after.filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn every_log_message_that_a_test_expects_is_one_of_the_programs() {
    let sources: String = rust_files("src").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let (mut unknown, mut count) = (Vec::new(), 0);
    for path in rust_files("tests").iter().filter(|path| !path.ends_with("offline/log_messages.rs")) {
        let text = fs::read_to_string(path).unwrap();
        for message in expected_messages(&text) {
            count += 1;
            // A stall is logged as "stuck: " and a description.
            let logged = message.strip_prefix("stuck: ").unwrap_or(message);
            if !sources.contains(&format!("\"{logged}\"")) {
                unknown.push(format!("{}: {message:?}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "\n{}", unknown.join("\n"));
    assert!(count > 20, "found only {count} expected messages");
}
