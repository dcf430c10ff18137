//! Reads a report from the aggregates, on a connection of its own, in one snapshot.
//!
//! It adds up what is stored. It must never wait for the writer, nor make the writer wait.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::Connection;

use super::open::{self, OpenError};
use super::order_sums::{self, Sums};
use super::{FILE_NAME, READ_PATIENCE};
use crate::ledger::report::{Block, By, DAY, DeadLettered, Figures, HOUR, MAX_ROWS, Report, ReportError, Row, Window};

/// What tells rows apart. Its order is theirs, but for products.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Milliseconds.
    Hour(i64),
    /// Milliseconds.
    Day(i64),
    Product(String),
    Accepted,
    Processed,
    Normal,
    Urgent,
}

#[derive(Default)]
struct Sheet {
    processed: Figures,
    rows: BTreeMap<Key, Figures>,
}

/// One sheet for each currency.
type Sheets = BTreeMap<String, Sheet>;

pub(in crate::ledger) fn read(directory: &Path, window: Window, by: By) -> Result<Report, ReportError> {
    let connection = open::for_reading(directory, READ_PATIENCE)?;
    let failed = |error| ReportError::Ledger(OpenError::from_sqlite(&directory.join(FILE_NAME), error));
    let (sheets, dead_lettered) = read_all(&connection, window, by).map_err(failed)?;
    if sheets.values().map(|sheet| sheet.rows.len()).sum::<usize>() > MAX_ROWS {
        return Err(ReportError::TooLong);
    }
    let currencies = sheets.into_iter().map(|(currency, sheet)| block(currency, sheet)).collect();
    Ok(Report { window, by, currencies, dead_lettered })
}

fn read_all(connection: &Connection, window: Window, by: By) -> rusqlite::Result<(Sheets, Vec<DeadLettered>)> {
    // One transaction: all figures are of the same instant.
    let snapshot = connection.unchecked_transaction()?;
    let mut sheets = Sheets::new();
    read_orders(&snapshot, window, by, &mut sheets)?;
    if by == By::Product {
        read_products(&snapshot, window, &mut sheets)?;
    }
    Ok((sheets, read_dead_lettered(&snapshot, window)?))
}

fn read_orders(snapshot: &Connection, window: Window, by: By, sheets: &mut Sheets) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(
        "SELECT starts_at, currency, priority,
                accepted, accepted_quantity, accepted_total, processed, processed_quantity, processed_total
         FROM order_sums WHERE granularity = ?1 AND starts_at >= ?2 AND starts_at < ?3",
    )?;
    let cover = window.cover(false);
    for (granularity, Range { start, end }) in stretches(&[("minute", cover.minutes), ("hour", cover.hours)]) {
        let mut rows = query.query((granularity, start, end))?;
        while let Some(row) = rows.next()? {
            let (starts_at, urgent, sums) = (row.get(0)?, row.get(2)?, order_sums::sums(row, 3)?);
            let sheet = sheet(sheets, row.get_ref(1)?.as_str()?);
            sheet.processed.add(sums.processed);
            add(sheet, by, starts_at, urgent, sums);
        }
    }
    Ok(())
}

/// Adds a bucket to the rows it belongs to. Products are read from elsewhere.
fn add(sheet: &mut Sheet, by: By, starts_at: i64, urgent: bool, sums: Sums) {
    let mut enter = |key, figures: Figures| {
        if figures.orders > 0 {
            sheet.rows.entry(key).or_default().add(figures);
        }
    };
    match by {
        By::Product => {}
        By::Hour => enter(Key::Hour(starts_at - starts_at.rem_euclid(HOUR)), sums.processed),
        By::Day => enter(Key::Day(starts_at - starts_at.rem_euclid(DAY)), sums.processed),
        By::Priority => enter(if urgent { Key::Urgent } else { Key::Normal }, sums.processed),
        By::Status => {
            enter(Key::Accepted, sums.accepted);
            enter(Key::Processed, sums.processed);
        }
    }
}

fn read_products(snapshot: &Connection, window: Window, sheets: &mut Sheets) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(
        "SELECT currency, product, orders, quantity, revenue
         FROM sales WHERE granularity = ?1 AND starts_at >= ?2 AND starts_at < ?3",
    )?;
    let cover = window.cover(true);
    let stretches = stretches(&[("minute", cover.minutes), ("hour", cover.hours), ("day", cover.days)]);
    for (granularity, Range { start, end }) in stretches {
        let mut rows = query.query((granularity, start, end))?;
        while let Some(row) = rows.next()? {
            let sheet = sheet(sheets, row.get_ref(0)?.as_str()?);
            sheet.rows.entry(Key::Product(row.get(1)?)).or_default().add(order_sums::figures(row, 2)?);
        }
    }
    Ok(())
}

fn read_dead_lettered(snapshot: &Connection, window: Window) -> rusqlite::Result<Vec<DeadLettered>> {
    let mut query = snapshot.prepare(
        "SELECT consumer, reason, count(*) FROM dead_letters WHERE dead_lettered_at >= ?1 AND dead_lettered_at < ?2
         GROUP BY consumer, reason ORDER BY consumer, reason",
    )?;
    let ends = (window.since.as_millisecond(), window.until.as_millisecond());
    let dead_lettered = query.query_map(ends, |row| {
        Ok(DeadLettered { consumer: row.get(0)?, reason: row.get(1)?, messages: row.get(2)? })
    })?;
    dead_lettered.collect()
}

/// Every stretch with its granularity.
fn stretches<'g>(cover: &[(&'g str, Vec<Range<i64>>)]) -> Vec<(&'g str, Range<i64>)> {
    cover.iter().flat_map(|(name, ranges)| ranges.iter().map(|range| (*name, range.clone()))).collect()
}

fn sheet<'s>(sheets: &'s mut Sheets, currency: &str) -> &'s mut Sheet {
    if !sheets.contains_key(currency) {
        sheets.insert(currency.to_owned(), Sheet::default());
    }
    sheets.get_mut(currency).expect("it was inserted above")
}

fn block(currency: String, sheet: Sheet) -> Block {
    let by_product = sheet.rows.keys().any(|key| matches!(key, Key::Product(_)));
    let mut rows: Vec<Row> =
        sheet.rows.into_iter().map(|(key, figures)| Row { key: key.into_text(), figures }).collect();
    if by_product {
        rows.sort_by(|a, b| b.figures.revenue.cmp(&a.figures.revenue).then_with(|| a.key.cmp(&b.key)));
    }
    Block { currency, processed: sheet.processed, rows }
}

impl Key {
    fn into_text(self) -> String {
        let told = |millis, format| {
            let moment = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN);
            moment.to_zoned(TimeZone::UTC).strftime(format).to_string()
        };
        match self {
            Key::Hour(millis) => told(millis, "%Y-%m-%dT%H:%MZ"),
            Key::Day(millis) => told(millis, "%Y-%m-%d"),
            Key::Product(name) => name,
            Key::Accepted => "accepted".to_owned(),
            Key::Processed => "processed".to_owned(),
            Key::Normal => "normal".to_owned(),
            Key::Urgent => "urgent".to_owned(),
        }
    }
}
