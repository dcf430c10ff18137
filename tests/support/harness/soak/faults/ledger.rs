//! Faults of the ledger's files and of their disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::super::super::{Outcome, interrupt};
use super::super::disk::Disk;
use super::super::fault::Fault;
use super::super::targets::{Disks, Targets};
use super::orderd::DRAIN;

/// The ledger's files. The database is put back last.
const FILES: [&str; 3] = ["orderd.db-shm", "orderd.db-wal", "orderd.db"];
/// How long orderd may take to notice that they are gone.
const NOTICE: Duration = Duration::from_secs(60);

pub fn lock(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let ledger = Connection::open(targets.ledger.join("orderd.db"))?;
    ledger.busy_timeout(Duration::from_secs(10))?;
    ledger.execute_batch("BEGIN EXCLUSIVE")?;
    targets.outage(fault, |_| Ok(()), |_| Ok(ledger.execute_batch("ROLLBACK")?))?;
    Ok(true)
}

pub fn move_away(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    take_away(targets, fault, |from, to| Ok(fs::rename(from, to)?))
}

/// The files are deleted where orderd looks for them. Another link to each remains, from which they are put back.
pub fn delete(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    take_away(targets, fault, |from, to| {
        fs::hard_link(from, to)?;
        Ok(fs::remove_file(from)?)
    })
}

/// orderd must notice and stop its intake. Then the same files are put back, while it runs or while it is stopped.
fn take_away(targets: &mut Targets<'_>, fault: &mut Fault, take: fn(&Path, &Path) -> Outcome<()>) -> Outcome<bool> {
    let (ledger, aside) = (targets.ledger.clone(), targets.ledger.with_extension("aside"));
    let files: Vec<(PathBuf, PathBuf)> =
        (FILES.iter().map(|name| (ledger.join(name), aside.join(name)))).filter(|(file, _)| file.exists()).collect();
    // While it starts or stops, it may have none or only one open.
    if files.len() < FILES.len() {
        return Ok(false);
    }
    fs::create_dir_all(&aside)?;
    let kill = fault.kill;
    let stops = fault.random.bool() && !kill;
    targets.outage(
        fault,
        |targets| {
            files.iter().try_for_each(|(file, aside)| take(file, aside))?;
            targets.await_unready(NOTICE)
        },
        |targets| {
            if stops {
                targets.daemon.terminate(DRAIN)?;
            } else if kill {
                // It has got SIGKILL. Its end is awaited, so that it no longer uses the files.
                targets.daemon.kill()?;
            }
            files.iter().try_for_each(|(file, aside)| fs::rename(aside, file))?;
            if stops { targets.start_daemon() } else { Ok(()) }
        },
    )?;
    Ok(true)
}

pub fn fill_disk(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    fill(targets, fault, |disks| vec![&disks.ledger])
}

pub fn fill_both_disks(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    fill(targets, fault, |disks| vec![&disks.ledger, &disks.events])
}

pub fn hang_disk(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    hang(targets, fault, |disks| &disks.ledger)
}

/// Fills these disks for a while.
pub fn fill(targets: &mut Targets<'_>, fault: &Fault, choose: fn(&Disks) -> Vec<&Disk>) -> Outcome<bool> {
    let Some(disks) = targets.disks.map(choose) else { return Ok(false) };
    targets.outage(
        fault,
        |_| Ok(disks.iter().try_for_each(|disk| disk.fill())?),
        |_| Ok(disks.iter().try_for_each(|disk| disk.free())?),
    )?;
    Ok(true)
}

/// Makes this disk hang for a while.
pub fn hang(targets: &mut Targets<'_>, fault: &Fault, choose: fn(&Disks) -> &Disk) -> Outcome<bool> {
    let Some(disk) = targets.disks.map(choose) else { return Ok(false) };
    targets.outage(fault, |_| Ok(disk.freeze()?), |_| Ok(disk.thaw()?))?;
    interrupt::check()?;
    Ok(true)
}
