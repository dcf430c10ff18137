//! `orderd dead-letters hold`, `release` and `discard`.

use std::io::{self, Write};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Asked;
use super::plan_text::{letters_and_money, write_groups, write_nothing};
use super::progress::Progress;
use super::selection::{Selection, bounded, confirmed, unusable};
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::output::write_json;
use crate::cli::text::counted;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ChangedLetters, LetterChangeKind, LetterRequest};
use crate::escape::escaped;

/// Refused letters that are shown.
const MAX_SHOWN: usize = 20;

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
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), required_unless_present = "dry_run")]
    note: Option<String>,
    /// Do not ask before it is done
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Show which dead letters would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is asked for.
struct Change<'a> {
    action: LetterChangeKind,
    selection: &'a Selection,
    note: &'a str,
    /// Asked before it is done.
    question: Option<&'static str>,
    common: &'a Common,
}

pub(super) async fn hold(
    args: &HoldArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let HoldArgs { selection, note, common } = args;
    change(Change { action: LetterChangeKind::Hold, selection, note, question: None, common }, sources, out, err).await
}

pub(super) async fn release(
    args: &ReleaseArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let ReleaseArgs { selection, common } = args;
    change(Change { action: LetterChangeKind::Release, selection, note: "", question: None, common }, sources, out, err)
        .await
}

pub(super) async fn discard(
    args: &DiscardArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let DiscardArgs { selection, note, yes, common } = args;
    let question = (!yes).then_some("Discard them? They cannot be replayed then.");
    let note = note.as_deref().unwrap_or_default();
    change(Change { action: LetterChangeKind::Discard, selection, note, question, common }, sources, out, err).await
}

async fn change(change: Change<'_>, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Asked> {
    let Change { action, selection, note, question, common } = change;
    let selection = match selection.selection(Timestamp::now()) {
        Ok(selection) => selection,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    let client = match common.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let mut request = LetterRequest { selection, note: note.to_owned(), dry_run: true, after: 0 };
    let planned = match send(&client, action, &mut request, err).await? {
        Ok(planned) => planned,
        Err(error) => return Ok(Err(error)),
    };
    if common.dry_run || planned.changed == 0 {
        return write_planned(action, &planned, common.format, out).map(Ok);
    }
    if let Some(question) = question {
        writeln!(err, "to {}: {}", verb(action), letters_and_money(planned.changed, &planned.groups))?;
        write_groups(&planned.groups, err)?;
        match confirmed(question, err)? {
            Some(true) => {}
            Some(false) => return Ok(Ok(Exit::Refused)),
            None => {
                writeln!(err, "orderd: nothing was done: use --yes, because nobody can be asked here")?;
                return Ok(Ok(Exit::Usage));
            }
        }
    }
    (request.dry_run, request.after) = (false, 0);
    let done = match send(&client, action, &mut request, err).await? {
        Ok(done) => ChangedLetters { groups: planned.groups, ..done },
        Err(error) => return Ok(Err(error)),
    };
    match common.format {
        Format::Json => write_json(&done, out)?,
        Format::Text => {
            writeln!(out, "{}: {}", participle(action), letters_and_money(done.changed, &done.groups))?;
            write_rest(action, &done, out)?;
        }
    }
    Ok(Ok(exit(&done)))
}

/// Sends a request until all letters are dealt with. It is then for what is stored now.
async fn send(
    client: &AdminClient,
    action: LetterChangeKind,
    request: &mut LetterRequest,
    err: &mut dyn Write,
) -> io::Result<Result<ChangedLetters, AdminClientError>> {
    let mut all: Option<ChangedLetters> = None;
    let mut progress: Option<Progress> = None;
    loop {
        let answer = client.dead_letters::<ChangedLetters>(verb(action), Some(&json!(request))).await;
        let answer: (Value, ChangedLetters) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if let Some(done) = all.filter(|_| !request.dry_run) {
                    let done = counted(done.changed, "dead letter");
                    writeln!(err, "orderd: {}: {done}; repeat the command for the rest", participle(action))?;
                }
                return Ok(Err(error));
            }
        };
        bounded(&mut request.selection, answer.1.up_to);
        let changed = match all.take() {
            Some(mut all) => {
                all.add(answer.1);
                all
            }
            None => answer.1,
        };
        let Some(next) = changed.next else { return Ok(Ok(changed)) };
        request.after = next;
        let done = if request.dry_run { "looked at" } else { participle(action) };
        let text = format!("{done}: {}", counted(changed.changed + changed.unchanged, "dead letter"));
        progress.get_or_insert_with(Progress::new).show(&text, err)?;
        all = Some(changed);
    }
}

fn write_planned(
    action: LetterChangeKind,
    planned: &ChangedLetters,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<Exit> {
    match (format, &planned.nothing) {
        (Format::Json, _) => write_json(planned, out)?,
        (Format::Text, Some(nothing)) => {
            let states = if action == LetterChangeKind::Release { "held" } else { "open" };
            write_nothing(nothing, verb(action), states, out)?;
            for (state, letters) in &nothing.other_states {
                writeln!(out, "  {letters} {}", state.as_str())?;
            }
        }
        (Format::Text, None) => {
            writeln!(out, "to {}: {}", verb(action), letters_and_money(planned.changed, &planned.groups))?;
            write_groups(&planned.groups, out)?;
            write_rest(action, planned, out)?;
        }
    }
    Ok(exit(planned))
}

/// Those that are not changed.
fn write_rest(action: LetterChangeKind, changed: &ChangedLetters, out: &mut dyn Write) -> io::Result<()> {
    let ChangedLetters { unchanged, refused, .. } = changed;
    let state = match action {
        LetterChangeKind::Hold => "held",
        LetterChangeKind::Release => "open",
        LetterChangeKind::Discard => "discarded",
    };
    match unchanged {
        0 => {}
        1 => writeln!(out, "  1 was {state} before")?,
        unchanged => writeln!(out, "  {unchanged} were {state} before")?,
    }
    for (id, state) in refused.iter().take(MAX_SHOWN) {
        match state.as_str() {
            "missing" => writeln!(out, "  there is no dead letter {id}")?,
            state => writeln!(out, "  dead letter {id} is {}", escaped(state))?,
        }
    }
    match refused.len().saturating_sub(MAX_SHOWN) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more are in a state that does not allow it"),
    }
}

fn exit(changed: &ChangedLetters) -> Exit {
    match (changed.changed + changed.unchanged, changed.refused.is_empty()) {
        (0, _) => Exit::Nothing,
        (_, true) => Exit::Done,
        (_, false) => Exit::Refused,
    }
}

fn verb(action: LetterChangeKind) -> &'static str {
    match action {
        LetterChangeKind::Hold => "hold",
        LetterChangeKind::Release => "release",
        LetterChangeKind::Discard => "discard",
    }
}

fn participle(action: LetterChangeKind) -> &'static str {
    match action {
        LetterChangeKind::Hold => "held",
        LetterChangeKind::Release => "released",
        LetterChangeKind::Discard => "discarded",
    }
}
