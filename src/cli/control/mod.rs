//! `orderd reload`, `orderd pause`, `orderd resume`: send a command to the running daemon and print the result.
//!
//! The result goes to standard output, errors go to standard error. It changes nothing itself.

mod text;

use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;

use super::admin_client::{AdminClientError, DaemonTarget};
use super::output::write_json;
use super::{Exit, Format};
use crate::admin::COMMAND_TIMEOUT;
use crate::chain::chain;
use crate::config::{Sources, duration};
use crate::control::{PauseReport, ReloadOutcome, ReloadReport};

/// Arguments of `orderd reload`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Give up after this long, from 1s to 100s; the daemon does not carry out the command later
    #[arg(long, value_name = "DURATION", default_value = "100s", value_parser = timeout)]
    timeout: Duration,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `orderd pause` and `orderd resume`.
#[derive(Debug, Clone, clap::Args)]
pub struct PauseArgs {
    /// Name of the consumer, such as order
    #[arg(value_parser = consumer_name)]
    consumer: String,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Give up after this long, from 1s to 100s; the daemon does not carry out the command later
    #[arg(long, value_name = "DURATION", default_value = "100s", value_parser = timeout)]
    timeout: Duration,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text)?;
    let range = Duration::from_secs(1)..=COMMAND_TIMEOUT;
    if range.contains(&timeout) { Ok(timeout) } else { Err("must be from 1s to 100s".to_owned()) }
}

/// A name as the configuration allows it. Such a name needs no escaping in a URL.
fn consumer_name(text: &str) -> Result<String, &'static str> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !text.is_empty() && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err("must consist of lower-case letters, digits and underscores")
    }
}

/// Makes the daemon reload its configuration.
///
/// Returns the exit code: 0 if all changes are active, 1 if some need a restart or a change at the broker, or if the broker does
/// not match the configuration, 78 if the
/// configuration was rejected, 69 if it was rejected for a temporary reason or if no daemon answers.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn reload(args: ReloadArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let answer: Result<(Value, ReloadReport), _> = match args.daemon.client(sources, err)? {
        Ok(client) => client.command("/api/v1/reload", args.timeout).await,
        Err(error) => Err(error),
    };
    let (json, report) = match answer {
        Ok(answer) => answer,
        Err(error) => return report_error(&error, args.format, out, err),
    };
    match args.format {
        Format::Text => text::write_reload(&report, out)?,
        Format::Json => write_json(&json, out)?,
    }
    Ok(match report.outcome {
        ReloadOutcome::Unchanged | ReloadOutcome::Applied if report.problems.is_empty() => Exit::Done,
        ReloadOutcome::Unchanged | ReloadOutcome::Applied | ReloadOutcome::PartlyApplied => Exit::Refused,
        ReloadOutcome::Rejected if report.temporary => Exit::Unavailable,
        ReloadOutcome::Rejected => Exit::Config,
    })
}

/// Pauses or resumes a consumer of the daemon.
///
/// Returns the exit code: 0 if the consumer is paused or resumed now, 64 if there is no such consumer, 69 if no daemon
/// answers, 70 if the pause cannot be written to disk.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn set_paused(
    args: PauseArgs,
    paused: bool,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let path = format!("/api/v1/consumers/{}/{}", args.consumer, if paused { "pause" } else { "resume" });
    let answer: Result<(Value, PauseReport), _> = match args.daemon.client(sources, err)? {
        Ok(client) => client.command(&path, args.timeout).await,
        Err(error) => Err(error),
    };
    let (json, report) = match answer {
        Ok(answer) => answer,
        Err(error) => return report_error(&error, args.format, out, err),
    };
    match args.format {
        Format::Text => text::write_pause(&report, out)?,
        Format::Json => write_json(&json, out)?,
    }
    Ok(Exit::Done)
}

fn report_error(
    error: &AdminClientError,
    format: Format,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    if let (AdminClientError::Control(error), Format::Json) = (error, format) {
        let json = serde_json::to_value(error).expect("a control error is made of strings and numbers");
        write_json(&json, out)?;
    }
    writeln!(err, "orderd: {}", chain(error))?;
    Ok(match error {
        // 78 would mean that the daemon rejected the new configuration.
        AdminClientError::NoAddress { .. } => Exit::Unavailable,
        other => other.exit(),
    })
}
