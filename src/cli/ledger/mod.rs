//! `orderd ledger backup`: copies the ledger of this machine to one file, while the daemon runs or not.
//!
//! The result goes to standard output, progress and errors go to standard error.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::output::write_json;
use super::report::ledger_exit;
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::Config;
use crate::escape::escaped;
use crate::ledger::{BackupError, BackupProgress, BackupSummary};

/// Arguments of `orderd ledger`.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Copy the ledger to one file while the daemon runs, and verify the copy
    Backup(BackupArgs),
}

#[derive(Debug, Args)]
struct BackupArgs {
    /// File to write; its directory must exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace an earlier backup, once the new backup is complete
    #[arg(long)]
    force: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is printed in JSON. It is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize)]
struct BackupReport {
    #[serde(flatten)]
    summary: BackupSummary,
    /// Duration of the copy and its verification.
    seconds: f64,
}

/// Runs the command.
///
/// Returns the exit code: 0, 64 if the file exists or cannot be used for a backup, 70 if the backup failed or was
/// interrupted, 78 if there is no ledger to copy.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: LedgerArgs, config: &Config, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let LedgerCommand::Backup(args) = args.command;
    let (location, started) = (config.ledger.location(), Instant::now());
    let interrupted = Arc::new(AtomicBool::new(false));
    let _interrupting = stop_at_signal(Arc::clone(&interrupted))?;
    let (file, force) = (args.file, args.force);
    let copying = tokio::task::spawn_blocking(move || {
        let bar = progress_bar();
        let result = location.back_up(&file, force, &|progress| show(&bar, progress), &interrupted);
        bar.finish_and_clear();
        result
    });
    match copying.await.expect("a backup does not panic and is never cancelled") {
        Ok(summary) => {
            let report = BackupReport { summary, seconds: started.elapsed().as_secs_f64() };
            match args.format {
                Format::Json => write_json(&report, out)?,
                Format::Text => write_text(&report, out)?,
            }
            Ok(Exit::Done)
        }
        Err(error) => {
            writeln!(err, "orderd: {}", chain(&error))?;
            Ok(match &error {
                BackupError::Ledger(error) => ledger_exit(error),
                error if error.is_usage() => Exit::Usage,
                _ => Exit::Internal,
            })
        }
    }
}

/// Sets the flag at SIGINT or SIGTERM, until the returned task is dropped with its runtime.
fn stop_at_signal(interrupted: Arc<AtomicBool>) -> io::Result<tokio::task::JoinHandle<()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(tokio::spawn(async move {
        // Cancel-safe: a signal that arrives is not lost by the other branch.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        interrupted.store(true, Ordering::Relaxed);
    }))
}

/// A progress bar; hidden unless standard error is a terminal.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}  {msg}  {elapsed}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(bar: &ProgressBar, progress: BackupProgress) {
    match progress {
        BackupProgress::Copying { done, total } => {
            bar.set_length(total);
            bar.set_position(done);
        }
        BackupProgress::Verifying => bar.set_message("verifying"),
    }
}

fn write_text(report: &BackupReport, out: &mut dyn Write) -> io::Result<()> {
    let BackupReport { summary, seconds } = report;
    let rows = |table: &str| summary.rows.get(table).copied().unwrap_or(0);
    writeln!(
        out,
        "copied {} to {}: {}, {} orders, {} events, {} dead letters; verified; took {:#}",
        escaped(&summary.ledger.to_string_lossy()),
        escaped(&summary.file.to_string_lossy()),
        HumanBytes(summary.bytes),
        rows("orders"),
        rows("events"),
        rows("dead_letters"),
        HumanDuration(Duration::from_secs_f64(*seconds)),
    )
}
