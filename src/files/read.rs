//! Reads small files that a person named: configuration, secrets, certificates.
//!
//! It never waits for a named pipe and never reads without a limit.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Reads a regular file, or the first `max + 1` bytes of a longer one, which the caller refuses. A named pipe or a device could
/// block or never end, so only what the caller has opened itself (`/dev/stdin`, `/dev/fd/63`) may be one.
///
/// # Errors
/// The operating system's error, or what the file is if it is not a regular one.
pub fn read_limited(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let opened_by_caller = path.starts_with("/dev/fd") || path.starts_with("/proc") || path == Path::new("/dev/stdin");
    let mut bytes = Vec::new();
    let file = if opened_by_caller { File::open(path)? } else { open_regular(path)? };
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_regular(path: &Path) -> io::Result<File> {
    // Before it is opened, because opening a device can have an effect.
    check_regular(&fs::metadata(path)?)?;
    // Without NONBLOCK, opening a pipe that has replaced the file in the meantime would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

fn check_regular(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let problem = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_a_device_and_a_directory_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [&pipe, &link, Path::new("/dev/zero"), directory.path()] {
            assert_eq!(read_limited(path, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
    }

    #[test]
    fn of_a_file_that_is_too_long_only_one_byte_more_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        assert_eq!(read_limited(file.path(), 10).unwrap().len(), 11);
        file.as_file().set_len(10).unwrap();
        assert_eq!(read_limited(file.path(), 10).unwrap().len(), 10);
    }

    #[test]
    fn a_pipe_that_the_caller_has_opened_is_read() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(b"secret").unwrap();
        drop(write);
        let path = format!("/dev/fd/{}", read.as_raw_fd());
        assert_eq!(read_limited(Path::new(&path), 100).unwrap(), b"secret");
    }
}
