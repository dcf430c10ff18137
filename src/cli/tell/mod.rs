//! `orderd reload`, `orderd pause`, `orderd resume`: tell the running daemon something, and show what became of it.
//!
//! The answer goes to standard output, why there is none to standard error. It changes nothing itself.

mod text;

use std::io::{self, Write};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ask::{AskError, Client, Whom};
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::Sources;
use crate::control::{ConfigChange, Effect, PauseReport, ReloadOutcome, ReloadReport};

/// Arguments of `orderd reload`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    whom: Whom,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `orderd pause` and `orderd resume`.
#[derive(Debug, Clone, clap::Args)]
pub struct IntakeArgs {
    /// The consumer's name, such as order
    #[arg(value_parser = name)]
    consumer: String,
    #[command(flatten)]
    whom: Whom,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A name as configurations have them, which can stand in a path.
fn name(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !text.is_empty() && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("names are lower-case letters, digits and underscores")
    }
}

/// Has the daemon read its configuration again.
///
/// Returns the exit code: 0 only if everything asked for is in force, 1 if part of it waits for a restart or a person,
/// 78 if it was rejected, 69 if it was for nothing but what passes, or if no daemon answers.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn reload(args: ReloadArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let answer = match args.whom.find(sources, err)? {
        Ok(client) => tell::<ReloadReport>(&client, "/api/v1/reload").await,
        Err(error) => Err(error),
    };
    let (told, verdict) = match answer {
        Ok(answer) => answer,
        Err(error) => return refuse(&error, args.format, out, err),
    };
    match args.format {
        Format::Text => text::verdict(&verdict, out)?,
        Format::Json => writeln!(out, "{told:#}")?,
    }
    Ok(match verdict.outcome {
        ReloadOutcome::Unchanged | ReloadOutcome::Applied => Exit::Done,
        ReloadOutcome::PartlyApplied => Exit::Refused,
        ReloadOutcome::Rejected if verdict.temporary => Exit::Unavailable,
        ReloadOutcome::Rejected => Exit::Config,
    })
}

/// Has the daemon pause or resume a consumer.
///
/// Returns the exit code: 0 if it is so now, 64 if there is no such consumer, 69 if no daemon answers, 70 if it cannot be
/// remembered.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn intake(
    args: IntakeArgs,
    pause: bool,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let path = format!("/api/v1/consumers/{}/{}", args.consumer, if pause { "pause" } else { "resume" });
    let answer = match args.whom.find(sources, err)? {
        Ok(client) => tell::<PauseReport>(&client, &path).await,
        Err(error) => Err(error),
    };
    let (told, intake) = match answer {
        Ok(answer) => answer,
        Err(error) => return refuse(&error, args.format, out, err),
    };
    match args.format {
        Format::Text => text::intake(&intake, out)?,
        Format::Json => writeln!(out, "{told:#}")?,
    }
    Ok(Exit::Done)
}

async fn tell<T: DeserializeOwned>(client: &Client, path: &str) -> Result<(Value, T), AskError> {
    client.command(path).await
}

fn refuse(error: &AskError, format: Format, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    if let (AskError::Control(error), Format::Json) = (error, format) {
        let told = serde_json::to_value(error).expect("an error is words and names");
        writeln!(out, "{told:#}")?;
    }
    writeln!(err, "orderd: {}", chain(error))?;
    Ok(match error {
        // 78 says that the new configuration was rejected.
        AskError::Nowhere { .. } => Exit::Unavailable,
        other => other.exit(),
    })
}

/// One line about a changed key: its values, and when the new one is in force.
pub(super) fn change_line(change: &ConfigChange, outcome: ReloadOutcome) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    let when = match (outcome, change.effect) {
        (ReloadOutcome::Rejected, _) => "not applied",
        (_, Effect::Live) => "in force",
        (_, Effect::Restart) => "needs a restart",
        (_, Effect::Broker) => "in force once the broker is changed too",
    };
    format!("{}: {} → {}, {when}", change.key, value(&change.from), value(&change.to))
}
