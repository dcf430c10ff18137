//! orderd against a cluster of three RabbitMQ nodes that fail under load. Not part of `make test`: run `make cluster-test`.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../support/harness/mod.rs"]
mod harness;

mod cluster;
mod faults;
mod observer;
mod run;

use faults::Fault;
use run::ClusterRun;

/// The faults to run, comma-separated; default: all.
const FAULTS: &str = "ORDERD_TEST_CLUSTER_FAULTS";

#[test]
#[ignore = "starts a cluster and takes minutes: run `make cluster-test`"]
fn nothing_is_lost_or_duplicated_when_the_nodes_of_a_cluster_fail_under_load() {
    let chosen = std::env::var(FAULTS).unwrap_or_default();
    let is_chosen = |fault: &&Fault| chosen.is_empty() || chosen.split(',').any(|name| name == fault.as_str());
    let faults: Vec<Fault> = Fault::ALL.iter().filter(is_chosen).copied().collect();
    let report = ClusterRun::new("cluster").and_then(|run| run.faults(&faults)).expect("the run completes");
    println!("{report}");
    assert!(report.passed(), "{report}");
}
