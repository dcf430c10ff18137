//! Faults of orderd's own process, and commands to it.

use std::fs;
use std::io;
use std::time::Duration;

use super::super::super::{Outcome, interrupt};
use super::super::fault::Fault;
use super::super::targets::Targets;

/// How long orderd may take to stop.
pub const DRAIN: Duration = Duration::from_secs(60);

pub fn kill(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    targets.daemon.kill()?;
    interrupt::sleep(fault.length / 10)?;
    targets.start_daemon()?;
    Ok(true)
}

pub fn restart(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    let status = targets.daemon.terminate(DRAIN)?;
    if !status.success() {
        return Err(format!("orderd failed while stopping: {status}").into());
    }
    targets.start_daemon()?;
    Ok(true)
}

pub fn freeze(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    targets.daemon.signal("STOP")?;
    interrupt::outage(fault.length * 2, || Ok(targets.daemon.signal("CONT")?))?;
    Ok(true)
}

pub fn second_instance(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let mut second = targets.environment.start_second_daemon(targets.program)?;
    interrupt::sleep(fault.length * 2)?;
    second.check_alive()?;
    if fault.random.bool() {
        second.kill()?;
    } else if !second.terminate(DRAIN)?.success() {
        return Err("the second instance failed while stopping".into());
    }
    Ok(true)
}

pub fn reload(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    targets.daemon.signal("HUP")?;
    Ok(true)
}

pub fn change_workers(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let file = &targets.environment.config_file;
    let text = fs::read_to_string(file)?;
    let section =
        format!("[consumers.{}]", fault.random.choice(["order", "priority", "analytics"]).expect("not empty"));
    let (before, after) = text.split_once(&section).ok_or_else(|| io::Error::other(format!("no {section}")))?;
    let (comments, value) = after.split_once("\nworkers = ").ok_or_else(|| io::Error::other("no workers"))?;
    let rest = value.trim_start_matches(|c: char| c.is_ascii_digit());
    let workers = fault.random.u8(1..32);
    fs::write(file, format!("{before}{section}{comments}\nworkers = {workers}{rest}"))?;
    targets.daemon.signal("HUP")?;
    Ok(true)
}

pub fn pause(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let consumer = *fault.random.choice(["order", "priority", "failed", "notification"].iter()).expect("not empty");
    // The daemon may be starting, and then refuses the command.
    if targets.command(&["pause", consumer])?.is_err() {
        return Ok(false);
    }
    targets.outage(
        fault,
        |_| Ok(()),
        |targets| {
            for _ in 0..100 {
                if targets.command(&["resume", consumer])?.is_ok() {
                    return Ok(());
                }
                interrupt::sleep(Duration::from_millis(300))?;
            }
            Err(format!("consumer {consumer} cannot be resumed").into())
        },
    )?;
    Ok(true)
}
