//! Tables of dead letters and of their groups. It computes only ages.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::cli::outcome_text::outcome_text;
use crate::cli::table::{self, Layout};
use crate::cli::text::{age, counted, shortened, table_width};
use crate::escape::escaped;
use crate::ledger::{DeadLetter, DeadLetterGroup, DeadLetterGroups, LetterReplay, LetterSource, LetterState};

/// Characters of a text in a cell.
const MAX_CELL: usize = 36;
/// Shown for what there is not.
const NONE: &str = "-";

/// Writes a page that is not empty. `of_replay`: the replay that was asked for, of which each letter says what it has done. What most letters do not have is a column only if one of them has it.
pub(super) fn write_letters(
    letters: &[DeadLetter],
    (next, of_replay): (Option<i64>, Option<i64>),
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<()> {
    let has_unrouted = letters.iter().any(|letter| letter.source == LetterSource::UnroutedQueue);
    let has_notes = letters.iter().any(|letter| letter.note.is_some());
    let mut header = vec!["ID", "AGE", "CONSUMER", "REASON", "CODE", "ORDER OR MESSAGE", "TOTAL"];
    header.extend(has_unrouted.then_some("EXCHANGE, ROUTING KEY"));
    header.push("STATE");
    header.extend(has_notes.then_some("NOTE"));
    let mut table = table::new(header);
    for letter in letters {
        let what = letter.order_id.as_deref().or(letter.message_id.as_deref()).or(letter.identity.as_deref());
        let total = letter.total.zip(letter.currency.as_deref());
        let mut row = vec![
            letter.id.to_string(),
            age(letter.failed_at, now),
            cell(letter.consumer.as_deref()),
            cell(Some(&letter.reason)),
            cell(Some(&letter.code)),
            cell(what),
            total.map_or_else(|| NONE.to_owned(), |(total, currency)| format!("{total} {}", escaped(currency))),
        ];
        if has_unrouted {
            let is_unrouted = letter.source == LetterSource::UnroutedQueue;
            let place = format!("{}, {}", letter.exchange, letter.routing_key);
            row.push(cell(is_unrouted.then_some(&place)));
        }
        row.push(state(letter, of_replay));
        if has_notes {
            row.push(cell(letter.note.as_deref()));
        }
        table.add_row(row);
    }
    table::write(table, &Layout { indent: 0, max_width: table_width(), ..Layout::default() }, out)?;
    match next {
        Some(next) => writeln!(out, "there are more: --before {next}"),
        None => Ok(()),
    }
}

/// What has become of it; empty if it is open and nothing more is known.
fn state(letter: &DeadLetter, of_replay: Option<i64>) -> String {
    let replay = letter.last_replay.as_ref();
    let asked = replay.filter(|replay| of_replay == Some(replay.replay));
    let mut parts = match (letter.state, replay) {
        (LetterState::Open, _) => Vec::from_iter(asked.map(replay_text)),
        (LetterState::Replayed, Some(replay)) => vec![format!("replayed: {}", replay_text(replay))],
        (LetterState::Replaying, Some(replay)) => vec![format!("replaying: {}", replay_text(replay))],
        (LetterState::Held | LetterState::Replaying | LetterState::Replayed | LetterState::Discarded, _) => {
            Vec::from_iter([letter.state.as_str().to_owned()].into_iter().chain(asked.map(replay_text)))
        }
    };
    parts.extend(letter.came_back_from.map(|id| format!("was {id} before")));
    parts.extend(letter.maybe_duplicate_of.map(|id| format!("maybe {id} again")));
    parts.join(", ")
}

/// `failed again (http_402), now 82`.
pub(super) fn replay_text(replay: &LetterReplay) -> String {
    let code = replay.code.as_deref().map_or_else(String::new, |code| format!(" ({})", escaped(code)));
    let became = replay.came_back_as.map_or_else(String::new, |id| format!(", now {id}"));
    format!("{}{code}{became}", outcome_text(replay.outcome))
}

pub(super) fn write_groups(groups: &DeadLetterGroups, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let has_keys = groups.groups.iter().any(|group| group.routing_key.is_some());
    let has_notes = groups.groups.iter().any(|group| group.note.is_some());
    let mut header = vec!["COUNT", "CONSUMER", "REASON", "CODE"];
    header.extend(has_keys.then_some("ROUTING KEY"));
    header.extend(["OLDEST", "NEWEST", "MONEY", "EXAMPLE"]);
    header.extend(has_notes.then_some("NOTE OF EXAMPLE"));
    let mut table = table::new(header);
    for group in &groups.groups {
        let DeadLetterGroup {
            source: _,
            reason,
            consumer,
            code,
            routing_key,
            messages,
            oldest,
            newest,
            money,
            example,
            note,
        } = group;
        let money: Vec<_> = money.iter().map(|(currency, sum)| format!("{sum} {}", escaped(currency))).collect();
        let mut row = vec![messages.to_string(), cell(consumer.as_deref()), cell(Some(reason)), cell(Some(code))];
        row.extend(has_keys.then(|| cell(routing_key.as_deref())));
        row.extend([age(*oldest, now), age(*newest, now)]);
        row.push(if money.is_empty() { NONE.to_owned() } else { money.join(" + ") });
        row.push(example.to_string());
        row.extend(has_notes.then(|| cell(note.as_deref())));
        table.add_row(row);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::conformance::{at, stored_letter};
    use crate::ledger::memory::MemoryLedger;
    use crate::ledger::{
        DeadLetterFilter, DeadLetterQuery, LedgerReader, LetterProgress, LetterWriter, NewStoredLetter,
    };

    fn text(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn notes_routing_keys_and_outcomes_are_shown_where_there_are_any() {
        let ledger = MemoryLedger::default();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let key = "oder.normal.web".to_owned();
        let unrouted = NewStoredLetter {
            source: LetterSource::UnroutedQueue,
            exchange: "orders".to_owned(),
            routing_key: key.clone(),
            ..stored_letter("ord-2", 2)
        };
        ledger.store_letter(unrouted).await.unwrap();
        let query = DeadLetterQuery { after: Some(0), limit: 9, ..DeadLetterQuery::default() };
        let mut letters = ledger.dead_letters(query).await.unwrap().letters;
        let plain = text(|out| write_letters(&letters[..1], (None, None), at(9_000), out));
        assert!(!plain.contains("NOTE") && !plain.contains("ROUTING KEY"), "{plain}");

        letters[0].note = Some("SHOP-815".to_owned());
        let replay = |outcome, came_back_as| {
            let (by, code) = ("ada".to_owned(), (came_back_as == Some(82)).then(|| "http_402".to_owned()));
            LetterReplay { replay: 3, by, at: at(1), outcome, code, ended_at: None, came_back_as }
        };
        letters[0].state = LetterState::Replayed;
        letters[0].last_replay = Some(replay(LetterProgress::FailedAgain, Some(82)));
        let shown = text(|out| write_letters(&letters, (None, None), at(9_000), out));
        for part in ["NOTE", "SHOP-815", "orders, oder.normal.web", "replayed: failed again (http_402), now 82"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        letters[0].last_replay = Some(replay(LetterProgress::Processed, None));
        let shown = text(|out| write_letters(&letters, (None, None), at(9_000), out));
        assert!(shown.contains("replayed: processed"), "{shown}");

        letters[0].state = LetterState::Open;
        letters[0].last_replay = Some(replay(LetterProgress::Returned, None));
        let of = |replay| text(|out| write_letters(&letters, (None, replay), at(9_000), out));
        assert!(of(Some(3)).contains("open again") && !of(None).contains("open again"), "{}", of(Some(3)));

        let mut groups = ledger.dead_letter_groups(DeadLetterFilter::default()).await.unwrap();
        let shown = text(|out| write_groups(&groups, at(9_000), out));
        assert!(shown.contains(&key) && !shown.contains("NOTE") && shown.ends_with("\n2 dead letters\n"), "{shown}");
        groups.groups[0].note = Some("SHOP-815".to_owned());
        groups.messages = 1;
        let shown = text(|out| write_groups(&groups, at(9_000), out));
        assert!(shown.contains("SHOP-815") && shown.ends_with("\n1 dead letter\n"), "{shown}");
    }
}
