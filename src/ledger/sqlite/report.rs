//! Reads a report from the aggregates, on a connection of its own, from one snapshot.
//!
//! It must never wait for the writer, or make the writer wait.

use std::ops::Range;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::Connection;

use super::open::{self, READ_BUSY_TIMEOUT};
use super::order_sums::{self, COUNTED, sums_columns};
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
        "SELECT {COUNTED} FROM orders WHERE status = 'failed'
           AND id IN (SELECT identity FROM dead_letters WHERE dead_lettered_at >= ?1 AND dead_lettered_at < ?2)"
    ))?;
    let mut rows = query.query((report.window.since.as_millisecond(), report.window.until.as_millisecond()))?;
    while let Some(row) = rows.next()? {
        let (group, figures) = order_sums::read_group_and_figures(row, 0)?;
        report.add_failed(group.currency.as_str(), figures);
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

/// Every range with its granularity.
fn ranges<'g>(cover: &[(&'g str, Vec<Range<i64>>)]) -> Vec<(&'g str, Range<i64>)> {
    cover.iter().flat_map(|(name, ranges)| ranges.iter().map(|range| (*name, range.clone()))).collect()
}
