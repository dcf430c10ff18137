//! A disk that hangs while the ledger is on it.

use crate::soak::harness::soak::Disk;
use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{LedgerReader, TestEnv, order, wait_until};

const INTERNAL: i32 = 70;

#[test]
#[ignore = "needs root, who can mount a file system"]
fn a_disk_that_hangs_is_named_and_keeps_a_third_signal_from_nothing() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let disk = Disk::mount(env.directory.path().join("disk")).unwrap();
    let ledger = disk.path.join("ledger");
    let env = env.set("ledger.directory", ledger.to_str().unwrap());
    let mut orderd = env.start();
    // Dropped before the process, which cannot be killed while the disk hangs.
    let disk = disk;
    disk.freeze().unwrap();
    let mut raw = env.raw();
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    wait_until("it notices", || orderd.has_logged(super::super::ledger_outages::CANNOT_RECORD));
    assert_eq!(orderd.status()["daemon"]["ledger"]["outage"]["cause"], "hung");
    let messages = [
        "draining; a second signal aborts",
        "aborting",
        "exiting at once; the broker will deliver again what was not acked",
    ];
    for message in messages {
        orderd.signal("TERM");
        wait_until(message, || orderd.has_logged(message));
    }
    wait_until("it ends", || orderd.has_ended());
    // Until the disk responds, the kernel keeps the process.
    disk.thaw().unwrap();
    assert_eq!(orderd.wait_for_exit(), INTERNAL);
    let mut orderd = env.start();
    let reader = LedgerReader::open(&ledger);
    reader.await_settled(1);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(reader.rows("SELECT * FROM attempts"), [""; 0]);
}
