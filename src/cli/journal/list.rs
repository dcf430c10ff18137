//! `orderd journal list`.

use std::io::{self, Write};

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::Exit;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::argument::{number, within};
use crate::cli::ledger_source::{LedgerSource, SourceError};
use crate::cli::output::{write_json, write_json_line};
use crate::cli::table::{self, Layout};
use crate::cli::text::{shortened, table_width};
use crate::escape::escaped;
use crate::ledger::report::PointInTime;
use crate::ledger::{JournalAction, JournalEntry, JournalFilter, JournalPage, JournalQuery};

/// Characters of a subject or a result in a cell.
const MAX_CELL: usize = 60;

/// Numbers of dead letters in a cell.
const MAX_IDS: usize = 10;
/// Characters of a condition in a cell.
const MAX_CONDITION: usize = 80;

/// Arguments of `orderd journal list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only actions at this time or later: an age such as 24h or 7d, a date, or a time (RFC 3339; UTC without an offset)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<PointInTime>,
    /// Only actions before this time, in the same formats
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<PointInTime>,
    /// Only actions of this user
    #[arg(long, value_name = "ACTOR", value_parser = NonEmptyStringValueParser::new())]
    actor: Option<String>,
    /// Only actions of this kind
    #[arg(long, value_name = "ACTION", value_parser = actions())]
    action: Option<String>,
    /// How many to show at most, from 1 to 10000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = within(1..=10_000_u32))]
    limit: u32,
    /// Continue after the entry with this number, where the page before ended
    #[arg(long, value_name = "SEQ", value_parser = number)]
    before: Option<i64>,
    #[command(flatten)]
    pub daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: ListFormat,
}

/// Output format of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ListFormat {
    /// A table
    #[default]
    Text,
    /// One JSON object: `entries`, and `next`, which `--before` needs for the next page
    Json,
    /// One JSON object per line and entry
    Ndjson,
}

fn actions() -> PossibleValuesParser {
    PossibleValuesParser::new(JournalAction::ALL.iter().map(|action| action.as_str()))
}

pub(super) async fn run(
    args: &ListArgs,
    source: &LedgerSource,
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<Result<Exit, SourceError>> {
    let ListArgs { since, until, actor, action, limit, before, format, daemon: _ } = args;
    let filter = JournalFilter {
        since: since.map(|since| since.at(now)),
        until: until.map(|until| until.at(now)),
        actor: actor.clone(),
        action: action.clone(),
    };
    let page = match source.journal(JournalQuery { filter, before: *before, limit: *limit as usize }).await {
        Ok(page) => page,
        Err(error) => return Ok(Err(error)),
    };
    match format {
        ListFormat::Text => write_text(&page, out)?,
        ListFormat::Json => write_json(&page, out)?,
        ListFormat::Ndjson => page.entries.iter().try_for_each(|entry| write_json_line(entry, out))?,
    }
    Ok(Ok(Exit::Done))
}

fn write_text(page: &JournalPage, out: &mut dyn Write) -> io::Result<()> {
    if page.entries.is_empty() {
        return writeln!(out, "no entries");
    }
    let mut table = table::new(["SEQ", "TIME", "ACTOR", "ACTION", "ON", "RESULT"]);
    for JournalEntry { seq, at, actor, action, subject, result, .. } in &page.entries {
        table.add_row([
            seq.to_string(),
            format!("{at:.0}"),
            escaped(actor),
            escaped(action),
            cell(subject),
            cell(result),
        ]);
    }
    table::write(table, &Layout { indent: 0, max_width: table_width(), ..Layout::default() }, out)?;
    match page.next {
        Some(next) => writeln!(out, "there are more: --before {next}"),
        None => Ok(()),
    }
}

/// What says what it is about, or how it ended, comes first, and is never cut.
const FIRST: [&str; 6] = ["replay", "selection", "state", "letters", "revision", "order_id"];

/// `consumer=order, changed=true`.
fn cell(value: &Value) -> String {
    let Value::Object(fields) = value else { return shortened(&escaped(&value.to_string()), MAX_CELL) };
    let first = FIRST.iter().filter_map(|key| Some(field(key, fields.get(*key)?)));
    let first = escaped(&first.collect::<Vec<_>>().join(", "));
    let rest = fields.iter().filter(|(key, value)| !FIRST.contains(&&***key) && !value.is_null());
    let rest = rest.map(|(key, value)| field(key, value)).collect::<Vec<_>>().join(", ");
    let rest = shortened(&escaped(&rest), MAX_CELL);
    [first, rest].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn field(key: &str, value: &Value) -> String {
    match (key, value) {
        ("selection", value) => selection(value),
        // `processed=389, failed_again=11`
        ("letters", Value::Object(counts)) if counts.is_empty() => "no dead letters".to_owned(),
        ("letters", Value::Object(counts)) => {
            counts.iter().map(|(state, count)| format!("{state}={count}")).collect::<Vec<_>>().join(", ")
        }
        ("body_sha256", Value::Object(hashes)) => {
            let hash =
                |key: &str| hashes.get(key).and_then(Value::as_str).map_or("?", |hash| hash.get(..8).unwrap_or(hash));
            format!("body {}.. -> {}..", hash("before"), hash("after"))
        }
        (key, Value::Array(items)) if items.iter().all(Value::is_number) => format!("{key}={}", numbers(items)),
        (key, Value::String(text)) => format!("{key}={text}"),
        (key, value) => format!("{key}={value}"),
    }
}

/// `4,7 and 2 more`
fn numbers(numbers: &[Value]) -> String {
    let shown: Vec<_> = numbers.iter().take(MAX_IDS).map(Value::to_string).collect();
    let more = numbers.len().saturating_sub(MAX_IDS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(","))
}

/// `ids=4,7 and 2 more`, or the conditions that are given: `code=http_402, up_to=500`.
fn selection(selection: &Value) -> String {
    if let Some(ids) = selection["ids"].as_array() {
        return format!("ids={}", numbers(ids));
    }
    let conditions = selection["filter"].as_object().into_iter().flatten();
    let is_given = |value: &Value| !value.is_null() && value.as_array().is_none_or(|states| !states.is_empty());
    let mut shown: Vec<String> = conditions
        .filter(|(_, value)| is_given(value))
        .map(|(key, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{key}={}", shortened(&text, MAX_CONDITION))
        })
        .collect();
    if shown.is_empty() {
        shown.push("all".to_owned());
    }
    shown.extend(selection.get("up_to").map(|up_to| format!("up_to={up_to}")));
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_number_and_the_selection_of_a_replay_come_first_and_are_never_cut_off() {
        let options =
            json!({"canary": true, "rate": 50, "stop_at": 10, "to": "a_queue_with_a_long_name_that_is_cut_somewhere"});
        let filter =
            json!({"filter": {"states": [], "code": "http_402", "consumer": "order", "text": null}, "up_to": 500});
        let shown = cell(&json!({"replay": 7, "options": options, "selection": filter}));
        assert!(shown.starts_with("replay=7, code=http_402, consumer=order, up_to=500, options={"), "{shown}");
        assert!(shown.ends_with('…'), "{shown}");
        let ids: Vec<i64> = (1..=1_000).collect();
        let shown = cell(&json!({"replay": 8, "options": options, "selection": {"ids": ids}}));
        assert!(shown.starts_with("replay=8, ids=1,2,3,4,5,6,7,8,9,10 and 990 more, options="), "{shown}");
        assert_eq!(cell(&json!({"replay": 9, "selection": {"filter": {}, "up_to": 3}})), "replay=9, all, up_to=3");
        assert_eq!(cell(&json!({"consumer": "order", "note_sha256": null})), "consumer=order");
    }

    #[test]
    fn how_many_dead_letters_of_a_replay_ended_in_which_way_is_never_cut_off() {
        let failed: Vec<i64> = (1_000..2_000).collect();
        let letters =
            json!({"closed": 12_345, "failed_again": 1_000, "processed": 98_765, "returned": 4, "unknown": 3});
        let shown =
            cell(&json!({"failed_again": failed, "letters": letters, "state": "stopped", "unknown": [7, 8, 9]}));
        let expected = "state=stopped, closed=12345, failed_again=1000, processed=98765, returned=4, unknown=3, \
                        failed_again=1000,1001,1002,";
        assert!(shown.starts_with(expected), "{shown}");
        assert!(shown.ends_with('…'), "{shown}");
        assert_eq!(cell(&json!({"state": "finished", "letters": {}})), "state=finished, no dead letters");
        let edit = json!({"revision": 2, "body_sha256": {"before": "0123456789ab", "after": "ba9876543210"}});
        assert_eq!(cell(&edit), "revision=2, body 01234567.. -> ba987654..");
    }
}
