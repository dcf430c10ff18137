//! Faults of the event files and of their disk.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::super::super::Outcome;
use super::super::fault::Fault;
use super::super::targets::Targets;
use super::ledger::{fill, hang};

/// Begins the names of files that were moved, which orderd must not touch any more.
const MOVED: &str = "moved-";

/// As logrotate does: half of the times orderd gets SIGHUP afterwards, and must notice the others by itself.
pub fn move_files(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let files = event_files(targets)?;
    for file in &files {
        targets.moved_files += 1;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        fs::rename(file, targets.events.join(format!("{MOVED}{}-{name}", targets.moved_files)))?;
    }
    if fault.random.bool() {
        targets.daemon.signal("HUP")?;
    }
    Ok(!files.is_empty())
}

/// What was in them counts as kept: they stay open here, and the run ends with writing them again.
pub fn delete_files(targets: &mut Targets<'_>, _: &mut Fault) -> Outcome<bool> {
    let files = event_files(targets)?;
    for file in &files {
        targets.deleted_files.push(File::open(file)?);
        fs::remove_file(file)?;
    }
    Ok(!files.is_empty())
}

/// Writes what the deleted files contain to new ones.
pub fn restore_deleted_files(targets: &mut Targets<'_>) -> io::Result<()> {
    for (number, mut file) in std::mem::take(&mut targets.deleted_files).into_iter().enumerate() {
        io::copy(&mut file, &mut File::create(targets.events.join(format!("{MOVED}deleted-{number}.jsonl")))?)?;
    }
    Ok(())
}

fn event_files(targets: &Targets<'_>) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&targets.events)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".jsonl") && !name.starts_with(MOVED) {
            files.push(path);
        }
    }
    Ok(files)
}

pub fn fill_disk(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    fill(targets, fault, |disks| vec![&disks.events])
}

pub fn hang_disk(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    hang(targets, fault, |disks| &disks.events)
}
