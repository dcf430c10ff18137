//! `orderd dead-letters hold`, `release` and `discard`.

use std::io::{self, Write};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Asked;
use super::selection::{Selection, confirmed, unusable};
use crate::cli::admin_client::DaemonTarget;
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ChangedLetters, LetterRequest};
use crate::escape::escaped;
use crate::ledger::LetterSelection;

/// Arguments of `orderd dead-letters hold`.
#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    #[command(flatten)]
    selection: Selection,
    /// Why, such as the link of a ticket
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    note: String,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `orderd dead-letters release`.
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `orderd dead-letters discard`.
#[derive(Debug, Args)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    selection: Selection,
    /// Why they are not needed
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    note: String,
    /// Do not ask before it is done
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn hold(
    args: &HoldArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let selection = args.selection.selection(Timestamp::now());
    send("hold", selection, &args.note, &args.common, sources, (out, err)).await
}

pub(super) async fn release(
    args: &ReleaseArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let selection = args.selection.selection(Timestamp::now());
    send("release", selection, "", &args.common, sources, (out, err)).await
}

pub(super) async fn discard(
    args: &DiscardArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let selection = args.selection.selection(Timestamp::now());
    if !args.yes && selection.is_ok() {
        match confirmed("Discard these dead letters? They cannot be replayed then.", err)? {
            Some(true) => {}
            Some(false) => return Ok(Ok(Exit::Refused)),
            None => {
                writeln!(err, "orderd: not discarded: use --yes, because nobody can be asked here")?;
                return Ok(Ok(Exit::Usage));
            }
        }
    }
    send("discard", selection, &args.note, &args.common, sources, (out, err)).await
}

async fn send(
    action: &str,
    selection: Result<LetterSelection, &'static str>,
    note: &str,
    common: &Common,
    sources: &Sources,
    (out, err): (&mut dyn Write, &mut dyn Write),
) -> io::Result<Asked> {
    let selection = match selection {
        Ok(selection) => selection,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    let client = match common.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let request = LetterRequest { selection, note: note.to_owned() };
    let (json, changed): (Value, ChangedLetters) = match client.dead_letters(action, Some(&json!(request))).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let ChangedLetters { changed, unchanged, refused } = changed;
    match common.format {
        Format::Json => write_json(&json, out)?,
        Format::Text => {
            let before = if unchanged > 0 { format!(", {unchanged} were so before") } else { String::new() };
            writeln!(out, "{action}: {changed} dead letters{before}")?;
            for (id, state) in &refused {
                writeln!(out, "  dead letter {id} is {}", escaped(state))?;
            }
        }
    }
    Ok(Ok(if refused.is_empty() { Exit::Done } else { Exit::Refused }))
}
