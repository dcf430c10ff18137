//! `make up` and `make down`: a broker and an orderd that stay. They stop only what they have started.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::harness::daemon::CONFIG;
use super::harness::environment::EarlierData;
use super::harness::node::Node;
use super::harness::{Outcome, repository, sibling_program};
use super::{DRAIN, POLL, prepare_environment};

/// The file with the process id of the daemon that `up` has started, relative to the repository.
const PID_FILE: &str = "target/up/orderd.pid";
/// The ledger of that daemon.
const LEDGER: &str = "target/up/ledger";

/// Continues with the broker's data and the ledger of the last time, unless `fresh`.
pub fn up(fresh: bool) -> Outcome<()> {
    if let Some(pid) = running_daemon() {
        return Err(format!("orderd is running already, as process {pid}; to stop it, run: make down").into());
    }
    let runtime = Runtime::new()?;
    let earlier = if fresh { EarlierData::Deleted } else { EarlierData::Kept };
    if !fresh && repository()?.join(LEDGER).exists() {
        println!("continuing with the messages and the ledger of the last time; to begin empty, run: make up FRESH=1");
    }
    let environment = prepare_environment("up", &[], earlier, &runtime)?;
    let mut daemon = environment.start_daemon(&sibling_program("orderd")?)?;
    thread::sleep(Duration::from_secs(1));
    if let Err(error) = daemon.check_alive() {
        environment.tear_down()?;
        return Err(error.into());
    }
    let pid = daemon.leave_running();
    fs::write(PID_FILE, pid.to_string())?;
    environment.save_exports()?;
    println!(
        "orderd is running as process {pid}, and logs to {}\n",
        environment.directory.join("orderd.log").display()
    );
    println!("to use it, run in your shell:\n");
    println!("  export ORDERD_CONFIG={}", repository()?.join(CONFIG).display());
    for (key, value) in environment.settings() {
        println!("  export {key}={value}");
    }
    let orderd = sibling_program("orderd")?;
    println!("  export PATH={}:$PATH", orderd.parent().unwrap_or(Path::new(".")).display());
    println!("\nthen, for example:\n");
    for command in [
        "order_producer --count 1000 --bad 0.02",
        "orderd publish orders.ndjson",
        "orderd status --watch",
        "orderd report",
    ] {
        println!("  {command}");
    }
    if let Some(node) = &environment.node {
        println!("\nRabbitMQ management UI: http://127.0.0.1:{} (user guest, password guest)", node.management_port);
    }
    println!("\nTo stop both, run: make down");
    Ok(())
}

/// The process id of the daemon that `up` has started, if that process is still orderd.
fn running_daemon() -> Option<u32> {
    let pid: u32 = fs::read_to_string(PID_FILE).ok()?.trim().parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let program = words.split(|byte| *byte == 0).next()?;
    (program == sibling_program("orderd").ok()?.as_os_str().as_encoded_bytes()).then_some(pid)
}

pub fn down() -> Outcome<()> {
    match running_daemon() {
        None => println!("orderd is not running"),
        Some(pid) => {
            Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid.to_string()]).status()?;
            let begin = Instant::now();
            while running_daemon().is_some() {
                if begin.elapsed() > DRAIN {
                    return Err(format!("orderd, process {pid}, did not exit within {DRAIN:?} of TERM").into());
                }
                thread::sleep(POLL);
            }
            println!("orderd has drained and stopped");
        }
    }
    Node::stop_by_name("up")?;
    Ok(())
}
