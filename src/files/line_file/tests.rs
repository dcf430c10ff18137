//! Lines that are appended, repaired and proven possible, also on full disks and beside other writers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::de::IgnoredAny;

use super::*;
use crate::files::FILE_MODE;

/// Ends a watching thread, also when an assertion fails: `thread::scope` waits for it.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open(path: &Path) -> LineFile {
    LineFile::open(path.to_owned(), FILE_MODE, IncompleteLine::Remove).unwrap()
}

#[test]
fn an_incomplete_line_is_never_glued_to_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let long = "x".repeat(200_000);
    for (found, expected) in [
        ("{\"id\":1}\n{\"id\":2", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
        ("{\"id\":2", "{\"id\":3}\n".to_owned()),
        ("{\"id\":1}\n\0\0\0\0", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
        ("{\"id\":1}\n12", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
        ("{\"id\":1}", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
        (&format!("{{\"id\":1}}\n{{\"id\":\"{long}"), "{\"id\":1}\n{\"id\":3}\n".to_owned()),
        (&format!("{{\"id\":\"{long}\"}}"), format!("{{\"id\":\"{long}\"}}\n{{\"id\":3}}\n")),
    ] {
        fs::write(&path, found).unwrap();
        open(&path).append(b"{\"id\":3}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }
}

#[test]
fn text_that_was_cut_off_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, "one\ntw").unwrap();
    let mut log = LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Terminate).unwrap();
    log.append(b"three\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntw\nthree\n");
}

#[test]
fn a_line_is_written_to_the_path_after_the_file_or_its_directory_was_moved_or_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("log");
    let path = folder.join("events");
    let mut events = open(&path);
    let mut append = |line: &[u8]| {
        events.append(line).unwrap();
        fs::read(&path).unwrap()
    };
    assert_eq!(append(b"1\n"), b"1\n");
    fs::rename(&path, folder.join("events.1")).unwrap();
    assert_eq!(append(b"2\n"), b"2\n");
    fs::remove_file(&path).unwrap();
    assert_eq!(append(b"3\n"), b"3\n");
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(append(b"4\n"), b"4\n");
    // As with logrotate's `copytruncate`.
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(append(b"5\n"), b"5\n");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&folder)), (0o640, 0o750));
}

#[test]
fn an_existing_file_gets_the_mode() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    open(&path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn writers_that_share_a_file_leave_each_others_lines_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let writers = [1, 2, 3, 4].map(|writer| {
        let path = path.clone();
        thread::spawn(move || {
            let mut file = open(&path);
            for n in 0..50 {
                // A crash in the middle of a line, without the lock that a real one would have held.
                if n % 10 == 0 {
                    let lock = Lock::take(file.current().unwrap()).unwrap();
                    (&mut &*lock.file).write_all(b"{\"id\":\"cut").unwrap();
                }
                file.append(format!("{{\"id\":\"{writer}-{n}\"}}\n").as_bytes()).unwrap();
            }
        })
    });
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let text = fs::read_to_string(&path).unwrap();
    let ids: std::collections::BTreeSet<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((ids.len(), text.lines().count()), (200, 200));
}

/// The file of the child process in the next test.
const CHILD_FILE: &str = "ORDERD_TEST_LIMITED_FILE";

/// Run by the next test in a process with a limit on the size of files, which cuts a write off as a full disk does.
#[test]
#[ignore = "needs a limit on the size of files"]
fn append_until_the_disk_is_full() {
    let mut file = open(Path::new(&std::env::var_os(CHILD_FILE).unwrap()));
    let line = format!("{{\"id\":\"{}\"}}\n", "x".repeat(400));
    while file.append(line.as_bytes()).is_ok() {}
    file.append(b"{\"id\":1}\n").unwrap();
}

#[test]
fn a_full_disk_leaves_no_part_of_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let program = std::env::current_exe().unwrap();
    let child = "files::line_file::tests::append_until_the_disk_is_full";
    // 8 blocks of 512 or 1024 bytes; without the signal, a write that is cut off is an error.
    let script = format!("trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact {child} --ignored");
    let run = std::process::Command::new("sh").args(["-c", &script]).arg(program).env(CHILD_FILE, &path).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() > 5 && text.ends_with("{\"id\":1}\n"), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<IgnoredAny>(line).is_ok()), "{text}");
}

mod as_root {
    use std::process::Command;

    use super::*;

    /// Unmounted when dropped.
    struct Mount<'a>(&'a Path);

    impl Drop for Mount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }

    /// `tail -F` takes a file that shrinks for another one, and shows all of it again.
    #[test]
    #[ignore = "needs root, who can mount a file system"]
    fn a_file_never_grows_and_shrinks_again_while_its_disk_is_full() {
        let directory = tempfile::tempdir().unwrap();
        for options in ["-ttmpfs", "-tramfs"] {
            let mounted = Command::new("mount").args([options, "-osize=64k", "tmpfs"]).arg(directory.path()).status();
            assert!(mounted.unwrap().success());
            let _mount = Mount(directory.path());
            let path = directory.path().join("events");
            let mut events = open(&path);
            let is_limited = options == "-ttmpfs";
            let mut lines = 0_u64;
            while lines < 1_000 && events.append(format!("{}\n", "x".repeat(99)).as_bytes()).is_ok() {
                lines += 1;
            }
            assert_eq!(lines < 1_000, is_limited, "{options}");
            let changed = AtomicBool::new(false);
            let ended = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        let length = fs::metadata(&path).unwrap().len();
                        changed.fetch_or(length != lines * 100, Ordering::Relaxed);
                    }
                });
                let _ending = EndOnDrop(&ended);
                for _ in 0..2_000 {
                    if is_limited {
                        assert!(events.append(&[b'x'; 9_999]).is_err());
                    }
                    assert_eq!(events.prove_writable(9_999).is_err(), is_limited);
                }
            });
            assert!(!changed.load(Ordering::Relaxed), "{options}");
        }
    }
}

#[test]
fn a_log_may_be_a_device_and_what_must_be_durable_is_written_to_regular_files_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lines");
    for device in ["/dev/null", "/dev/full"] {
        std::os::unix::fs::symlink(device, &path).unwrap();
        let mut log = LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Terminate).unwrap();
        assert_eq!(log.append(b"1\n").is_ok(), device == "/dev/null");
        assert!(LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Remove).is_err(), "{device}");
        fs::remove_file(&path).unwrap();
    }
    let mut events = open(&path);
    events.append(b"1\n").unwrap();
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let cause = |error: &io::Error| crate::files::FileOutageCause::of(error);
    let not_a_file = crate::files::FileOutageCause::NotAFile;
    assert_eq!(events.append(b"2\n").map_err(|error| cause(&error)), Err(not_a_file));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(events.append(b"2\n").map_err(|error| cause(&error)), Err(not_a_file));
    fs::remove_dir(&path).unwrap();
    events.append(b"2\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"2\n");
}

#[test]
fn proving_that_a_file_can_be_written_never_changes_its_length() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let mut events = open(&path);
    events.append(b"{}\n").unwrap();
    let ended = AtomicBool::new(false);
    let has_ended = || ended.load(Ordering::Relaxed);
    let changed = thread::scope(|scope| {
        let (path, has_ended) = (&path, &has_ended);
        let length = move || fs::metadata(path).unwrap().len();
        let watching =
            scope.spawn(move || std::iter::from_fn(|| (!has_ended()).then(length)).any(|length| length != 3));
        let ending = EndOnDrop(&ended);
        for _ in 0..100 {
            events.prove_writable(100_000).unwrap();
        }
        drop(ending);
        watching.join().unwrap()
    });
    assert!(!changed);
    assert_eq!(fs::read(&path).unwrap(), b"{}\n");
    let names = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names().collect::<Vec<_>>(), ["events"]);
    events.append(b"{}\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"{}\n{}\n");
}
