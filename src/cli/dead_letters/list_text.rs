//! Tables of dead letters and of their groups. It computes only ages.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::cli::table::{self, Layout};
use crate::cli::text::{age, counted, shortened};
use crate::escape::escaped;
use crate::ledger::{DeadLetter, DeadLetterGroup, DeadLetterGroups, LetterState};

/// Characters of a text in a cell.
const MAX_CELL: usize = 36;
/// Shown for what there is not.
const NONE: &str = "-";

pub(super) fn write_letters(
    letters: &[DeadLetter],
    next: Option<i64>,
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<()> {
    if letters.is_empty() {
        return writeln!(out, "no dead letters");
    }
    let mut table = table::new(["ID", "AGE", "CONSUMER", "REASON", "CODE", "ORDER OR MESSAGE", "TOTAL", "STATE"]);
    for letter in letters {
        let state = match letter.state {
            LetterState::Open => String::new(),
            LetterState::Held | LetterState::Replaying | LetterState::Replayed | LetterState::Discarded => {
                letter.state.as_str().to_owned()
            }
        };
        let state = match (state.is_empty(), letter.maybe_duplicate_of) {
            (_, None) => state,
            (true, Some(original)) => format!("maybe {original} again"),
            (false, Some(original)) => format!("{state}, maybe {original} again"),
        };
        let what = letter.order_id.as_deref().or(letter.identity.as_deref()).unwrap_or(&letter.routing_key);
        table.add_row([
            letter.id.to_string(),
            age(letter.failed_at, now),
            cell(letter.consumer.as_deref()),
            cell(Some(&letter.reason)),
            cell(Some(&letter.code)),
            cell(Some(what)),
            letter
                .total
                .zip(letter.currency.as_deref())
                .map_or_else(|| NONE.to_owned(), |(total, currency)| format!("{total} {}", escaped(currency))),
            state,
        ]);
    }
    table::write(table, &Layout { indent: 0, ..Layout::default() }, out)?;
    match next {
        Some(next) => writeln!(out, "there are more: --before {next}"),
        None => Ok(()),
    }
}

pub(super) fn write_groups(groups: &DeadLetterGroups, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    if groups.messages == 0 {
        return writeln!(out, "no dead letters");
    }
    let mut table = table::new(["COUNT", "CONSUMER", "REASON", "CODE", "OLDEST", "NEWEST", "MONEY", "EXAMPLE"]);
    for group in &groups.groups {
        let DeadLetterGroup { reason, consumer, code, messages, oldest, newest, money, example, .. } = group;
        let money: Vec<_> = money.iter().map(|(currency, sum)| format!("{sum} {}", escaped(currency))).collect();
        table.add_row([
            messages.to_string(),
            cell(consumer.as_deref()),
            cell(Some(reason)),
            cell(Some(code)),
            age(*oldest, now),
            age(*newest, now),
            if money.is_empty() { NONE.to_owned() } else { money.join(" + ") },
            example.to_string(),
        ]);
    }
    table::write(table, &Layout { indent: 0, numbers: 0..1, ..Layout::default() }, out)?;
    if groups.hidden > 0 {
        writeln!(out, "{} more: --limit shows them", counted(groups.hidden as i64, "group"))?;
    }
    writeln!(out, "{}", counted(groups.messages, "dead letter"))
}

/// A text that others sent, in one line and not too long.
fn cell(text: Option<&str>) -> String {
    text.map_or_else(|| NONE.to_owned(), |text| shortened(&escaped(text), MAX_CELL))
}
