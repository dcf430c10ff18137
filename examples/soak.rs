//! `make soak`: random faults of orderd, the broker, the network and the disk under load. In the end, every order must be in
//! the ledger exactly once, a dead letter or unrouted, every event must have its line, and each charge of the shop's services
//! must be kept with a processed order or refunded.

#[path = "../tests/support/harness/mod.rs"]
mod harness;

use std::process::ExitCode;

use clap::Parser;
use harness::soak::{FaultKind, Soak};
use harness::{environment, interrupt, sibling_program};

/// Makes orderd, the broker, the network and the disk fail under load, and checks that nothing is lost or duplicated.
#[derive(Debug, Parser)]
struct Arguments {
    /// Number of faults that must happen
    #[arg(long, default_value_t = 40)]
    faults: usize,
    /// Seed of the faults, their order and lengths; default: random
    #[arg(long)]
    seed: Option<u64>,
    /// Kinds of faults, comma-separated; default: all
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<&'static FaultKind>,
    /// List the kinds of faults
    #[arg(long)]
    list: bool,
}

fn kind(name: &str) -> Result<&'static FaultKind, String> {
    FaultKind::parse(name).ok_or_else(|| "unknown; --list shows all".to_owned())
}

fn main() -> ExitCode {
    let Arguments { faults, seed, mut kinds, list } = Arguments::parse();
    if list {
        FaultKind::all().iter().for_each(|kind| println!("{:<26} {}", kind.name, kind.about));
        return ExitCode::SUCCESS;
    }
    if !matches!(environment::external_broker(), Ok(None)) {
        eprintln!("soak: refusing to kill an external broker; unset {}", environment::ADDRESSES);
        return ExitCode::from(64);
    }
    if kinds.is_empty() {
        kinds = FaultKind::all();
    }
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("{faults} faults, seed {seed}");
    let run = || {
        interrupt::watch()?;
        let soak = Soak { name: "soak".to_owned(), program: sibling_program("orderd")?, faults, kinds, seed };
        let report = soak.run(&mut |line| println!("{line}"))?;
        std::fs::write("target/soak/report.json", format!("{:#}\n", report.to_json()))?;
        harness::Outcome::Ok(report)
    };
    match run() {
        Ok(report) => {
            println!("\n{report}\n\nalso in target/soak/report.json");
            if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("soak, seed {seed}: {error}\nsee target/soak/orderd.log and target/broker/soak/log");
            ExitCode::FAILURE
        }
    }
}
