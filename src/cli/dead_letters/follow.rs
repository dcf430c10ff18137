//! Follows a replay until it has ended. The replay does not depend on it.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Asked;
use crate::cli::admin_client::{AdminClient, AdminClientError};
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::dead_letters::ReplayReport;
use crate::escape::escaped;
use crate::ledger::LetterProgress;

/// How often the daemon is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long the daemon may be away, for example while it is restarted.
const MAX_ABSENCE: Duration = Duration::from_secs(60);

/// Writes how far the replay is to `err` whenever that changes, and its end to `out`.
pub(super) async fn follow(
    client: &AdminClient,
    id: i64,
    format: Format,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let path = format!("replays/{id}");
    let (mut last, mut answered_at) = (String::new(), Instant::now());
    loop {
        let answer = tokio::select! {
            answer = client.dead_letters::<ReplayReport>(&path, None) => answer,
            _ = tokio::signal::ctrl_c() => return detached(id, err).map(Ok),
        };
        match answer {
            Ok((json, report)) => {
                answered_at = Instant::now();
                if report.replay.state.has_ended() {
                    return ended(&json, &report, format, out).map(Ok);
                }
                let line = summary(&report);
                if line != last {
                    writeln!(err, "{line}")?;
                    last = line;
                }
            }
            Err(AdminClientError::Refused { message, is_usage }) => {
                return Ok(Err(AdminClientError::Refused { message, is_usage }));
            }
            Err(error) if answered_at.elapsed() > MAX_ABSENCE => {
                writeln!(
                    err,
                    "orderd: the replay continues as soon as a daemon runs: orderd dead-letters replays {id}"
                )?;
                return Ok(Err(error));
            }
            Err(_) => {}
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = sleep(POLL_INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => return detached(id, err).map(Ok),
        }
    }
}

fn detached(id: i64, err: &mut dyn Write) -> io::Result<Exit> {
    writeln!(
        err,
        "\nreplay {id} continues: follow it with `orderd dead-letters replays {id}`, stop it with `orderd dead-letters replays --stop {id}`"
    )?;
    Ok(Exit::Refused)
}

fn ended(json: &Value, report: &ReplayReport, format: Format, out: &mut dyn Write) -> io::Result<Exit> {
    match format {
        Format::Text => write_report(report, out)?,
        Format::Json => write_json(json, out)?,
    }
    Ok(exit(report))
}

/// 0 if all had their effect.
pub(super) fn exit(report: &ReplayReport) -> Exit {
    let replay = &report.replay;
    let failed = [LetterProgress::FailedAgain, LetterProgress::NotDelivered, LetterProgress::Unknown];
    let failed: u64 = failed.into_iter().map(|progress| replay.count(progress)).sum();
    if failed == 0 && replay.end_reason.is_none() { Exit::Done } else { Exit::Refused }
}

/// One line.
pub(super) fn summary(report: &ReplayReport) -> String {
    let replay = &report.replay;
    let counts: Vec<String> = LetterProgress::ALL
        .iter()
        .filter(|progress| replay.count(**progress) > 0)
        .map(|progress| format!("{} {}", replay.count(*progress), progress.as_str().replace('_', " ")))
        .collect();
    let waits = report.waiting.as_ref().map_or_else(String::new, |reason| format!("; waits: {}", escaped(reason)));
    let state = replay.state.as_str();
    format!(
        "replay {} {state}: {}{waits}",
        replay.id,
        if counts.is_empty() { "nothing yet".to_owned() } else { counts.join(", ") }
    )
}

/// How a replay has ended, or how far it is.
pub(super) fn write_report(report: &ReplayReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", summary(report))?;
    for (reason, letters) in &report.replay.skipped {
        writeln!(out, "  {letters} not replayed: {}", escaped(reason))?;
    }
    for letter in &report.failed_again {
        let code = letter.code.as_deref().unwrap_or("unknown");
        let became = letter.came_back_as.map_or_else(String::new, |id| format!(", now dead letter {id}"));
        writeln!(out, "  dead letter {} failed again: {}{became}", letter.id, escaped(code))?;
    }
    match report.replay.end_reason.as_deref() {
        Some("too_many_failed") => {
            let share = report.replay.options.stop_at * 100.0;
            writeln!(out, "  stopped, because more than {share:.0} % failed again; the rest is as it was")
        }
        Some(reason) => writeln!(out, "  stopped: {}", escaped(reason)),
        None => Ok(()),
    }
}
