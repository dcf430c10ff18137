//! A line file for each minute, hour or day: `<name>.<date>.<suffix>`, or one file forever: `<name>.<suffix>`. Times are UTC.
//!
//! It removes only files with such names, and never the current one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use tracing::warn;

use super::last_line::IncompleteLine;
use super::line_file::LineFile;
use super::mode::create_directory;

/// When a new file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Every minute.
    Minutely,
    /// Every hour.
    Hourly,
    /// Every day.
    Daily,
    /// One file forever.
    Never,
}

impl Rotation {
    const DATED: [Rotation; 3] = [Rotation::Minutely, Rotation::Hourly, Rotation::Daily];

    /// The format of the date in a file's name.
    fn date_format(self) -> Option<&'static str> {
        match self {
            Rotation::Minutely => Some("%Y-%m-%d-%H-%M"),
            Rotation::Hourly => Some("%Y-%m-%d-%H"),
            Rotation::Daily => Some("%Y-%m-%d"),
            Rotation::Never => None,
        }
    }

    /// The end of the time that a file with this date covers.
    fn end(self, date: &str) -> Option<Timestamp> {
        let length = match self {
            Rotation::Minutely => 1.minute(),
            Rotation::Hourly => 1.hour(),
            Rotation::Daily => 1.day(),
            Rotation::Never => return None,
        };
        // Parsing a time needs all its fields.
        let padded = match self {
            Rotation::Minutely => date.to_owned(),
            Rotation::Hourly => format!("{date}-00"),
            Rotation::Daily | Rotation::Never => format!("{date}-00-00"),
        };
        let begin = DateTime::strptime("%Y-%m-%d-%H-%M", &padded).ok()?;
        let end = TimeZone::UTC.to_timestamp(begin.checked_add(length).ok()?).ok()?;
        (begin.strftime(self.date_format()?).to_string() == date).then_some(end)
    }
}

/// The names, the place and the number of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolling {
    /// The directory; created if missing.
    pub directory: PathBuf,
    /// What the names begin with.
    pub name: &'static str,
    /// What the names end with.
    pub suffix: &'static str,
    /// When a new file begins.
    pub rotation: Rotation,
    /// The number of dated files that are kept, the current one included.
    pub keep: usize,
    /// The mode of the files.
    pub mode: u32,
}

impl Rolling {
    /// The file that is current at this time.
    pub fn path(&self, now: Timestamp) -> PathBuf {
        let Rolling { directory, name, suffix, rotation, .. } = self;
        match rotation.date_format() {
            Some(format) => directory.join(format!("{name}.{}.{suffix}", now.strftime(format))),
            None => directory.join(format!("{name}.{suffix}")),
        }
    }

    /// The dated files, whatever the rotation was when they were written, with the end of the time each covers; oldest first.
    fn dated_files(&self) -> io::Result<Vec<(Timestamp, PathBuf)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let date = name.to_str().and_then(|name| {
                let rest = name.strip_prefix(self.name)?.strip_prefix('.')?;
                rest.strip_suffix(self.suffix)?.strip_suffix('.')
            });
            let end = date.and_then(|date| Rotation::DATED.into_iter().find_map(|rotation| rotation.end(date)));
            files.extend(end.map(|end| (end, entry.path())));
        }
        files.sort();
        Ok(files)
    }

    /// All files whose names begin with the name and contain the suffix, those that logrotate has renamed included.
    ///
    /// # Errors
    /// The operating system's error. A missing directory has no files.
    pub fn all_files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let (begin, suffix) = (format!("{}.", self.name), format!(".{}", self.suffix));
        let is_one = |name: &str| name.starts_with(&begin) && name.contains(&suffix);
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            files.extend(entry.file_name().to_str().is_some_and(is_one).then(|| entry.path()));
        }
        files.sort();
        Ok(files)
    }

    /// Removes the oldest dated files but [`Rolling::keep`].
    fn remove_excess(&self, current: &Path) -> io::Result<()> {
        let mut files = self.dated_files()?;
        files.truncate(files.len().saturating_sub(self.keep));
        files.iter().filter(|(_, path)| path != current).try_for_each(|(_, path)| remove(path))
    }

    /// Removes dated files of which every line was written before this time. Returns their number.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn remove_older(&self, before: Timestamp) -> io::Result<usize> {
        let files = self.dated_files()?;
        let old = files.iter().take_while(|(end, _)| *end <= before);
        old.map(|(_, path)| remove(path)).try_fold(0, |removed, result| result.map(|()| removed + 1))
    }
}

/// Another instance that shares the directory may have removed it.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The current one of the files.
#[derive(Debug)]
pub struct RollingFile {
    rolling: Rolling,
    incomplete: IncompleteLine,
    path: PathBuf,
    file: LineFile,
}

impl RollingFile {
    /// Opens the file that is current now, creating it and its directory if missing.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn open(rolling: Rolling, incomplete: IncompleteLine, now: Timestamp) -> io::Result<Self> {
        create_directory(&rolling.directory, rolling.mode)?;
        let path = rolling.path(now);
        let file = LineFile::open(path.clone(), rolling.mode, incomplete)?;
        let this = RollingFile { rolling, incomplete, path, file };
        this.remove_excess();
        Ok(this)
    }

    /// Appends whole lines to the file that is current now: [`LineFile::append`].
    ///
    /// # Errors
    /// See [`LineFile::append`].
    pub fn append(&mut self, lines: &[u8], now: Timestamp) -> io::Result<()> {
        self.roll(now)?;
        self.file.append(lines)
    }

    /// See [`LineFile::prove_writable`].
    ///
    /// # Errors
    /// See there.
    pub fn prove_writable(&mut self, bytes: usize, now: Timestamp) -> io::Result<()> {
        self.roll(now)?;
        self.file.prove_writable(bytes)
    }

    /// Opens the file again if it was renamed or deleted.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn reopen_if_replaced(&mut self, now: Timestamp) -> io::Result<()> {
        self.roll(now)?;
        self.file.reopen_if_replaced()
    }

    fn roll(&mut self, now: Timestamp) -> io::Result<()> {
        let path = self.rolling.path(now);
        if path != self.path {
            self.file = LineFile::open(path.clone(), self.rolling.mode, self.incomplete)?;
            self.path = path;
            self.remove_excess();
        }
        Ok(())
    }

    /// A file that cannot be removed does not keep lines from being written.
    fn remove_excess(&self) {
        if let Err(error) = self.rolling.remove_excess(&self.path) {
            let directory = self.rolling.directory.display();
            warn!(%directory, name = self.rolling.name, %error, "cannot remove old files");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FILE_MODE;

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn rolling(directory: &Path, rotation: Rotation, keep: usize) -> Rolling {
        let directory = directory.to_owned();
        Rolling { directory, name: "events", suffix: "jsonl", rotation, keep, mode: FILE_MODE }
    }

    #[test]
    fn a_new_file_begins_with_each_period_and_the_oldest_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let rolling = rolling(directory.path(), Rotation::Hourly, 2);
        let mut file = RollingFile::open(rolling, IncompleteLine::Remove, at("2026-11-22T08:59:59Z")).unwrap();
        for time in ["2026-11-22T08:59:59Z", "2026-11-22T09:00:00Z", "2026-11-22T10:30:00Z", "2026-11-22T10:31:00Z"] {
            file.append(format!("{time}\n").as_bytes(), at(time)).unwrap();
        }
        assert_eq!(names(directory.path()), ["events.2026-11-22-09.jsonl", "events.2026-11-22-10.jsonl"]);
        let last = fs::read_to_string(directory.path().join("events.2026-11-22-10.jsonl")).unwrap();
        assert_eq!(last, "2026-11-22T10:30:00Z\n2026-11-22T10:31:00Z\n");
    }

    #[test]
    fn the_names_are_dated_by_the_rotation() {
        let now = at("2026-11-22T08:01:02Z");
        for (rotation, name) in [
            (Rotation::Minutely, "events.2026-11-22-08-01.jsonl"),
            (Rotation::Hourly, "events.2026-11-22-08.jsonl"),
            (Rotation::Daily, "events.2026-11-22.jsonl"),
            (Rotation::Never, "events.jsonl"),
        ] {
            assert_eq!(rolling(Path::new("/d"), rotation, 1).path(now), Path::new("/d").join(name));
        }
    }

    #[test]
    fn files_that_are_older_are_removed_and_files_of_other_names_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let kept = [
            "events.2026-11-20-01.jsonl",
            "events.2026-11-20.jsonl",
            "events.2026-11-19.jsonl.1",
            "events.2026-1-1.jsonl",
            "events.2026-13-01.jsonl",
            "events.jsonl",
            "events.old.jsonl",
            "other.2026-11-01.jsonl",
        ];
        for name in
            kept.iter().chain(&["events.2026-11-19.jsonl", "events.2026-11-19-23.jsonl", "events.2026-11-20-00.jsonl"])
        {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let rolling = rolling(directory.path(), Rotation::Daily, 100);
        assert_eq!(rolling.remove_older(at("2026-11-20T01:30:00Z")).unwrap(), 3);
        let mut expected = kept.map(str::to_owned);
        expected.sort();
        assert_eq!(names(directory.path()), expected);
    }
}
