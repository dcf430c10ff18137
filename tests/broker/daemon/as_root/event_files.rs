//! Outages of the event files: they are nobody's failure, and no line is lost, written twice or glued to another.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{run, text};

use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};
use crate::support::{Node, http};

const CANNOT_WRITE: &str = "events cannot be written to their file; their messages wait";

/// A file system of 1 MiB; unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Self {
        fs::create_dir(path).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", text(path)]);
        SmallDisk(path)
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut filler = File::options().append(true).create(true).open(self.0.join("filler")).unwrap();
        while filler.write(&[b'x'; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }

    /// The ids of all events in the files; each must be a whole line.
    fn events(&self) -> Vec<String> {
        let files = fs::read_dir(self.0).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "jsonl"));
        let texts: Vec<_> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
        let id = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            event["id"].as_str().unwrap().to_owned()
        };
        texts.iter().flat_map(|text| text.lines()).map(id).collect()
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn is_not_ready_because_of_both_files(orderd: &OrderdProcess) -> bool {
    let files = &orderd.status()["daemon"]["event_files"];
    let is_full = |name: &str| files[name]["outage"]["cause"] == "disk_full";
    let readiness = http::get(orderd.admin_address(), "/readyz?verbose");
    let named = |name: &str| readiness.body.lines().any(|line| line.starts_with(&format!("[-] event_file {name}")));
    readiness.status == 503 && ["analytics", "notifications"].iter().all(|name| is_full(name) && named(name))
}

#[test]
#[ignore = "needs root, who can mount a file system"]
fn a_full_disk_for_event_files_uses_up_no_attempt_and_each_line_is_written_once_when_there_is_room() {
    const ORDERS: u64 = 50;
    const INVALID: u64 = 10;
    let node = Node::shared();
    let env = TestEnv::new(&node).set("log.level", "info");
    let path = env.directory.path().join("small");
    let disk = SmallDisk::mount(&path);
    let env = env.set("log.directory", path.to_str().unwrap());
    let mut orderd = env.start();
    disk.fill();
    let mut raw = env.raw();
    let invalid =
        |n| format!(r#"{{"id":"invalid-{n}","product":"Laptop","quantity":0,"price":"400.00"}}"#).into_bytes();
    for body in (0..ORDERS).map(|n| order(&format!("ord-{n}"))).chain((0..INVALID).map(invalid)) {
        raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &body);
    }
    let ledger = env.ledger();
    let dead_letters = || ledger.number("SELECT count(*) FROM dead_letters");
    wait_until("orders are processed all the same", || ledger.processed() == ORDERS && dead_letters() == INVALID);
    wait_until("both files are reported", || is_not_ready_because_of_both_files(&orderd));
    assert!(orderd.has_logged(CANNOT_WRITE));
    assert_eq!(orderd.stop(), 0, "it does not wait for room");

    let mut orderd = env.start();
    wait_until("both files are reported again", || is_not_ready_because_of_both_files(&orderd));
    disk.free();
    ledger.await_settled(ORDERS);
    let failed_events = "SELECT count(*) FROM events WHERE name = 'failed'";
    wait_until("the failures are recorded", || ledger.number(failed_events) == INVALID);
    wait_until("it is ready", || http::get(orderd.admin_address(), "/readyz").status == 200);
    assert_eq!(orderd.stop(), 0);

    let events = disk.events();
    assert_eq!(events.len() as u64, 2 * ORDERS + INVALID, "{events:?}");
    assert_eq!(BTreeSet::from_iter(&events).len(), events.len(), "{events:?}");
    let reasons = ledger.rows("SELECT DISTINCT reason, retry_count, failure_code FROM dead_letters");
    assert_eq!(reasons, ["permanent|0|invalid_quantity"]);
    assert_eq!(ledger.number("SELECT count(*) FROM attempts WHERE failure_code <> 'invalid_quantity'"), 0);
    assert_eq!(raw.depth("dead_letter_queue"), INVALID as u32, "each once");
}
