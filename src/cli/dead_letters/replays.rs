//! `orderd dead-letters replays`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::follow::{Until, follow};
use super::interrupt::{Interrupt, interrupted};
use super::letters_json::LettersJson;
use super::letters_text::LettersText;
use super::report_text::{exit, summary, write_report};
use super::{Asked, ledger_of};
use crate::chain::chain;
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::argument::number;
use crate::cli::ledger_source::{LedgerSource, SourceError};
use crate::cli::local_actor::local_actor;
use crate::cli::output::write_json;
use crate::cli::report::ledger_exit;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ListedReplay, ReplayLetters, ReplayReport};
use crate::escape::escaped;
use crate::ledger::{HalfPublished, JournalHead, LedgerLocation, RecordedStop, ReplayState};

/// Arguments of `orderd dead-letters replays`.
#[derive(Debug, Args)]
pub(super) struct ReplaysArgs {
    /// Number of a replay to follow until it has ended; without a daemon, to show as it is recorded
    #[arg(value_name = "ID", value_parser = number)]
    id: Option<i64>,
    /// Stop this replay: what is not published is open again
    #[arg(long, value_name = "ID", conflicts_with = "id", value_parser = number)]
    stop: Option<i64>,
    /// List the dead letters of this replay with what has become of each
    #[arg(long, value_name = "ID", conflicts_with_all = ["id", "stop"], value_parser = number)]
    letters: Option<i64>,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &ReplaysArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    if let Some(id) = args.stop {
        // Before the daemon is asked: it may stop the replay, and answer too late.
        let in_ledger = StopInLedger::prepare(args, id, sources).await;
        return match args.daemon.client(sources, err)? {
            Ok(client) => stop(args, &client, id, in_ledger, out, err).await,
            Err(error @ AdminClientError::NoAddress { .. }) => stop_in_ledger(args, error, in_ledger, out, err).await,
            Err(error) => Ok(Err(error)),
        };
    }
    let source = match LedgerSource::open(&args.daemon, sources, err).await? {
        Ok(opened) => opened.source,
        Err(exit) => return Ok(Ok(exit)),
    };
    let read = match (args.id, args.letters) {
        (Some(id), _) => match &source {
            LedgerSource::Daemon(client) => {
                let mut interrupt = Interrupt::new()?;
                let until = Until::Ended { is_named: false };
                return follow(client, id, until, args.format, &mut interrupt, out, err).await;
            }
            LedgerSource::Ledger { replays, .. } => match source.recorded_replay(&**replays, id).await {
                Ok(report) => return recorded(&report, args.format, out, err).map(Ok),
                Err(error) => Err(error),
            },
        },
        (None, Some(id)) => letters(&source, id, args.format, out).await?,
        (None, None) => list(&source, args.format, out).await?,
    };
    match read {
        Ok(()) => Ok(Ok(Exit::Done)),
        Err(error) => error.report(err).map(Ok),
    }
}

/// A replay in the ledger, which nobody carries out as far as this command knows.
fn recorded(report: &ReplayReport, format: Format, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    match format {
        Format::Text => write_report(report, out)?,
        // With the fields in the order in which a daemon's answer is printed.
        Format::Json => write_json(&json!(report), out)?,
    }
    let is_over = report.replay.state.has_ended() && report.replay.in_flight() == 0;
    if is_over {
        return Ok(exit(report, false));
    }
    writeln!(
        err,
        "orderd: no daemon answers, so this is what the ledger has recorded: the replay continues as soon as a daemon runs"
    )?;
    Ok(Exit::Unavailable)
}

async fn list(source: &LedgerSource, format: Format, out: &mut dyn Write) -> io::Result<Result<(), SourceError>> {
    let list = match source.replays().await {
        Ok(list) => list,
        Err(error) => return Ok(Err(error)),
    };
    match format {
        Format::Json => write_json(&list, out)?,
        Format::Text if list.replays.is_empty() => writeln!(out, "no replays")?,
        Format::Text => {
            for ListedReplay { replay, waiting } in list.replays {
                let (began, by) = (replay.began_at, escaped(&replay.by));
                let report = ReplayReport { replay, waiting, failed_again: Vec::new(), not_replayed: Vec::new() };
                writeln!(out, "{began:.0}  {}  (by {by})", summary(&report))?;
            }
        }
    }
    Ok(Ok(()))
}

async fn letters(
    source: &LedgerSource,
    id: i64,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<Result<(), SourceError>> {
    let (mut after, mut json, mut text) = (0, LettersJson::default(), LettersText::default());
    loop {
        let ReplayLetters { letters, next } = match source.replay_letters(id, after).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error)),
        };
        match format {
            Format::Text => text.write(&letters, out)?,
            Format::Json => json.write(&letters, out)?,
        }
        let Some(next) = next else { break };
        after = next;
    }
    match format {
        Format::Text => text.finish(out)?,
        Format::Json => json.finish(out)?,
    }
    Ok(Ok(()))
}

async fn stop(
    args: &ReplaysArgs,
    client: &AdminClient,
    id: i64,
    in_ledger: Option<StopInLedger>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let mut interrupt = Interrupt::new()?;
    let (path, body) = (format!("replays/{id}/stop"), json!({}));
    let Some(answer) = interrupt.unless(client.dead_letters::<ReplayReport>(&path, Some(&body))).await else {
        let text = format!("the daemon may have stopped it; see `orderd dead-letters replays {id}`");
        return interrupted(&text, err).map(Ok);
    };
    match answer {
        Ok(_) => follow(client, id, Until::Stopped, args.format, &mut interrupt, out, err).await,
        Err(error @ (AdminClientError::Unreachable { .. } | AdminClientError::NoAnswer { .. })) => {
            stop_in_ledger(args, error, in_ledger, out, err).await
        }
        Err(error) => Ok(Err(error)),
    }
}

/// What is stopped in the ledger of this machine, if no daemon answers.
struct StopInLedger {
    id: i64,
    location: LedgerLocation,
    half_published: HalfPublished,
}

impl StopInLedger {
    /// `None` if there is no ledger, and with `--address`: that daemon may use another one.
    async fn prepare(args: &ReplaysArgs, id: i64, sources: &Sources) -> Option<Self> {
        let location = ledger_of(sources).filter(|_| !args.daemon.has_address())?;
        // Only a person who stops it a second time gives up what may be on its way.
        let half_published = match location.replay_reader().replay(id, Timestamp::now()).await {
            Ok(Some(replay)) if replay.state == ReplayState::Stopping => HalfPublished::GiveUp,
            Ok(_) | Err(_) => HalfPublished::Keep,
        };
        Some(StopInLedger { id, location, half_published })
    }
}

/// A replay that was stopped in the ledger, as it is printed.
#[derive(Serialize)]
struct StopReport {
    #[serde(flatten)]
    report: ReplayReport,
    /// The last entry in the journal about it; null if nothing was changed.
    journal: Option<JournalHead>,
}

/// Without a daemon that answers, as when reading a dead letter ends it each time, the replay is stopped in the ledger of this machine.
async fn stop_in_ledger(
    args: &ReplaysArgs,
    error: AdminClientError,
    in_ledger: Option<StopInLedger>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let Some(StopInLedger { id, location, half_published }) = in_ledger else { return Ok(Err(error)) };
    writeln!(err, "orderd: {}; stopping replay {id} in the ledger", escaped(&chain(&error)))?;
    match location.stop_replay(id, &local_actor(), half_published).await {
        Ok(Some(RecordedStop { replay, journal })) => {
            let report = ReplayReport { replay, waiting: None, failed_again: Vec::new(), not_replayed: Vec::new() };
            let stopped = StopReport { report, journal };
            match args.format {
                Format::Text => {
                    write_report(&stopped.report, out)?;
                    if let Some(JournalHead { seq, hash }) = journal {
                        writeln!(out, "  journal: entry {seq}, {hash}")?;
                    }
                }
                Format::Json => write_json(&stopped, out)?,
            }
            Ok(Ok(if stopped.report.replay.state.has_ended() { Exit::Done } else { Exit::Refused }))
        }
        Ok(None) => {
            writeln!(err, "orderd: there is no replay {id}")?;
            Ok(Ok(Exit::Refused))
        }
        Err(error) => {
            writeln!(err, "orderd: cannot use the ledger: {}", chain(&error))?;
            Ok(Ok(ledger_exit(&error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::ledger::conformance::replays::{publish, selected};
    use crate::ledger::sqlite::SqliteLedger;
    use crate::ledger::{JournalQuery, LedgerMaintenance, LedgerReader, LetterProgress, PublishAnswer, ReplayReader};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ReplaysArgs,
    }

    #[tokio::test]
    async fn a_daemon_that_stops_a_replay_and_does_not_answer_leaves_no_second_stop_and_the_journals_last_entry_is_printed()
     {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        selected(&ledger).await;
        assert!(matches!(publish(&ledger, "a", 1, 1).await, PublishAnswer::Publish { .. }));
        let daemon = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = directory.path().join("orderd.toml");
        let text =
            format!("ledger.directory = {:?}\nadmin.listen = \"{}\"\n", directory.path(), daemon.local_addr().unwrap());
        std::fs::write(&config, text).unwrap();
        let sources = Sources { file: Some(config), handlers: crate::handlers::REGISTRY, ..Sources::default() };
        let args = Command::parse_from(["replays", "--stop", "1"]).args;
        let location = LedgerLocation::Directory(directory.path().to_owned());
        let answer = tokio::spawn(async move {
            let (mut connection, _) = daemon.accept().await.unwrap();
            let mut request = [0; 64];
            assert!(connection.read(&mut request).await.unwrap() > 0);
            location.stop_replay(1, "local/ada", HalfPublished::Keep).await.unwrap();
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&args, &sources, &mut out, &mut err).await.unwrap();
        answer.await.unwrap();
        assert!(matches!(exit, Ok(Exit::Refused)), "it is still stopping: {}", String::from_utf8_lossy(&err));
        let letters = async || ledger.replay(1, Timestamp::now()).await.unwrap().unwrap().letters;
        assert_eq!(letters().await.get(&LetterProgress::Publishing), Some(&1));
        // The second one of a person.
        let exit = run(&args, &sources, &mut out, &mut err).await.unwrap();
        assert!(matches!(exit, Ok(Exit::Done)), "{}", String::from_utf8_lossy(&err));
        assert_eq!(letters().await.get(&LetterProgress::Unknown), Some(&1));
        let last =
            ledger.journal(JournalQuery { limit: 1, ..JournalQuery::default() }).await.unwrap().entries.remove(0);
        let printed = String::from_utf8(out).unwrap();
        assert!(printed.ends_with(&format!("journal: entry {}, {}\n", last.seq, last.hash)), "{printed}");
        ledger.close().await;
    }
}
