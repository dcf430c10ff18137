//! `orderd dead-letters list`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::Done;
use super::filters::Filters;
use super::list_text;
use super::selection::unusable;
use super::unknown_names::warn_of_unknown_names;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::argument::{number, within};
use crate::cli::ledger_source::LedgerSource;
use crate::cli::output::write_json;
use crate::cli::text::counted;
use crate::cli::{Exit, Format};
use crate::ledger::{DeadLetter, DeadLetterFilter, DeadLetterQuery};

/// Arguments of `orderd dead-letters list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filters: Filters,
    /// Group them by cause: count, oldest and newest, money at stake, and one example
    #[arg(long)]
    group: bool,
    /// How many to show at most, from 1 to 10000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = within(1..=10_000_u32))]
    limit: u32,
    /// Continue after the dead letter with this number, where the page before ended
    #[arg(long, value_name = "ID", conflicts_with = "group", value_parser = number)]
    before: Option<i64>,
    #[command(flatten)]
    pub daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One page. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    dead_letters: &'a [DeadLetter],
    /// What `--before` needs for the next page; `None` if this is the last.
    next: Option<i64>,
}

pub(super) async fn run(
    args: &ListArgs,
    source: &LedgerSource,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Done> {
    let filter = match args.filters.filter(now) {
        Ok(filter) => filter,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    let limit = args.limit as usize;
    if args.group {
        let groups = match source.groups(filter.clone(), limit).await {
            Ok(groups) => groups,
            Err(error) => return Ok(Err(error)),
        };
        match args.format {
            Format::Json => {
                write_json(&groups, out)?;
                if groups.messages == 0 {
                    return warn_of_unknown_names(&filter, source, err).await;
                }
            }
            Format::Text if groups.messages > 0 => list_text::write_groups(&groups, now, out)?,
            Format::Text => return nothing_found(&filter, source, out, err).await,
        }
        return Ok(Ok(Exit::Done));
    }
    let query = DeadLetterQuery { filter: filter.clone(), before: args.before, after: None, limit };
    let page = match source.letters(query).await {
        Ok(page) => page,
        Err(error) => return Ok(Err(error)),
    };
    let next = page.letters.last().map(|letter| letter.id).filter(|_| page.more);
    match args.format {
        Format::Json => {
            write_json(&Listing { dead_letters: &page.letters, next }, out)?;
            if page.letters.is_empty() && args.before.is_none() {
                return warn_of_unknown_names(&filter, source, err).await;
            }
        }
        Format::Text if !page.letters.is_empty() => {
            list_text::write_letters(&page.letters, (next, filter.replay), now, out)?
        }
        Format::Text => match args.before {
            Some(before) => return no_more(&filter, before, source, out, err).await,
            None => return nothing_found(&filter, source, out, err).await,
        },
    }
    Ok(Ok(Exit::Done))
}

/// Says that there is nothing before a number: the page before was the last, unless there is nothing at all.
async fn no_more(
    filter: &DeadLetterFilter,
    before: i64,
    source: &LedgerSource,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Done> {
    match source.groups(filter.clone(), 1).await {
        Ok(groups) if groups.messages > 0 => {
            let others = counted(groups.messages, "dead letter");
            let have = if groups.messages == 1 { "has" } else { "have" };
            writeln!(out, "no dead letters before {before}; {others} that you asked for {have} higher numbers")?;
            Ok(Ok(Exit::Done))
        }
        Ok(_) => nothing_found(filter, source, out, err).await,
        Err(error) => Ok(Err(error)),
    }
}

/// Says that there is nothing, how many there are in other states, and which names there are if one of the filter is unknown.
async fn nothing_found(
    filter: &DeadLetterFilter,
    source: &LedgerSource,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Done> {
    let any_state = DeadLetterFilter { states: Vec::new(), ..filter.clone() };
    let elsewhere = match filter.states.is_empty() {
        true => 0,
        false => match source.groups(any_state, 1).await {
            Ok(groups) => groups.messages,
            Err(error) => return Ok(Err(error)),
        },
    };
    let states: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
    let state = if states.is_empty() { String::new() } else { format!("{} ", states.join(" or ")) };
    let others = match elsewhere {
        0 => String::new(),
        1 => " (1 in another state: --state any)".to_owned(),
        count => format!(" ({count} in other states: --state any)"),
    };
    writeln!(out, "no {state}dead letters{others}")?;
    // The names of a filter that finds something are known, and all dead letters need not be read for them.
    if elsewhere > 0 { Ok(Ok(Exit::Done)) } else { warn_of_unknown_names(filter, source, err).await }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::conformance::stored_letter;
    use crate::ledger::memory::MemoryLedger;
    use crate::ledger::{LetterState, LetterWriter, NewStoredLetter};

    #[tokio::test]
    async fn if_nothing_is_found_it_says_what_there_is_instead() {
        let ledger = MemoryLedger::default();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let ledger = Arc::new(ledger);
        let source = LedgerSource::Ledger { reader: Arc::clone(&ledger) as _, replays: ledger, no_token: false };
        let shown = async |filter: DeadLetterFilter| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let done = nothing_found(&filter, &source, &mut out, &mut err).await.unwrap().unwrap();
            assert_eq!(done, Exit::Done);
            [out, err].map(|bytes| String::from_utf8(bytes).unwrap())
        };
        let held = || DeadLetterFilter { states: vec![LetterState::Held], ..DeadLetterFilter::default() };
        let of_other_state = shown(DeadLetterFilter { order: Some("ord-1".to_owned()), ..held() }).await;
        assert_eq!(of_other_state, ["no held dead letters (1 in another state: --state any)\n", ""]);
        let known = shown(DeadLetterFilter { consumer: Some("order".to_owned()), ..held() }).await;
        assert_eq!(known[1], "");
        let unknown = DeadLetterFilter {
            states: Vec::new(),
            reason: Some("nonsense".to_owned()),
            consumer: Some("nope".to_owned()),
            code: Some("card_expired".to_owned()),
            ..held()
        };
        let [out, err] = shown(unknown).await;
        assert_eq!(out, "no dead letters\n");
        assert!(
            err.contains("has reason nonsense; known: permanent") && err.contains("has consumer nope; known: order")
        );
        assert!(!err.contains("has code"), "{err}");
        let no_replay = shown(DeadLetterFilter { states: Vec::new(), replay: Some(7), ..held() }).await;
        assert_eq!(no_replay, ["no dead letters\n", "orderd: warning: there is no replay 7\n"]);
    }

    #[tokio::test]
    async fn of_many_names_that_there_are_only_some_are_listed_as_by_a_daemon() {
        let ledger = MemoryLedger::default();
        for n in 1..=40 {
            let letter = NewStoredLetter { code: format!("code_{n:02}"), ..stored_letter(&format!("ord-{n}"), n) };
            ledger.store_letter(letter).await.unwrap();
        }
        let ledger = Arc::new(ledger);
        let source = LedgerSource::Ledger { reader: Arc::clone(&ledger) as _, replays: ledger, no_token: false };
        let filter = DeadLetterFilter { code: Some("nope".to_owned()), ..DeadLetterFilter::default() };
        let mut err = Vec::new();
        nothing_found(&filter, &source, &mut Vec::new(), &mut err).await.unwrap().unwrap();
        let warning = String::from_utf8(err).unwrap();
        assert!(warning.ends_with("code_29, code_30, …\n"), "{warning}");
    }

    #[tokio::test]
    async fn before_the_first_number_there_is_nothing_more_and_the_others_are_not_said_to_be_in_another_state() {
        let ledger = MemoryLedger::default();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let ledger = Arc::new(ledger);
        let source = LedgerSource::Ledger { reader: Arc::clone(&ledger) as _, replays: ledger, no_token: false };
        let open = |state| DeadLetterFilter { states: vec![state], ..DeadLetterFilter::default() };
        let shown = async |state| {
            let mut out = Vec::new();
            no_more(&open(state), 1, &source, &mut out, &mut Vec::new()).await.unwrap().unwrap();
            String::from_utf8(out).unwrap()
        };
        let more = "no dead letters before 1; 1 dead letter that you asked for has higher numbers\n";
        assert_eq!(shown(LetterState::Open).await, more);
        assert_eq!(shown(LetterState::Held).await, "no held dead letters (1 in another state: --state any)\n");
    }
}
