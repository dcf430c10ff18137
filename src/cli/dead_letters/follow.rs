//! Follows a replay until it has ended. The replay does not depend on it.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Asked;
use super::interrupt::{Interrupt, interrupted};
use super::progress::Progress;
use super::report_text::{exit, summary, write_report};
use crate::chain::chain;
use crate::cli::admin_client::{AdminClient, AdminClientError};
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::dead_letters::ReplayReport;
use crate::escape::escaped;

/// How often the daemon is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long the daemon may be away, for example while it is restarted.
const MAX_ABSENCE: Duration = Duration::from_secs(60);
/// How long a stop is followed: what is on its way has its outcome soon, unless the consumer is paused or a retry is due later.
const MAX_STOPPING: Duration = Duration::from_secs(60);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The replay has ended. If it was stopped, also the outcome of what is on its way, for a while.
    Ended {
        /// Each letter was asked for by its number.
        is_named: bool,
    },
    /// It was stopped on request: the same, but not longer than a while in all.
    Stopped,
}

/// Writes how far the replay is to `err` whenever that changes, and its end to `out`.
pub(super) async fn follow(
    client: &AdminClient,
    id: i64,
    until: Until,
    format: Format,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let path = format!("replays/{id}");
    let mut progress = Progress::new();
    let (mut answered_at, mut is_away) = (Instant::now(), false);
    let mut give_up_at = (until == Until::Stopped).then(|| Instant::now() + MAX_STOPPING);
    loop {
        let Some(answer) = interrupt.unless(client.dead_letters::<ReplayReport>(&path, None)).await else {
            return continues(id, progress, err).map(Ok);
        };
        match answer {
            Ok((json, report)) => {
                answered_at = Instant::now();
                if std::mem::take(&mut is_away) {
                    progress.note("the daemon answers again", err)?;
                }
                let has_ended = report.replay.state.has_ended();
                if has_ended && report.replay.in_flight() > 0 && give_up_at.is_none() {
                    give_up_at = Some(Instant::now() + MAX_STOPPING);
                }
                let is_known = has_ended && report.replay.in_flight() == 0;
                if is_known || give_up_at.is_some_and(|at| at <= Instant::now()) {
                    drop(progress);
                    return ended(&json, &report, until, format, out).map(Ok);
                }
                progress.show(&summary(&report), err)?;
            }
            Err(error) if !error.is_absence() => return Ok(Err(error)),
            Err(error) if answered_at.elapsed() > MAX_ABSENCE => {
                let text = "the replay continues as soon as a daemon runs: orderd dead-letters replays";
                progress.note(&format!("orderd: {text} {id}"), err)?;
                return Ok(Err(error));
            }
            Err(error) => {
                if !std::mem::replace(&mut is_away, true) {
                    let error = escaped(&chain(&error));
                    progress.note(&format!("waiting for the daemon, which continues the replay: {error}"), err)?;
                }
            }
        }
        if interrupt.unless(sleep(POLL_INTERVAL)).await.is_none() {
            return continues(id, progress, err).map(Ok);
        }
    }
}

fn continues(id: i64, progress: Progress, err: &mut dyn Write) -> io::Result<Exit> {
    drop(progress);
    let text = format!(
        "replay {id} continues; follow it with `orderd dead-letters replays {id}`, stop it with `orderd dead-letters replays --stop {id}`"
    );
    interrupted(&text, err)
}

fn ended(json: &Value, report: &ReplayReport, until: Until, format: Format, out: &mut dyn Write) -> io::Result<Exit> {
    match format {
        Format::Text => write_report(report, out)?,
        Format::Json => write_json(json, out)?,
    }
    Ok(match until {
        Until::Ended { is_named } => exit(report, is_named),
        Until::Stopped if report.replay.state.has_ended() => Exit::Done,
        Until::Stopped => Exit::Refused,
    })
}

impl AdminClientError {
    /// Whether the daemon may answer later.
    fn is_absence(&self) -> bool {
        match self {
            AdminClientError::Unreachable { .. }
            | AdminClientError::UnreachableAddress { .. }
            | AdminClientError::NoAnswer { .. }
            | AdminClientError::NoAnswerToCommand { .. }
            | AdminClientError::CutOff { .. }
            | AdminClientError::Busy { .. } => true,
            AdminClientError::Load(_)
            | AdminClientError::TokenFile { .. }
            | AdminClientError::NoAddress { .. }
            | AdminClientError::Client(_)
            | AdminClientError::Rejected { .. }
            | AdminClientError::NotOrderd { .. }
            | AdminClientError::AnotherDaemon { .. }
            | AdminClientError::Control(_)
            | AdminClientError::Refused { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::admin_client::DaemonTarget;
    use crate::handlers;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        daemon: DaemonTarget,
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_stays_away_is_waited_for_a_minute() {
        // Nothing listens on this port.
        let target = Command::try_parse_from(["test", "--address", "127.0.0.1:1"]).unwrap().daemon;
        let client = target.client(&handlers::sources(), &mut io::sink()).unwrap().unwrap();
        let (mut interrupt, mut out, mut err) = (Interrupt::new().unwrap(), Vec::new(), Vec::new());
        let begun = Instant::now();
        let followed =
            follow(&client, 7, Until::Ended { is_named: false }, Format::Text, &mut interrupt, &mut out, &mut err)
                .await
                .unwrap();
        assert_eq!(followed.unwrap_err().exit(), Exit::Unavailable);
        assert!((MAX_ABSENCE..MAX_ABSENCE + 10 * POLL_INTERVAL).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        let shown = String::from_utf8(err).unwrap();
        assert_eq!(shown.matches("waiting for the daemon").count(), 1, "{shown}");
        assert!(shown.contains("continues as soon as a daemon runs: orderd dead-letters replays 7"), "{shown}");
        assert!(out.is_empty());
    }
}
