//! The end of the demo: the causes of the dead letters are repaired, and the dead letters replayed.
//!
//! What stays dead is wrong in itself: broken JSON, missing products, quantities of 0.

use std::process::Stdio;
use std::time::Instant;

use super::harness::audit::{Progress, Published};
use super::harness::daemon::Daemon;
use super::harness::environment::Environment;
use super::harness::shop::Shop;
use super::harness::shop::books::Refusals;
use super::harness::{Outcome, interrupt, sibling_program};
use super::{DEADLINE, POLL, command, show_command, stop};

/// The codes of the failures whose causes are repaired: refused cards, sold out, no carrier, and a fault of the handler.
const REPAIRED: [&str; 4] = ["http_402", "http_409", "http_422", "injected_permanent"];

/// Lets the shop's services refuse nothing any more, and starts orderd again without the permanent fault.
pub fn repair(environment: &mut Environment, daemon: &mut Daemon, shop: &Shop) -> Outcome<()> {
    show_command(environment, &["dead-letters", "list", "--group"])?;
    println!(
        "\nthe customers use other cards, the stock is filled up, a carrier delivers everywhere, and an orderd without the \
         permanent fault is started"
    );
    shop.refuse(Refusals::None);
    stop(daemon)?;
    environment.set("ORDERD_CONSUMERS__ORDER__FAULTS__PERMANENT", "0".to_owned());
    *daemon = environment.start_daemon(&sibling_program("orderd")?)?;
    await_ready(environment, daemon)
}

/// Waits until orderd is connected to everything.
fn await_ready(environment: &Environment, daemon: &mut Daemon) -> Outcome<()> {
    let begin = Instant::now();
    while !is_ready(environment)? {
        daemon.check_alive()?;
        if begin.elapsed() > DEADLINE {
            return Err(format!("orderd is not ready within {DEADLINE:?} of its start").into());
        }
        interrupt::sleep(POLL)?;
    }
    Ok(())
}

fn is_ready(environment: &Environment) -> Outcome<bool> {
    let mut probe = command(environment, &["probe", "--ready"])?;
    Ok(probe.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}

/// Replays what can be replayed, and shows what is left.
pub fn replay(environment: &Environment) -> Outcome<()> {
    let replay = ["dead-letters", "replay", "--yes"];
    for code in REPAIRED {
        show_command(environment, &[&replay[..], &["--code", code]].concat())?;
    }
    show_command(environment, &[&replay[..], &["--source", "unrouted_queue", "--to", "order_queue"]].concat())?;
    show_command(environment, &["dead-letters", "list", "--group"])
}

/// Waits until the events about the replayed orders are recorded.
pub fn await_events(environment: &Environment, published: &Published, daemon: &mut Daemon) -> Outcome<()> {
    let begin = Instant::now();
    loop {
        let progress = Progress::read(environment.ledger_directory(), &published.prefix);
        if progress.is_settled(published) {
            return Ok(());
        }
        daemon.check_alive()?;
        if begin.elapsed() > DEADLINE {
            return Err(format!("the events of replayed orders are missing after {DEADLINE:?}: {progress:?}").into());
        }
        interrupt::sleep(POLL)?;
    }
}
