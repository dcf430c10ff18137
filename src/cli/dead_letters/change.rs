//! `orderd dead-letters hold`, `release` and `discard`.

use std::io::{self, Write};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Asked;
use super::interrupt::{Interrupt, interrupted};
use super::plan_text::{letters_and_money, write_groups, write_nothing};
use super::progress::Progress;
use super::selection::{Answer, Selection, ask, bounded, states_of, unusable};
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::output::write_json;
use crate::cli::text::counted;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ChangedLetters, LetterChangeKind, LetterRequest};
use crate::escape::escaped;
use crate::ledger::LetterState;

/// Refused letters that are shown.
const MAX_SHOWN: usize = 20;

/// Arguments of `orderd dead-letters hold`.
#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only those in this state [default: open]
    #[arg(long, value_name = "STATE", value_parser = states_of(LetterChangeKind::Hold))]
    state: Option<LetterState>,
    /// Why, such as the link of a ticket
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), required_unless_present = "dry_run")]
    note: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `orderd dead-letters release`.
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only those in this state [default: held; with --replay: replaying]
    #[arg(long, value_name = "STATE", value_parser = states_of(LetterChangeKind::Release))]
    state: Option<LetterState>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `orderd dead-letters discard`.
#[derive(Debug, Args)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only those in this state [default: open]
    #[arg(long, value_name = "STATE", value_parser = states_of(LetterChangeKind::Discard))]
    state: Option<LetterState>,
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

impl HoldArgs {
    /// Whether it changes nothing.
    pub(super) fn is_dry_run(&self) -> bool {
        self.common.dry_run
    }
}

impl ReleaseArgs {
    /// Whether it changes nothing.
    pub(super) fn is_dry_run(&self) -> bool {
        self.common.dry_run
    }
}

impl DiscardArgs {
    /// Whether it changes nothing.
    pub(super) fn is_dry_run(&self) -> bool {
        self.common.dry_run
    }
}

/// What is asked for.
struct Change<'a> {
    action: LetterChangeKind,
    selection: &'a Selection,
    state: Option<LetterState>,
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
    let HoldArgs { selection, state, note, common } = args;
    let state = *state;
    let note = note.as_deref().unwrap_or_default();
    change(Change { action: LetterChangeKind::Hold, selection, state, note, question: None, common }, sources, out, err)
        .await
}

pub(super) async fn release(
    args: &ReleaseArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let ReleaseArgs { selection, state, common } = args;
    let state = *state;
    change(
        Change { action: LetterChangeKind::Release, selection, state, note: "", question: None, common },
        sources,
        out,
        err,
    )
    .await
}

pub(super) async fn discard(
    args: &DiscardArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let DiscardArgs { selection, state, note, yes, common } = args;
    let state = *state;
    let question = (!yes).then_some("Discard them? They cannot be replayed then.");
    let note = note.as_deref().unwrap_or_default();
    change(Change { action: LetterChangeKind::Discard, selection, state, note, question, common }, sources, out, err)
        .await
}

async fn change(change: Change<'_>, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Asked> {
    let Change { action, selection, state, note, question, common } = change;
    let selection = match selection.selection(state, Timestamp::now()) {
        Ok(selection) => selection,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    let client = match common.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let mut request = LetterRequest { selection, note: note.to_owned(), dry_run: true, after: 0 };
    let mut interrupt = Interrupt::new()?;
    let planned = match send(&client, action, &mut request, &mut interrupt, err).await? {
        Sent::Answered(planned) => planned,
        Sent::Failed(error) => return Ok(Err(error)),
        Sent::Interrupted => return Ok(Ok(Exit::Interrupted)),
    };
    if common.dry_run || planned.changed == 0 {
        let state = state.unwrap_or_else(|| action.default_state(&request.selection));
        return write_planned((action, state), &planned, common.format, out).map(Ok);
    }
    if question.is_some() || (action == LetterChangeKind::Discard && common.format == Format::Text) {
        writeln!(err, "to {}: {}", verb(action), letters_and_money(planned.changed, &planned.groups))?;
        write_groups(&planned.groups, err)?;
    }
    if let Some(question) = question {
        match ask(question, &mut interrupt, err).await? {
            Answer::Yes => {}
            Answer::No => {
                writeln!(err, "{}", nothing_done(action))?;
                return Ok(Ok(Exit::Refused));
            }
            Answer::Interrupted => return interrupted(&nothing_done(action), err).map(Ok),
            Answer::Nobody => {
                writeln!(err, "orderd: nothing was done: use --yes, because nobody can be asked here")?;
                return Ok(Ok(Exit::Usage));
            }
        }
    }
    (request.dry_run, request.after) = (false, 0);
    let done = match send(&client, action, &mut request, &mut interrupt, err).await? {
        Sent::Answered(done) => ChangedLetters { groups: planned.groups, ..done },
        Sent::Failed(error) => return Ok(Err(error)),
        Sent::Interrupted => return Ok(Ok(Exit::Interrupted)),
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

/// What has become of a request.
enum Sent {
    Answered(ChangedLetters),
    /// `err` already says how many were changed.
    Failed(AdminClientError),
    /// `err` already says how many were changed.
    Interrupted,
}

/// Sends a request until all letters are dealt with. It is then for what is stored now.
async fn send(
    client: &AdminClient,
    action: LetterChangeKind,
    request: &mut LetterRequest,
    interrupt: &mut Interrupt,
    err: &mut dyn Write,
) -> io::Result<Sent> {
    let mut all: Option<ChangedLetters> = None;
    let mut progress: Option<Progress> = None;
    loop {
        let body = json!(request);
        let answer = interrupt.unless(client.dead_letters::<ChangedLetters>(verb(action), Some(&body))).await;
        let answer: (Value, ChangedLetters) = match answer {
            Some(Ok(answer)) => answer,
            None => {
                drop(progress);
                let done = all.map(|done| done.changed);
                let text = if request.dry_run { nothing_done(action) } else { maybe_more(action, done) };
                interrupted(&text, err)?;
                return Ok(Sent::Interrupted);
            }
            Some(Err(error)) => {
                drop(progress);
                let done = all.map(|done| done.changed);
                match done {
                    _ if request.dry_run => {}
                    done if error.may_be_done() => writeln!(err, "orderd: {}", maybe_more(action, done))?,
                    Some(done) => {
                        let done = counted(done, "dead letter");
                        writeln!(err, "orderd: {}: {done}; repeat the command for the rest", participle(action))?;
                    }
                    None => {}
                }
                return Ok(Sent::Failed(error));
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
        let Some(next) = changed.next else { return Ok(Sent::Answered(changed)) };
        request.after = next;
        let done = if request.dry_run { "looked at" } else { participle(action) };
        let text = format!("{done}: {}", counted(changed.changed + changed.unchanged, "dead letter"));
        progress.get_or_insert_with(Progress::new).show(&text, err)?;
        all = Some(changed);
    }
}

fn nothing_done(action: LetterChangeKind) -> String {
    format!("nothing was {}", participle(action))
}

/// How far it is after Ctrl-C, or without an answer: the daemon carries out the last request, or a part of it, before it notices that
/// nobody waits.
fn maybe_more(action: LetterChangeKind, done: Option<u64>) -> String {
    let participle = participle(action);
    match done {
        Some(done) => {
            format!("{participle}: {} or more; repeat the command for the rest", counted(done, "dead letter"))
        }
        None => format!("the daemon may have {participle} some; repeat the command for the rest"),
    }
}

fn write_planned(
    (action, state): (LetterChangeKind, LetterState),
    planned: &ChangedLetters,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<Exit> {
    let verb = verb(action);
    match (format, &planned.nothing) {
        (Format::Json, _) => write_json(planned, out)?,
        (Format::Text, Some(nothing)) => {
            write_nothing(nothing, verb, state.as_str(), out)?;
            for (state, letters) in &nothing.other_states {
                writeln!(out, "  {letters} {}", state.as_str())?;
            }
        }
        (Format::Text, None) if planned.changed == 0 => {
            let is_found = planned.unchanged > 0 || !planned.refused.is_empty();
            writeln!(
                out,
                "nothing to {verb}{}",
                if is_found { "" } else { ": the replays of those that match go on" }
            )?;
            if !is_found {
                writeln!(out, "  their outcomes may still come: orderd dead-letters replays")?;
            }
            write_rest(action, planned, out)?;
        }
        (Format::Text, None) => {
            writeln!(out, "to {verb}: {}", letters_and_money(planned.changed, &planned.groups))?;
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
        // One that is held gets the new note.
        LetterChangeKind::Hold => None,
        LetterChangeKind::Release => Some("open"),
        LetterChangeKind::Discard => Some("discarded"),
    };
    if let Some(state) = state.filter(|_| *unchanged > 0) {
        let was = if *unchanged == 1 { "was" } else { "were" };
        writeln!(out, "  {} {was} already {state}", counted(*unchanged, "dead letter"))?;
    }
    for (id, reason) in refused.iter().take(MAX_SHOWN) {
        match (Refusal::parse(reason), action) {
            (Refusal::Missing, _) => writeln!(out, "  there is no dead letter {id}")?,
            (Refusal::State(LetterState::Replaying), LetterChangeKind::Release) => {
                writeln!(
                    out,
                    "  dead letter {id} is replaying, and its outcome may still come: orderd dead-letters show {id}"
                )?;
            }
            (Refusal::State(LetterState::Replaying), LetterChangeKind::Hold | LetterChangeKind::Discard) => writeln!(
                out,
                "  dead letter {id} is replaying: `orderd dead-letters show {id}` names its replay, `orderd dead-letters replays --stop` stops it"
            )?,
            (Refusal::State(state), _) => writeln!(out, "  dead letter {id} is {}", state.as_str())?,
            (Refusal::Other(reason), _) => writeln!(out, "  dead letter {id} is {}", escaped(reason))?,
        }
    }
    match refused.len().saturating_sub(MAX_SHOWN) {
        0 => Ok(()),
        1 => writeln!(out, "  and 1 more was not changed"),
        more => writeln!(out, "  and {more} more were not changed"),
    }
}

/// Why a letter is not changed.
enum Refusal<'a> {
    /// There is none with its number.
    Missing,
    /// Its state does not allow it.
    State(LetterState),
    /// As a daemon of another version says it.
    Other(&'a str),
}

impl<'a> Refusal<'a> {
    fn parse(reason: &'a str) -> Self {
        match reason {
            "missing" => Refusal::Missing,
            state => LetterState::parse(state).map_or(Refusal::Other(state), Refusal::State),
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;
    use crate::cli::admin_client::test_server::{Answer, serve};
    use crate::dead_letters::NothingFound;
    use crate::handlers;

    #[derive(Parser)]
    enum Cli {
        Hold(HoldArgs),
        Release(ReleaseArgs),
    }

    /// How a command to a daemon that answers so ends, and what it writes to standard output and standard error.
    async fn run(arguments: &[&str], answers: Vec<Answer>) -> (Exit, String, String) {
        let address = serve(answers).await.to_string();
        let args = Cli::try_parse_from([&["test"], arguments, &["--address", &address]].concat()).unwrap();
        let (sources, mut out, mut err) = (handlers::sources(), Vec::new(), Vec::new());
        let asked = match args {
            Cli::Hold(args) => hold(&args, &sources, &mut out, &mut err).await.unwrap(),
            Cli::Release(args) => release(&args, &sources, &mut out, &mut err).await.unwrap(),
        };
        let [out, err] = [out, err].map(|bytes| String::from_utf8(bytes).unwrap());
        (asked.unwrap_or_else(|error| error.exit()), out, err)
    }

    fn answer(changed: u64, next: Option<i64>) -> Answer {
        Answer::Json(200, json!(ChangedLetters { changed, next, ..ChangedLetters::default() }).to_string())
    }

    #[tokio::test]
    async fn a_change_that_is_not_answered_says_that_some_may_have_been_changed() {
        let hold = ["hold", "--all", "--note", "x"];
        let (exit, _, err) = run(&hold, vec![answer(9, None), Answer::Lost]).await;
        assert!(
            exit == Exit::Unavailable && err.contains("the daemon may have held some; repeat the command"),
            "{err}"
        );
        let (_, _, err) = run(&hold, vec![answer(9, None), answer(4, Some(4)), Answer::Lost]).await;
        assert!(err.contains("held: 4 dead letters or more; repeat the command for the rest"), "{err}");
        let busy = Answer::Json(503, r#"{"error":"too_many_requests","message":"try again later"}"#.to_owned());
        let (_, _, err) = run(&hold, vec![answer(9, None), answer(4, Some(4)), busy]).await;
        assert!(err.contains("held: 4 dead letters; repeat the command for the rest"), "{err}");
        let (_, _, err) = run(&["hold", "--all", "--dry-run"], vec![Answer::Lost]).await;
        assert!(!err.contains("held"), "it changes nothing: {err}");
    }

    #[test]
    fn only_what_changes_something_needs_a_note() {
        assert!(Cli::try_parse_from(["test", "hold", "7", "--dry-run"]).is_ok());
        assert!(Cli::try_parse_from(["test", "hold", "7"]).is_err());
    }

    #[tokio::test]
    async fn a_release_of_a_replay_names_the_state_that_the_daemon_has_looked_for() {
        let other_states = BTreeMap::from([(LetterState::Replayed, 3)]);
        let nothing = Some(NothingFound { other_states, hint: None });
        let nothing = json!(ChangedLetters { nothing, ..ChangedLetters::default() }).to_string();
        let nothing = || vec![Answer::Json(200, nothing.clone())];
        let (exit, text, _) = run(&["release", "--replay", "7"], nothing()).await;
        assert_eq!(exit, Exit::Nothing);
        assert!(text.contains("of 3 dead letters that match, none is replaying"), "{text}");
        let (_, text, _) = run(&["release", "--code", "x"], nothing()).await;
        assert!(text.contains("none is held"), "{text}");
    }

    #[test]
    fn of_many_that_are_not_changed_the_rest_is_not_said_to_be_in_a_state() {
        let refused = (1..=25).map(|id| (id, "missing".to_owned())).collect();
        let refused = ChangedLetters { refused, ..ChangedLetters::default() };
        let (_, text) = shown(LetterChangeKind::Hold, LetterState::Open, &refused);
        assert!(text.ends_with("  and 5 more were not changed\n"), "{text}");
    }

    fn shown(action: LetterChangeKind, state: LetterState, planned: &ChangedLetters) -> (Exit, String) {
        let mut out = Vec::new();
        let exit = write_planned((action, state), planned, Format::Text, &mut out).unwrap();
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_is_not_changed_is_said_with_its_reason() {
        let before = ChangedLetters { unchanged: 1, ..ChangedLetters::default() };
        let (exit, text) = shown(LetterChangeKind::Discard, LetterState::Open, &before);
        assert_eq!((exit, &*text), (Exit::Done, "nothing to discard\n  1 dead letter was already discarded\n"));

        let refused = BTreeMap::from([(80, "replaying".to_owned()), (81, "missing".to_owned())]);
        let refused = ChangedLetters { refused, ..ChangedLetters::default() };
        let (exit, text) = shown(LetterChangeKind::Hold, LetterState::Open, &refused);
        assert_eq!(exit, Exit::Nothing);
        assert!(text.starts_with("nothing to hold\n  dead letter 80 is replaying: "), "{text}");
        assert!(text.contains("replays --stop") && text.ends_with("  there is no dead letter 81\n"), "{text}");

        let (exit, text) = shown(LetterChangeKind::Release, LetterState::Replaying, &ChangedLetters::default());
        assert_eq!(exit, Exit::Nothing);
        assert!(text.contains("the replays of those that match go on"), "{text}");

        let other_states = BTreeMap::from([(LetterState::Open, 10)]);
        let nothing = Some(NothingFound { other_states, hint: None });
        let none = ChangedLetters { nothing, ..ChangedLetters::default() };
        let (_, text) = shown(LetterChangeKind::Release, LetterState::Replaying, &none);
        assert_eq!(text, "nothing to release: of 10 dead letters that match, none is replaying\n  10 open\n");
    }
}
