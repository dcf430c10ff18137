//! What is done with event files besides appending lines: removing old lines, and erasing a customer's personal data.
//!
//! It works while daemons append to the files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;

use jiff::{Span, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::EVENT_ID_SUFFIXES;
use crate::files::{LineEdit, Rolling, Rotation, rewrite_lines};
use crate::ledger::ErasureSubject;

/// Fields of an event's body that say nothing about a customer. All others are erased, since producers may add any.
const KEPT_FIELDS: [&str; 23] = [
    "at",
    "channel",
    "consumer",
    "currency",
    "discount",
    "erased",
    "event",
    "extra_dropped",
    "failure_code",
    "failure_kind",
    "fees",
    "goods_total",
    "order_id",
    "placed_at",
    "price",
    "priority",
    "product",
    "quantity",
    "reason",
    "shipping",
    "tax",
    "tax_included",
    "total",
];

/// Longest text of a kept field, in bytes, except products and order ids.
const MAX_KEPT_BYTES: usize = 64;

/// A line of an event file.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    received_at: Timestamp,
    #[serde(borrow)]
    body: BTreeMap<String, &'a RawValue>,
}

/// Removes what was received before this time: whole files of minutes, hours or days, and the lines of a file that covers
/// everything, once they are a day older. Returns the number of files and lines removed. Blocks.
///
/// # Errors
/// The operating system's error.
pub fn remove_old_events(files: &Rolling, before: Timestamp) -> io::Result<usize> {
    let mut removed = files.remove_older(before)?;
    let everything = Rolling { rotation: Rotation::Never, ..files.clone() }.path(before);
    let is_before = |line: &[u8], time: Timestamp| {
        serde_json::from_slice::<Line<'_>>(line).is_ok_and(|line| line.received_at < time)
    };
    // Rewriting a large file for each line would be expensive.
    let due = before.checked_sub(Span::new().hours(24)).unwrap_or(before);
    if has_first_line(&everything, |line| is_before(line, due))? {
        let edit = |line: &[u8]| if is_before(line, before) { LineEdit::Remove } else { LineEdit::Keep };
        removed += rewrite_lines(&everything, false, edit)?.removed;
    }
    Ok(removed)
}

fn has_first_line(path: &std::path::Path, matches: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    io::BufRead::read_until(&mut io::BufReader::new(file), b'\n', &mut line)?;
    Ok(matches(line.trim_ascii_end()))
}

/// Erases from one file what its events say about a customer: the body keeps only fields such as product and total, with
/// `"erased": true`. Returns the number of lines. Blocks.
///
/// # Errors
/// The operating system's error. The file is unchanged then.
pub fn erase_events(
    path: &std::path::Path,
    subject: &ErasureSubject,
    orders: &HashSet<String>,
    dry_run: bool,
) -> io::Result<usize> {
    Ok(rewrite_lines(path, dry_run, |line| erased(line, subject, orders))?.replaced)
}

/// The event files of a kind: those to erase from, and those that cannot be, because they are compressed.
///
/// # Errors
/// The operating system's error.
pub fn event_files(files: &Rolling) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let compressed = |path: &PathBuf| {
        path.extension().is_some_and(|suffix| ["gz", "xz", "zst", "bz2"].iter().any(|known| suffix == *known))
    };
    let (unreadable, readable) = files.all_files()?.into_iter().partition(compressed);
    Ok((readable, unreadable))
}

fn erased(line: &[u8], subject: &ErasureSubject, orders: &HashSet<String>) -> LineEdit {
    let Ok(mut event) = serde_json::from_slice::<Line<'_>>(line) else { return LineEdit::Keep };
    if !is_about(&event, subject, orders) {
        return LineEdit::Keep;
    }
    let fields = event.body.len();
    let items = event.body.get("items").map(|raw| kept_items(raw.get()));
    event.body.retain(|field, value| is_kept(field, value.get()));
    if let Some(items) = items.as_ref().and_then(Option::as_ref) {
        event.body.insert("items".to_owned(), &items.kept);
    }
    if event.body.len() == fields && items.as_ref().is_none_or(|items| items.as_ref().is_some_and(|items| items.all)) {
        return LineEdit::Keep;
    }
    let erased: Box<RawValue> = serde_json::value::to_raw_value(&true).expect("it is JSON");
    event.body.insert("erased".to_owned(), &erased);
    let body = serde_json::to_string(&event.body).expect("fields are text and JSON");
    let mut line = super::event_line::event_line(&event.id, &event.event, event.received_at, &body);
    line.pop();
    LineEdit::Replace(line)
}

fn is_about(event: &Line<'_>, subject: &ErasureSubject, orders: &HashSet<String>) -> bool {
    let field = |name: &str| event.body.get(name).map(|value| text(value.get()));
    let of_customer = match subject {
        ErasureSubject::Customer(id) => field("customer_id").is_some_and(|found| found == *id),
        ErasureSubject::Order(_) | ErasureSubject::Message(_) | ErasureSubject::DeadLetter(_) => false,
    };
    let of_order = |id: &str| orders.contains(id);
    of_customer
        || field("order_id").is_some_and(|id| of_order(&id))
        || of_order(&event.id)
        || subject.is_message(&event.id)
        // Not every id that begins with the order's: `ord-1/2` may be another order.
        || EVENT_ID_SUFFIXES.iter().any(|suffix| event.id.strip_suffix(suffix).is_some_and(of_order))
}

/// Whether a field says nothing about a customer: its name is known, and its value is a product, the order's id, a number, or
/// a text such as a code or a time. Other producers may write sentences into a field of such a name.
fn is_kept(field: &str, value: &str) -> bool {
    let is_code = |text: &str| {
        text.len() <= MAX_KEPT_BYTES && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:+".contains(c))
    };
    KEPT_FIELDS.contains(&field)
        && !value.starts_with(['{', '['])
        && (matches!(field, "product" | "order_id") || is_code(&text(value)))
}

/// What is kept of an order's lines.
struct KeptItems {
    kept: Box<RawValue>,
    /// All of them is kept.
    all: bool,
}

/// The lines of an order with the fields that say nothing about a customer; `None` if the value is no list of lines.
fn kept_items(items: &str) -> Option<KeptItems> {
    let mut items: Vec<BTreeMap<String, &RawValue>> = serde_json::from_str(items).ok()?;
    let fields = |items: &[BTreeMap<String, &RawValue>]| items.iter().map(BTreeMap::len).sum::<usize>();
    let before = fields(&items);
    for item in &mut items {
        item.retain(|field, value| is_kept(field, value.get()));
    }
    let all = fields(&items) == before;
    Some(KeptItems { kept: serde_json::value::to_raw_value(&items).expect("lines are JSON"), all })
}

/// An id, which may be a JSON string or number.
fn text(json: &str) -> String {
    serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::FILE_MODE;

    const SALE: &str = r#"{"id":"ord-1/analytics/processed","event":"processed","received_at":"2026-11-20T08:00:00Z","body":{"event":"processed","order_id":"ord-1","product":"Desk","total":"12.10","customer_id":"7","extra":{"name":"Ada"}}}"#;
    const NOTICE: &str = r#"{"id":"ord-1/notification/processed","event":"email","received_at":"2026-11-22T08:00:00Z","body":{"order_id":"ord-1","email":"ada@example.com"}}"#;
    const VIEW: &str = r#"{"id":"view-1","event":"page_view","received_at":"2026-11-22T08:00:00Z","body":{"customer_id":7,"page":"/"}}"#;
    const OTHER: &str = r#"{"id":"ord-10/notification/processed","event":"email","received_at":"2026-11-22T09:00:00Z","body":{"order_id":"ord-10","email":"bob@example.com","customer_id":"70"}}"#;

    #[test]
    fn what_events_say_about_a_customer_is_erased_and_figures_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let inner = OTHER.replace("ord-10", "ord-1/2");
        let call =
            VIEW.replace("\"page\":\"/\"", r#""reason":"Ada called","channel":"ada@example.com","event":"call""#);
        fs::write(&path, [SALE, NOTICE, VIEW, &call, OTHER, &inner, "not json", ""].join("\n")).unwrap();
        let orders = HashSet::from(["ord-1".to_owned()]);
        let customer = ErasureSubject::Customer("7".to_owned());
        assert_eq!(erase_events(&path, &customer, &orders, true).unwrap(), 4);
        assert_eq!(erase_events(&path, &customer, &orders, false).unwrap(), 4);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"id":"ord-1/analytics/processed","event":"processed","received_at":"2026-11-20T08:00:00Z","body":{"erased":true,"event":"processed","order_id":"ord-1","product":"Desk","total":"12.10"}}"#
        );
        assert!(!text.contains("ada") && !text.contains("Ada") && !lines[2].contains('7'), "{text}");
        assert!(lines[3].ends_with(r#""body":{"erased":true,"event":"call"}}"#), "{}", lines[3]);
        assert_eq!(lines[4..], [OTHER, &inner, "not json"]);
        assert_eq!(erase_events(&path, &customer, &orders, false).unwrap(), 0, "nothing is left to erase");
        assert_eq!(erase_events(&path, &ErasureSubject::Order("x".to_owned()), &orders, false).unwrap(), 0);
    }

    #[test]
    fn the_lines_of_an_order_stay_without_what_they_say_about_the_customer() {
        let orders = HashSet::from(["ord-1".to_owned()]);
        let subject = ErasureSubject::Order("ord-1".to_owned());
        let lines = r#""items":[{"price":"1","product":"Ring","quantity":1,"total":"1"}]"#;
        let with = |items: &str| SALE.replace(r#","customer_id":"7","extra":{"name":"Ada"}"#, &format!(",{items}"));
        assert!(matches!(erased(with(lines).as_bytes(), &subject, &orders), LineEdit::Keep));
        let engraved = lines.replace(r#""total":"1""#, r#""total":"1","extra":{"engraving":"Ada"}"#);
        let LineEdit::Replace(line) = erased(with(&engraved).as_bytes(), &subject, &orders) else { panic!("kept") };
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(lines) && !line.contains("Ada"), "{line}");
        let LineEdit::Replace(line) = erased(with(r#""items":"Ada""#).as_bytes(), &subject, &orders) else {
            panic!("kept")
        };
        assert!(!String::from_utf8(line).unwrap().contains("Ada"));
    }

    #[test]
    fn old_lines_of_a_file_that_covers_everything_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        fs::write(&path, [SALE, NOTICE, OTHER, ""].join("\n")).unwrap();
        let (name, suffix) = ("events", "jsonl");
        let directory = directory.path().to_owned();
        let files = Rolling { directory, name, suffix, rotation: Rotation::Daily, keep: 9, mode: FILE_MODE };
        let remove = |before: &str| remove_old_events(&files, before.parse().unwrap()).unwrap();
        assert_eq!(remove("2026-11-21T07:00:00Z"), 0, "not each line by itself");
        assert_eq!(remove("2026-11-22T08:30:00Z"), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{OTHER}\n"));
    }
}
