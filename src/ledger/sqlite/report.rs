//! Reads a report from the aggregates, on a connection of its own, from one snapshot.
//!
//! It must never wait for the writer, or make the writer wait.

use std::ops::Range;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::Connection;

use super::open::{self, READ_BUSY_TIMEOUT};
use super::order_sums::{self, COUNTED, sums_columns};
use crate::ledger::dead_letters::LetterState;
use crate::ledger::report::{DeadLettered, GroupBy, Report, ReportBuilder, ReportError, ReportQuery, Window};

/// Blocks for some milliseconds of disk I/O, longer if there are many rows.
pub(super) fn read(directory: &Path, query: ReportQuery, now: Timestamp) -> Result<Report, ReportError> {
    let mut report = ReportBuilder::new(Window::new(&query, now)?, query.by);
    let connection = open::for_reading(directory, READ_BUSY_TIMEOUT)?;
    let dead_lettered = read_all(&connection, &mut report).map_err(|error| open::error(directory, error))?;
    report.finish(dead_lettered)
}

fn read_all(connection: &Connection, report: &mut ReportBuilder) -> rusqlite::Result<Vec<DeadLettered>> {
    // One transaction, so one snapshot.
    let snapshot = connection.unchecked_transaction()?;
    read_orders(&snapshot, report)?;
    if report.by == GroupBy::Product {
        read_products(&snapshot, report)?;
    }
    read_failed(&snapshot, report)?;
    read_dead_lettered(&snapshot, report.window)
}

fn read_orders(snapshot: &Connection, report: &mut ReportBuilder) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(&format!(
        "SELECT starts_at, currency, priority, {}
         FROM order_sums WHERE granularity = ?1 AND starts_at >= ?2 AND starts_at < ?3",
        sums_columns()
    ))?;
    let cover = report.window.cover(false);
    for (granularity, Range { start, end }) in ranges(&[("minute", cover.minutes), ("hour", cover.hours)]) {
        let mut rows = query.query((granularity, start, end))?;
        while let Some(row) = rows.next()? {
            let orders = order_sums::read_sums(row, 3)?;
            report.add_orders(row.get(0)?, row.get_ref(1)?.as_str()?, row.get(2)?, orders);
        }
    }
    Ok(())
}

fn read_products(snapshot: &Connection, report: &mut ReportBuilder) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(
        "SELECT currency, product, orders, quantity, revenue
         FROM sales WHERE granularity = ?1 AND starts_at >= ?2 AND starts_at < ?3",
    )?;
    let cover = report.window.cover(true);
    let ranges = ranges(&[("minute", cover.minutes), ("hour", cover.hours), ("day", cover.days)]);
    for (granularity, Range { start, end }) in ranges {
        let mut rows = query.query((granularity, start, end))?;
        while let Some(row) = rows.next()? {
            report.add_product(row.get_ref(0)?.as_str()?, row.get(1)?, order_sums::read_figures(row, 2)?);
        }
    }
    Ok(())
}

/// Orders that are failed now, by the time of their dead letters. The last one of an order counts.
fn read_failed(snapshot: &Connection, report: &mut ReportBuilder) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(&format!(
        "SELECT {COUNTED},
                EXISTS (SELECT 1 FROM stored_dead_letters AS letters JOIN replay_letters ON letter_id = letters.id
                        WHERE letters.order_id = orders.id AND replay_letters.state = 'failed_again') AS failed_again,
                (SELECT state = 'discarded' FROM stored_dead_letters WHERE order_id = orders.id ORDER BY id DESC LIMIT 1)
                    AS discarded
         FROM orders WHERE status = 'failed'
           AND id IN (SELECT identity FROM dead_letters WHERE dead_lettered_at >= ?1 AND dead_lettered_at < ?2)"
    ))?;
    let mut rows = query.query((report.window.since.as_millisecond(), report.window.until.as_millisecond()))?;
    while let Some(row) = rows.next()? {
        let (group, figures) = order_sums::read_group_and_figures(row, 0)?;
        let is_discarded: Option<bool> = row.get("discarded")?;
        report.add_failed(group.currency.as_str(), figures, (row.get("failed_again")?, is_discarded.unwrap_or(false)));
    }
    Ok(())
}

fn read_dead_lettered(snapshot: &Connection, window: Window) -> rusqlite::Result<Vec<DeadLettered>> {
    let mut query = snapshot.prepare(
        "SELECT consumer, reason, stored, count(*) FROM
             (SELECT consumer, reason,
                     (SELECT state FROM stored_dead_letters AS letters
                      WHERE letters.identity = dead_letters.identity AND letters.consumer IN ('', dead_letters.consumer)
                      ORDER BY id DESC LIMIT 1) AS stored
              FROM dead_letters WHERE dead_lettered_at >= ?1 AND dead_lettered_at < ?2)
         GROUP BY consumer, reason, stored ORDER BY consumer, reason",
    )?;
    let mut rows = query.query((window.since.as_millisecond(), window.until.as_millisecond()))?;
    let mut dead_lettered: Vec<DeadLettered> = Vec::new();
    while let Some(row) = rows.next()? {
        let (consumer, reason): (String, String) = (row.get(0)?, row.get(1)?);
        let stored: Option<String> = row.get(2)?;
        match dead_lettered.last_mut() {
            Some(last) if (&last.consumer, &last.reason) == (&consumer, &reason) => {}
            Some(_) | None => dead_lettered.push(DeadLettered { consumer, reason, ..DeadLettered::default() }),
        }
        if let Some(last) = dead_lettered.last_mut() {
            last.add(stored.as_deref().and_then(LetterState::parse), row.get(3)?);
        }
    }
    Ok(dead_lettered)
}

/// Every range with its granularity.
fn ranges<'g>(cover: &[(&'g str, Vec<Range<i64>>)]) -> Vec<(&'g str, Range<i64>)> {
    cover.iter().flat_map(|(name, ranges)| ranges.iter().map(|range| (*name, range.clone()))).collect()
}
