//! `make soak`: publishes 100,000 orders, with injected faults, while orderd is killed twenty times and the broker three times.
//! In the end, every order must be in the ledger exactly once or in the dead letter queue.

#[path = "../tests/support/harness/mod.rs"]
mod harness;

use std::process::ExitCode;

use clap::Parser;
use harness::soak::Soak;
use harness::{environment, interrupt, sibling_program};

/// Kills orderd and the broker under load, and checks that no order is lost or duplicated.
#[derive(Debug, Parser)]
struct Arguments {
    /// Orders to publish
    #[arg(long, default_value_t = 100_000)]
    orders: u64,
    /// How often orderd is killed with SIGKILL
    #[arg(long, default_value_t = 20)]
    kills: u64,
    /// How often the broker is killed with SIGKILL
    #[arg(long, default_value_t = 3)]
    broker_kills: u64,
}

fn main() -> ExitCode {
    let Arguments { orders, kills, broker_kills } = Arguments::parse();
    if std::env::var_os(environment::ADDRESSES).is_some() {
        eprintln!("soak: refusing to kill an external broker; unset {}", environment::ADDRESSES);
        return ExitCode::from(64);
    }
    let run = || {
        interrupt::watch()?;
        let program = sibling_program("orderd")?;
        let soak = Soak { name: "soak".to_owned(), program, orders, kills, broker_kills };
        soak.run(&mut |line| println!("{line}"))
    };
    match run() {
        Ok(audit) => {
            println!("\nafter {kills} kills of orderd and {broker_kills} of the broker:\n\n{audit}");
            if audit.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("soak: {error}\nsee target/soak/orderd.log and target/broker/soak/log");
            ExitCode::FAILURE
        }
    }
}
