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
    for (code, letters) in &plan.discarded {
        writeln!(out, "  {letters} to be {}", reason_text(code, *letters, &[]))?;
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
        let text = reason_text(reason, *letters, &replays);
        writeln!(out, "  {letters} {text}: {}", numbers(&ids, *letters))?;
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

/// Why some letters are not replayed. `replays`: those that have taken them, as far as they are known.
pub(super) fn reason_text(reason: &str, letters: u64, replays: &[i64]) -> String {
    let numbers: Vec<String> = replays.iter().map(ToString::to_string).collect();
    let word = if replays.len() == 1 { "replay" } else { "replays" };
    let in_replays = if numbers.is_empty() { String::new() } else { format!(" in {word} {}", numbers.join(", ")) };
    let one = letters == 1;
    let (it, is, was) = if one { ("it", "is", "was") } else { ("they", "are", "were") };
    let its = if one { "its content" } else { "their contents" };
    let order = if one { "its order was" } else { "their orders were" };
    match reason {
        "no_queue" => "not replayed, because no consumer has the queue (name one with --to)".to_owned(),
        "no_order_queue" if one => {
            "not replayed, because it is an order, and the consumer of the queue of --to processes none".to_owned()
        }
        "no_order_queue" => {
            "not replayed, because they are orders, and the consumer of the queue of --to processes none".to_owned()
        }
        "maybe_duplicate" if one => {
            "not replayed, because it may be another one that was delivered again (compare both, and replay by number the one that is no \
             duplicate)"
                .to_owned()
        }
        "maybe_duplicate" => "not replayed, because each may be another one that was delivered again (compare them, and replay by number \
                              those that are no duplicates)"
            .to_owned(),
        "held" => format!("not replayed, because {it} {is} held (release {} first)", if one { "it" } else { "them" }),
        "replaying" => format!("not replayed, because {it} {is} being replayed{in_replays}"),
        "replayed" => format!("not replayed, because {it} {was} replayed{in_replays}"),
        "discarded" => format!("not replayed, because {it} {is} discarded"),
        "missing" => format!("not replayed, because there is none with {}", if one { "this number" } else { "these numbers" }),
        "resolved" => format!("not replayed, because {it} {was} replayed or discarded after the selection"),
        "unreadable" => format!("not replayed, because {its} cannot be read"),
        "refused" => format!("not replayed, because the broker refused {}", if one { "it" } else { "them" }),
        "cannot_publish" => format!("not replayed, because {it} cannot be published"),
        "unproven_user" => {
            format!("not replayed, because {it} {was} published by a user that is not orderd's now (see broker.trusted_users)")
        }
        "order_processed" => format!("discarded, because {order} processed in the meantime"),
        "order_cancelled" => format!("discarded, because {order} cancelled in the meantime"),
        other => format!("not replayed, because of {}", escaped(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_letter_is_not_called_several() {
        assert_eq!(reason_text("held", 1, &[]), "not replayed, because it is held (release it first)");
        assert_eq!(reason_text("replayed", 41, &[1, 2]), "not replayed, because they were replayed in replays 1, 2");
        assert_eq!(
            reason_text("order_processed", 2, &[]),
            "discarded, because their orders were processed in the meantime"
        );
    }
}
