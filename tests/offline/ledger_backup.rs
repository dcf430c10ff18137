//! `orderd ledger backup`: of a ledger that is being written, and to places where no backup may be written.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;

use jiff::Timestamp;
use orderd::ledger::sqlite::{SqliteLedger, SqliteReader};
use orderd::ledger::{LedgerEntry, LedgerMaintenance, LedgerWriter, NewAttempt};
use serde_json::Value;
use tempfile::TempDir;

fn entry(n: usize) -> LedgerEntry {
    LedgerEntry::Attempt(Box::new(NewAttempt {
        identity: format!("message-{n}"),
        consumer: "order".to_owned(),
        replay: None,
        retry_count: 0,
        kind: "transient",
        code: "stock_unreachable".to_owned(),
        reason: "the stock service did not answer ".repeat(20),
        failed_at: Timestamp::UNIX_EPOCH,
        delay: Some("1s".parse().unwrap()),
    }))
}

fn back_up(directory: &Path, arguments: &[&str]) -> Output {
    let setting = format!("ledger.directory={}", directory.to_str().unwrap());
    let mut command = crate::orderd();
    command.args(["ledger", "backup", "--set", &setting, "--config"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml")).args(arguments);
    command.output().unwrap()
}

/// Asserts the exit code, and returns standard error.
fn refused(directory: &Path, arguments: &[&str], exit_code: i32) -> String {
    let output = back_up(directory, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(exit_code), "{arguments:?}: {stderr}");
    stderr
}

/// A ledger with this many retried attempts, closed.
async fn ledger(directory: &Path, attempts: usize) {
    let ledger = SqliteLedger::open(directory).unwrap();
    for n in 0..attempts {
        ledger.record(entry(n)).await.unwrap();
    }
    ledger.close().await;
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_ledger_that_is_being_written_is_one_complete_snapshot() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let ledger = SqliteLedger::open(source.path()).unwrap();
    let write = |from: usize| {
        let writes: Vec<_> = (from..from + 500).map(|n| ledger.record(entry(n))).collect();
        async {
            for write in writes {
                write.await.unwrap();
            }
        }
    };
    write(0).await;
    let file = target.path().join("orderd.db");
    let (directory, path) = (source.path().to_owned(), file.to_str().unwrap().to_owned());
    let copying = tokio::task::spawn_blocking(move || back_up(&directory, &[&path, "--format", "json"]));
    let mut written = 500;
    while !copying.is_finished() {
        write(written).await;
        written += 500;
    }
    let output = copying.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let copied = report["rows"]["attempts"].as_u64().unwrap();
    assert!(copied >= 500 && copied <= written as u64, "{report}");
    assert_eq!(report["bytes"], fs::metadata(&file).unwrap().len());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(names(target.path()), ["orderd.db"], "the backup is one file");
    ledger.close().await;

    // Restored: it is what it was, and a daemon continues with it.
    assert_eq!(SqliteReader::new(target.path().to_owned()).totals_blocking().unwrap().retried, copied);
    let restored = SqliteLedger::open(target.path()).unwrap();
    restored.record(entry(1_000_000)).await.unwrap();
    restored.close().await;
    assert_eq!(SqliteReader::new(target.path().to_owned()).totals_blocking().unwrap().retried, copied + 1);
}

#[tokio::test]
async fn a_backup_never_damages_what_is_already_there() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    ledger(source.path(), 3).await;
    let file = target.path().join("backup.db");
    let path = file.to_str().unwrap();

    assert!(back_up(source.path(), &[path]).status.success());
    let older = fs::read(&file).unwrap();
    assert!(refused(source.path(), &[path], 64).contains("--force"));
    assert_eq!(fs::read(&file).unwrap(), older);

    let log = target.path().join("backup.db-wal");
    fs::write(&log, "log of another database").unwrap();
    assert!(refused(source.path(), &[path, "--force"], 64).contains("backup.db-wal"));
    fs::remove_file(&log).unwrap();

    let partial = target.path().join("backup.db.partial");
    fs::write(&partial, "another backup").unwrap();
    assert!(refused(source.path(), &[path, "--force"], 64).contains("backup.db.partial"));
    assert_eq!(fs::read_to_string(&partial).unwrap(), "another backup");
    fs::remove_file(&partial).unwrap();
    assert_eq!(fs::read(&file).unwrap(), older);

    refused(source.path(), &[target.path().to_str().unwrap(), "--force"], 64);
    for place in ["missing/backup.db", "backup.db/backup.db"] {
        let problem = refused(source.path(), &[target.path().join(place).to_str().unwrap()], 64);
        assert!(problem.contains("the directory must exist"), "{problem}");
    }
    assert_eq!(names(target.path()), ["backup.db"]);

    ledger(source.path(), 4).await;
    assert!(back_up(source.path(), &[path, "--force"]).status.success());
    assert_eq!(names(target.path()), ["backup.db"]);
    assert_ne!(fs::read(&file).unwrap(), older);
}

#[tokio::test]
async fn a_backup_replaces_neither_a_file_of_the_ledger_nor_anything_but_a_backup() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let running = SqliteLedger::open(source.path()).unwrap();
    running.record(entry(1)).await.unwrap();
    let database = source.path().join("orderd.db");
    let place = |name: &str| target.path().join(name);
    symlink(&database, place("link.db")).unwrap();
    fs::hard_link(&database, place("hard.db")).unwrap();
    symlink(source.path(), place("directory")).unwrap();
    let of_ledger = ["orderd.db", "orderd.db-wal", "orderd.db-shm", "orderd.db-journal", "orderd.db.partial"];
    let of_ledger = of_ledger.iter().flat_map(|name| [source.path().join(name), place("directory").join(name)]);
    for file in of_ledger.chain([place("link.db"), place("hard.db")]) {
        let problem = refused(source.path(), &["--force", file.to_str().unwrap()], 64);
        assert!(problem.contains("the ledger itself"), "{problem}");
    }
    fs::write(place("token"), "secret").unwrap();
    fs::write(place("empty"), "").unwrap();
    rusqlite::Connection::open(place("other.db")).unwrap().execute_batch("CREATE TABLE others (a)").unwrap();
    symlink(place("missing"), place("dangling")).unwrap();
    for file in
        [place("token"), place("empty"), place("other.db"), place("dangling"), "/dev/full".into(), "/dev/null".into()]
    {
        refused(source.path(), &["--force", file.to_str().unwrap()], 64);
    }
    assert_eq!(fs::read_to_string(place("token")).unwrap(), "secret");
    running.record(entry(2)).await.unwrap();
    running.close().await;
    assert_eq!(SqliteReader::new(source.path().to_owned()).totals_blocking().unwrap().retried, 2);
}

#[tokio::test]
async fn nothing_is_left_of_a_backup_that_does_not_fit() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    ledger(source.path(), 100).await;
    let setting = format!("ledger.directory={}", source.path().display());
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
    // A file may have 64 blocks of 512 bytes or 1 KiB, depending on the shell; the backup needs more.
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" ledger backup --config "$1" --set "$2" "$3""#;
    let program = env!("CARGO_BIN_EXE_orderd");
    let mut limited = std::process::Command::new("/bin/sh");
    limited.env_clear().args(["-c", script, program, config, &setting]).arg(target.path().join("backup.db"));
    let output = limited.output().unwrap();
    assert_eq!(output.status.code(), Some(70), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(target.path()), [""; 0]);
}

#[tokio::test]
async fn what_is_not_a_sound_ledger_is_not_backed_up() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = target.path().join("backup.db");
    let path = file.to_str().unwrap();
    assert!(refused(source.path(), &[path], 78).contains("there is no ledger"));

    let database = source.path().join("orderd.db");
    rusqlite::Connection::open(&database).unwrap().execute_batch("CREATE TABLE others (a)").unwrap();
    assert!(refused(source.path(), &[path], 78).contains("another program's"));
    fs::remove_file(&database).unwrap();

    // A page in the middle is overwritten, as by a failing disk.
    ledger(source.path(), 400).await;
    let mut bytes = fs::read(&database).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&database, bytes).unwrap();
    assert!(matches!(back_up(source.path(), &[path]).status.code(), Some(70 | 78)));
    assert_eq!(names(target.path()), [""; 0]);
}
