//! Texts about what would be done with dead letters, and why some are left out. It computes only sums.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::cli::table::{self, Layout};
use crate::cli::text::counted;
use crate::dead_letters::{NotReplayed, NothingFound, ReplayPlan};
use crate::domain::ExactSum;
use crate::escape::escaped;
use crate::ledger::DeadLetterGroup;

/// Groups that are shown.
const MAX_GROUPS: usize = 20;
/// Shown for what there is not.
const NONE: &str = "-";

/// `2 dead letters, 20.00 EUR`.
pub(super) fn letters_and_money(letters: u64, groups: &[DeadLetterGroup]) -> String {
    let mut all: BTreeMap<&str, ExactSum> = BTreeMap::new();
    for (currency, sum) in groups.iter().flat_map(|group| &group.money) {
        all.entry(currency).or_default().add(*sum);
    }
    let money: Vec<_> = all.iter().map(|(currency, sum)| format!("{sum} {}", escaped(currency))).collect();
    let money = if money.is_empty() { String::new() } else { format!(", {}", money.join(" + ")) };
    format!("{}{money}", counted(letters, "dead letter"))
}

/// The groups, one on a line.
pub(super) fn write_groups(groups: &[DeadLetterGroup], out: &mut dyn Write) -> io::Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let mut table = table::new(["COUNT", "CONSUMER", "REASON", "CODE", "MONEY", "EXAMPLE"]);
    for DeadLetterGroup { reason, consumer, code, messages, money, example, .. } in groups.iter().take(MAX_GROUPS) {
        let money: Vec<_> = money.iter().map(|(currency, sum)| format!("{sum} {}", escaped(currency))).collect();
        table.add_row([
            messages.to_string(),
            consumer.as_deref().map_or_else(|| NONE.to_owned(), escaped),
            escaped(reason),
            escaped(code),
            if money.is_empty() { NONE.to_owned() } else { money.join(" + ") },
            example.to_string(),
        ]);
    }
    table::write(table, &Layout { indent: 2, numbers: 0..1, ..Layout::default() }, out)?;
    match groups.len().saturating_sub(MAX_GROUPS) {
        0 => Ok(()),
        hidden => writeln!(out, "  and {}", counted(hidden as u64, "more group")),
    }
}

pub(super) fn write_plan(plan: &ReplayPlan, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "to replay: {}", letters_and_money(plan.letters(), &plan.groups))?;
    write_groups(&plan.groups, out)?;
    for (queue, letters) in &plan.queues {
        let waits = plan.waiting.get(queue).map_or_else(String::new, |reason| format!("; waits: {}", escaped(reason)));
        writeln!(out, "  {letters} to {}{waits}", escaped(queue))?;
    }
    for (code, letters) in &plan.closed {
        let was = if code == "order_cancelled" { "cancelled" } else { "processed" };
        writeln!(out, "  {letters} to be closed instead, because the order was {was} meanwhile ({})", escaped(code))?;
    }
    write_not_replayed(&plan.skipped, &plan.not_replayed, out)
}

/// Nothing can be replayed: why.
pub(super) fn write_no_plan(plan: &ReplayPlan, out: &mut dyn Write) -> io::Result<()> {
    if let Some(nothing) = &plan.nothing {
        write_nothing(nothing, "replay", "open", out)?;
        let others =
            nothing.other_states.iter().map(|(state, letters)| (state.as_str().to_owned(), *letters)).collect();
        return write_not_replayed(&others, &plan.not_replayed, out);
    }
    writeln!(out, "nothing to replay")?;
    write_not_replayed(&plan.skipped, &plan.not_replayed, out)
}

/// A filter finds nothing.
pub(super) fn write_nothing(nothing: &NothingFound, action: &str, states: &str, out: &mut dyn Write) -> io::Result<()> {
    let others: u64 = nothing.other_states.values().sum();
    match others {
        0 => writeln!(out, "nothing to {action}: no dead letter matches")?,
        others => {
            writeln!(out, "nothing to {action}: of {} that match, none is {states}", counted(others, "dead letter"))?
        }
    }
    match &nothing.hint {
        Some(hint) => writeln!(out, "  {}", escaped(hint)),
        None => Ok(()),
    }
}

fn write_not_replayed(skipped: &BTreeMap<String, u64>, some: &[NotReplayed], out: &mut dyn Write) -> io::Result<()> {
    for (reason, letters) in skipped {
        let named: Vec<&NotReplayed> = some.iter().filter(|letter| letter.reason == *reason).collect();
        let ids: Vec<i64> = named.iter().map(|letter| letter.id).collect();
        let mut replays: Vec<i64> = named.iter().filter_map(|letter| letter.replay).collect();
        replays.sort_unstable();
        replays.dedup();
        let text = reason_text(reason, &replays);
        writeln!(out, "  {letters} not replayed, {text}: {}", numbers(&ids, *letters))?;
    }
    Ok(())
}

/// `1, 2, 3 and 7 more`.
pub(super) fn numbers(ids: &[i64], all: u64) -> String {
    let shown: Vec<String> = ids.iter().map(ToString::to_string).collect();
    match all.saturating_sub(ids.len() as u64) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Why letters are not replayed.
pub(super) fn reason_text(reason: &str, replays: &[i64]) -> String {
    let numbers: Vec<String> = replays.iter().map(ToString::to_string).collect();
    let word = if replays.len() == 1 { "replay" } else { "replays" };
    let in_replays = if numbers.is_empty() { String::new() } else { format!(" in {word} {}", numbers.join(", ")) };
    match reason {
        "no_queue" => "because no consumer has the queue (name one with --to)".to_owned(),
        "maybe_duplicate" => "because it may be another one, delivered again (name the one that is not)".to_owned(),
        "held" => "because it is held (release it first)".to_owned(),
        "replaying" => format!("because it is being replayed{in_replays}"),
        "replayed" => format!("because it was replayed{in_replays}"),
        "discarded" => "because it is discarded".to_owned(),
        "missing" => "because there is none with this number".to_owned(),
        "closed" => "because it was closed meanwhile".to_owned(),
        "unreadable" => "because its content cannot be read".to_owned(),
        "cannot_publish" => "because it cannot be published".to_owned(),
        "unproven_user" => {
            "because it was published by a user that is not orderd's now (see broker.trusted_users)".to_owned()
        }
        "order_processed" => "but closed, because the order was processed meanwhile".to_owned(),
        "order_cancelled" => "but closed, because the order was cancelled meanwhile".to_owned(),
        other => format!("because of {}", escaped(other)),
    }
}
