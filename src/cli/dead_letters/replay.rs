//! `orderd dead-letters replay`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Asked;
use super::follow::{Until, follow};
use super::interrupt::{Interrupt, interrupted};
use super::plan_text::{write_no_plan, write_plan};
use super::progress::Progress;
use super::report_text::summary;
use super::selection::{Answer, Selection, ask, bounded, replayable, unusable};
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::argument::{percent, within};
use crate::cli::output::write_json;
use crate::cli::text::counted;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ReplayPlan, ReplayReport, ReplayRequest};
use crate::ledger::{LetterState, ReplayOptions};

/// After Ctrl-C or a no before the replay.
const NOTHING_DONE: &str = "nothing was replayed";
/// After Ctrl-C while the daemon is asked to begin it, or without its answer.
const MAYBE_BEGUN: &str = "the daemon may have begun the replay; see `orderd dead-letters replays`";

/// Arguments of `orderd dead-letters replay`.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only those in this state: a replay takes open ones, so release held ones before
    #[arg(long, value_name = "STATE", value_parser = replayable)]
    state: Option<LetterState>,
    /// Publish them to this queue instead of the one each came from; unrouted ones came from none
    #[arg(long, value_name = "QUEUE")]
    to: Option<String>,
    /// Publish at most this many a second, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = within(1..=1_000_u32))]
    rate: u32,
    /// Stop when more than this share of the latest 100 outcomes is that a dead letter failed again, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = percent)]
    stop_at: u8,
    /// Do not begin with one, then ten
    #[arg(long)]
    no_canary: bool,
    /// Show what would happen, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask before it begins
    #[arg(long, short)]
    yes: bool,
    /// Do not wait for the outcome
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &ReplayArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let selection = match args.selection.selection(args.state, Timestamp::now()) {
        Ok(selection) => selection,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    let client = match args.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let options =
        ReplayOptions { to: args.to.clone(), rate: args.rate, stop_at: args.stop_at, canary: !args.no_canary };
    let mut request = ReplayRequest { selection, options, dry_run: true, after: 0 };
    let mut interrupt = Interrupt::new()?;
    let plan = match plan(&client, &mut request, &mut interrupt, err).await? {
        Ok(Some(plan)) => plan,
        Ok(None) => return interrupted(NOTHING_DONE, err).map(Ok),
        Err(error) => return Ok(Err(error)),
    };
    let is_named = !args.selection.ids.is_empty();
    let is_incomplete = is_named && !plan.skipped.is_empty();
    if args.dry_run || plan.letters() == 0 {
        match args.format {
            Format::Text if plan.letters() == 0 => write_no_plan(&plan, out)?,
            Format::Text => write_plan(&plan, out)?,
            Format::Json => write_json(&plan, out)?,
        }
        return Ok(Ok(match plan.letters() {
            0 => Exit::Nothing,
            _ if is_incomplete => Exit::Refused,
            _ => Exit::Done,
        }));
    }
    if !args.yes || args.format == Format::Text {
        write_plan(&plan, err)?;
    }
    if !args.yes {
        match ask("Replay them?", &mut interrupt, err).await? {
            Answer::Yes => {}
            Answer::No => {
                writeln!(err, "{NOTHING_DONE}")?;
                return Ok(Ok(Exit::Refused));
            }
            Answer::Interrupted => return interrupted(NOTHING_DONE, err).map(Ok),
            Answer::Nobody => {
                writeln!(err, "orderd: not replayed: use --yes, because nobody can be asked here")?;
                return Ok(Ok(Exit::Usage));
            }
        }
    }
    (request.dry_run, request.after) = (false, 0);
    let begun = json!(request);
    let (json, report): (Value, ReplayReport) =
        match interrupt.unless(client.dead_letters("replays", Some(&begun))).await {
            Some(Ok(started)) => started,
            Some(Err(error)) => {
                if error.may_be_done() {
                    writeln!(err, "orderd: {MAYBE_BEGUN}")?;
                }
                return Ok(Err(error));
            }
            None => return interrupted(MAYBE_BEGUN, err).map(Ok),
        };
    let id = report.replay.id;
    if args.detach {
        match args.format {
            Format::Text => writeln!(out, "{}; follow it with `orderd dead-letters replays {id}`", summary(&report))?,
            Format::Json => write_json(&json, out)?,
        }
        return Ok(Ok(Exit::Done));
    }
    let followed = follow(&client, id, Until::Ended { is_named }, args.format, &mut interrupt, out, err).await?;
    Ok(followed.map(|exit| if exit == Exit::Done && is_incomplete { Exit::Refused } else { exit }))
}

/// Asks what would happen, however many letters there are. The request is then for what is stored now. `None`: interrupted.
async fn plan(
    client: &AdminClient,
    request: &mut ReplayRequest,
    interrupt: &mut Interrupt,
    err: &mut dyn Write,
) -> io::Result<Result<Option<ReplayPlan>, AdminClientError>> {
    let mut all: Option<ReplayPlan> = None;
    let mut progress: Option<Progress> = None;
    loop {
        let question = json!(request);
        let (_, plan): (Value, ReplayPlan) =
            match interrupt.unless(client.dead_letters("replays", Some(&question))).await {
                Some(Ok(plan)) => plan,
                Some(Err(error)) => return Ok(Err(error)),
                None => return Ok(Ok(None)),
            };
        bounded(&mut request.selection, plan.up_to);
        let plan = match all.take() {
            Some(mut all) => {
                all.add(plan);
                all
            }
            None => plan,
        };
        let Some(next) = plan.next else { return Ok(Ok(Some(plan))) };
        request.after = next;
        let looked_at = plan.letters() + plan.skipped.values().sum::<u64>();
        let text = format!("{} looked at", counted(looked_at, "dead letter"));
        progress.get_or_insert_with(Progress::new).show(&text, err)?;
        all = Some(plan);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;
    use crate::cli::admin_client::test_server::{Answer, serve};
    use crate::handlers;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        replay: ReplayArgs,
    }

    #[tokio::test]
    async fn a_replay_whose_start_is_not_answered_may_have_begun() {
        let plan = ReplayPlan { queues: BTreeMap::from([("order_queue".to_owned(), 1)]), ..ReplayPlan::default() };
        let plan = Answer::Json(200, json!(plan).to_string());
        let refused = Answer::Json(409, r#"{"error":"conflict","message":"16 replays have not ended"}"#.to_owned());
        for (answer, exit, maybe) in [(Answer::Lost, Exit::Unavailable, true), (refused, Exit::Refused, false)] {
            let address = serve(vec![plan.clone(), answer]).await.to_string();
            let args = Cli::try_parse_from(["replay", "7", "--yes", "--address", &address]).unwrap().replay;
            let mut err = Vec::new();
            let asked = run(&args, &handlers::sources(), &mut io::sink(), &mut err).await.unwrap();
            assert_eq!(asked.unwrap_err().exit(), exit);
            let shown = String::from_utf8(err).unwrap();
            assert_eq!(shown.contains(MAYBE_BEGUN), maybe, "{shown}");
        }
    }
}
