//! Small file systems of their own for the ledger and for the event files, which can be filled and frozen. Only root can
//! mount them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The size of the file system.
const SIZE: u64 = 1 << 30;

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Disk {
    /// Unmounts what an interrupted run has left mounted there.
    pub fn unmount_leftover(path: &Path) {
        if fs::read_to_string("/proc/mounts").is_ok_and(|mounts| mounts.contains(&*path.to_string_lossy())) {
            let _ = run("fsfreeze", &["-u".as_ref(), path]);
            let _ = run("umount", &["-l".as_ref(), path]);
        }
    }

    /// Makes an image at `<path>.img` and mounts it.
    ///
    /// # Errors
    /// The user is not root, or a program is missing.
    pub fn mount(path: PathBuf) -> io::Result<Disk> {
        let image = path.with_extension("img");
        fs::File::create(&image)?.set_len(SIZE)?;
        fs::create_dir_all(&path)?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image])?;
        run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &path])?;
        Ok(Disk { path })
    }

    /// Fills it until nothing more can be written.
    pub fn fill(&self) -> io::Result<()> {
        let (mut size, mut number) = (SIZE, 0);
        while size >= 4096 {
            number += 1;
            let (length, file) = (size.to_string(), self.path.join(format!("filler-{number}")));
            // Without enough space, it fails, and may have taken some.
            if run("fallocate", &["-l".as_ref(), length.as_ref(), &file]).is_err() {
                size /= 2;
            }
        }
        Ok(())
    }

    /// Frees the space again.
    pub fn free(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("filler") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Makes every write wait.
    pub fn freeze(&self) -> io::Result<()> {
        run("fsfreeze", &["-f".as_ref(), &self.path])
    }

    /// Lets writes continue.
    pub fn thaw(&self) -> io::Result<()> {
        run("fsfreeze", &["-u".as_ref(), &self.path])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Disk::unmount_leftover(&self.path);
    }
}

fn run(program: &str, arguments: &[&Path]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}
