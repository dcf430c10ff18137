//! Puts a report together from aggregates. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{CurrencyReport, DeadLettered, GroupBy, MAX_ROWS, Report, ReportError, ReportRow, Window};
use crate::ledger::buckets::{DAY, HOUR, bucket_start};
use crate::ledger::figures::{Figures, OrderFigures, OrdersByStatus};

/// What a row stands for. Rows other than products are sorted by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Its start, in milliseconds since 1970.
    Hour(i64),
    /// Its start, in milliseconds since 1970.
    Day(i64),
    Product(String),
    Accepted,
    Processed,
    Cancelled,
    Prevented,
    Failed,
    Normal,
    Urgent,
}

#[derive(Default)]
struct CurrencySums {
    orders: OrdersByStatus,
    failed: OrderFigures,
    failed_again: i64,
    failed_discarded: i64,
    rows: BTreeMap<Key, OrderFigures>,
}

/// A report in the making. An implementation adds every aggregate that is within [`ReportBuilder::window`].
pub(in crate::ledger) struct ReportBuilder {
    pub window: Window,
    pub by: GroupBy,
    currencies: BTreeMap<String, CurrencySums>,
}

impl ReportBuilder {
    pub fn new(window: Window, by: GroupBy) -> Self {
        Self { window, by, currencies: BTreeMap::new() }
    }

    /// Adds the orders of one currency and priority to which something happened in one bucket. `starts_at` is the bucket's start in
    /// milliseconds since 1970; a bucket is at most an hour wide. Those that were cancelled are subtracted from those that were
    /// processed.
    pub fn add_orders(&mut self, starts_at: i64, currency: &str, priority: bool, orders: OrdersByStatus) {
        let OrdersByStatus { accepted, mut processed, cancelled, prevented } = orders;
        processed.add(-cancelled);
        let by = self.by;
        let sums = self.currency(currency);
        sums.orders.add(OrdersByStatus { processed, ..orders });
        let mut add = |key, figures: OrderFigures| {
            let is_of_processed = !matches!(key, Key::Accepted | Key::Cancelled | Key::Prevented);
            if figures.figures.orders != 0 || is_of_processed && cancelled.figures.orders != 0 {
                sums.rows.entry(key).or_default().add(figures);
            }
        };
        match by {
            // Added by `add_product`.
            GroupBy::Product => {}
            GroupBy::Hour => add(Key::Hour(bucket_start(starts_at, HOUR)), processed),
            GroupBy::Day => add(Key::Day(bucket_start(starts_at, DAY)), processed),
            GroupBy::Priority => add(if priority { Key::Urgent } else { Key::Normal }, processed),
            GroupBy::Status => {
                add(Key::Accepted, accepted);
                add(Key::Processed, processed);
                add(Key::Cancelled, cancelled);
                add(Key::Prevented, prevented);
            }
        }
    }

    /// Adds an order of one currency that was dead-lettered and is not processed; whether it was replayed and has failed again, and
    /// whether its dead letter was discarded.
    pub fn add_failed(&mut self, currency: &str, order: OrderFigures, (failed_again, discarded): (bool, bool)) {
        let is_by_status = self.by == GroupBy::Status;
        let sums = self.currency(currency);
        sums.failed.add(order);
        sums.failed_again += i64::from(failed_again);
        sums.failed_discarded += i64::from(discarded);
        if is_by_status {
            sums.rows.entry(Key::Failed).or_default().add(order);
        }
    }

    /// Adds sales of one product. Only for a report by product.
    pub fn add_product(&mut self, currency: &str, product: String, sold: Figures) {
        self.currency(currency).rows.entry(Key::Product(product)).or_default().figures.add(sold);
    }

    /// The report. `dead_lettered` is sorted by consumer and reason.
    ///
    /// # Errors
    /// [`ReportError::TooLong`].
    pub fn finish(self, dead_lettered: Vec<DeadLettered>) -> Result<Report, ReportError> {
        if self.currencies.values().map(|sums| sums.rows.len()).sum::<usize>() > MAX_ROWS {
            return Err(ReportError::TooLong);
        }
        let currencies = self.currencies.into_iter().map(|(currency, sums)| block(currency, sums)).collect();
        Ok(Report { window: self.window, by: self.by, currencies, dead_lettered })
    }

    fn currency(&mut self, currency: &str) -> &mut CurrencySums {
        if !self.currencies.contains_key(currency) {
            self.currencies.insert(currency.to_owned(), CurrencySums::default());
        }
        self.currencies.get_mut(currency).expect("it was inserted above")
    }
}

fn block(currency: String, sums: CurrencySums) -> CurrencyReport {
    let by_product = sums.rows.keys().any(|key| matches!(key, Key::Product(_)));
    let row = |(key, OrderFigures { figures, charges, total }): (Key, OrderFigures)| {
        let is_of_orders = has_charges(&key);
        let (charges, total) = (is_of_orders.then_some(charges), is_of_orders.then_some(total));
        ReportRow { key: key.into_text(), figures, charges, total }
    };
    // What was counted as prevented may have been taken back.
    let is_empty = |key: &Key, orders: &OrderFigures| *key == Key::Prevented && orders.figures.orders == 0;
    let rows = sums.rows.into_iter().filter(|(key, orders)| !is_empty(key, orders));
    let mut rows: Vec<ReportRow> = rows.map(row).collect();
    if by_product {
        rows.sort_by(|a, b| b.figures.revenue.cmp(&a.figures.revenue).then_with(|| a.key.cmp(&b.key)));
    }
    let OrdersByStatus { accepted: _, processed, cancelled, prevented } = sums.orders;
    let CurrencySums { failed, failed_again, failed_discarded, .. } = sums;
    CurrencyReport { currency, processed, cancelled, prevented, failed, failed_again, failed_discarded, rows }
}

/// Charges belong to orders, not to products.
fn has_charges(key: &Key) -> bool {
    match key {
        Key::Product(_) => false,
        Key::Hour(_)
        | Key::Day(_)
        | Key::Accepted
        | Key::Processed
        | Key::Cancelled
        | Key::Prevented
        | Key::Failed
        | Key::Normal
        | Key::Urgent => true,
    }
}

impl Key {
    fn into_text(self) -> String {
        let formatted = |millis, format| {
            let moment = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN);
            moment.to_zoned_datetime(TimeZone::UTC).strftime(format).to_string()
        };
        match self {
            Key::Hour(millis) => formatted(millis, "%Y-%m-%dT%H:%MZ"),
            Key::Day(millis) => formatted(millis, "%Y-%m-%d"),
            Key::Product(name) => name,
            Key::Accepted => "accepted".to_owned(),
            Key::Processed => "processed".to_owned(),
            Key::Cancelled => "cancelled".to_owned(),
            Key::Prevented => "prevented".to_owned(),
            Key::Failed => "failed".to_owned(),
            Key::Normal => "normal".to_owned(),
            Key::Urgent => "urgent".to_owned(),
        }
    }
}
