//! A small soak. `make soak` runs the large one.

#[path = "../support/harness/mod.rs"]
pub mod harness;

use harness::soak::{FaultKind, Soak};

#[test]
fn nothing_is_lost_or_duplicated_when_orderd_the_broker_and_the_network_fail_under_load() {
    let soak = Soak {
        name: "soak_small".to_owned(),
        program: env!("CARGO_BIN_EXE_orderd").into(),
        faults: 10,
        kinds: [
            "orderd_killed",
            "broker_killed",
            "connections_cut",
            "half_open_to_orderd",
            "connections_force_closed",
            "ledger_locked",
        ]
        .map(|name| FaultKind::parse(name).unwrap())
        .to_vec(),
        seed: 15,
    };
    let report = soak.run(&mut |line| println!("{line}")).expect("the soak completes");
    assert!(report.passed(), "{report}");
}
