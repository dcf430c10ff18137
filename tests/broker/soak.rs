//! A small soak. `make soak` runs the large one.

#[path = "../support/harness/mod.rs"]
mod harness;

use harness::soak::Soak;

#[test]
fn nothing_is_lost_or_duplicated_when_orderd_and_the_broker_are_killed_under_load() {
    let soak = Soak {
        name: "soak_small".to_owned(),
        program: env!("CARGO_BIN_EXE_orderd").into(),
        orders: 3_000,
        kills: 20,
        broker_kills: 1,
    };
    let audit = soak.run(&mut |line| println!("{line}")).expect("the soak completes");
    assert!(audit.passed(), "{audit}");
}
