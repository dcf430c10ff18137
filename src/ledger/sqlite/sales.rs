//! The aggregates for reports: what was sold per minute, hour and day (UTC), currency and product.
//!
//! Sums are exact however many digits they take, never floats, so no sale can keep another from being counted.
//! A sale is added in memory and written once per commit and bucket; this must never add one whose event was not new.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use rusqlite::{Connection, OptionalExtension, Statement};
use rust_decimal::Decimal;

use super::order_sums;
use crate::domain::{Currency, Sale};
use crate::ledger::buckets::{DAY, HOUR, MINUTE, bucket_start};
use crate::ledger::figures::Figures;

/// Sums kept in memory between commits, about 1 MiB; beyond it all are dropped and read again.
const KEPT_SUMS: usize = 4_096;

/// Widths of the buckets in milliseconds, with their names in the table.
const GRANULARITIES: [(&str, i64); 3] = [("minute", MINUTE), ("hour", HOUR), ("day", DAY)];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bucket {
    granularity: usize,
    starts_at: i64,
    currency: Currency,
    product: Rc<str>,
}

/// What was sold in one minute and currency, since the last commit.
struct Minute {
    starts_at: i64,
    currency: Currency,
    products: HashMap<Rc<str>, Figures>,
}

/// The sums the writer knows, and the statements that read and write them. Sums outlive their transaction, so
/// that a busy bucket is read once and then only written.
pub(super) struct Sales<'c> {
    read: Statement<'c>,
    write: Statement<'c>,
    sums: HashMap<Bucket, Figures>,
    changes: Vec<Minute>,
}

impl<'c> Sales<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            read: connection.prepare(
                "SELECT orders, quantity, revenue FROM sales
                 WHERE granularity = ?1 AND starts_at = ?2 AND currency = ?3 AND product = ?4",
            )?,
            write: connection.prepare(
                "INSERT INTO sales (granularity, starts_at, currency, product, orders, quantity, revenue)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (granularity, starts_at, currency, product)
                 DO UPDATE SET orders = excluded.orders, quantity = excluded.quantity, revenue = excluded.revenue",
            )?,
            sums: HashMap::new(),
            changes: Vec::new(),
        })
    }

    /// Counts a sale.
    pub(super) fn add(&mut self, sale: &Sale) {
        let figures = Figures { orders: 1, quantity: sale.quantity, revenue: sale.total.into() };
        let at = sale.at.as_millisecond();
        let (starts_at, currency) = (bucket_start(at, MINUTE), sale.currency);
        // Sales of one commit are of few minutes and currencies, and mostly of those used last.
        let known = self.changes.iter().rposition(|it| it.starts_at == starts_at && it.currency == currency);
        let index = known.unwrap_or_else(|| {
            self.changes.push(Minute { starts_at, currency, products: HashMap::new() });
            self.changes.len() - 1
        });
        let products = &mut self.changes[index].products;
        match products.get_mut(sale.product.as_str()) {
            Some(sum) => sum.add(figures),
            None => drop(products.insert(sale.product.as_str().into(), figures)),
        }
    }

    /// Adds what changed to the three buckets it belongs to. Among the last steps before every commit.
    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        for Minute { starts_at: minute, currency, products } in self.changes.drain(..) {
            for (product, change) in products {
                for (granularity, (name, width)) in GRANULARITIES.into_iter().enumerate() {
                    let starts_at = bucket_start(minute, width);
                    let bucket = Bucket { granularity, starts_at, currency, product: Rc::clone(&product) };
                    let sum = match self.sums.entry(bucket) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(unknown) => {
                            let key = (name, starts_at, currency.as_str(), &product);
                            let stored = self.read.query_row(key, |row| order_sums::figures(row, 0)).optional()?;
                            unknown.insert(stored.unwrap_or_default())
                        }
                    };
                    sum.add(change);
                    self.write.execute((
                        name,
                        starts_at,
                        currency.as_str(),
                        &product,
                        sum.orders,
                        sum.quantity,
                        sum.revenue.to_string(),
                    ))?;
                }
            }
        }
        if self.sums.len() > KEPT_SUMS {
            self.sums.clear();
        }
        Ok(())
    }

    /// Drops all sums: after a rollback, or another process's commit, they are not the file's.
    pub(super) fn clear(&mut self) {
        self.sums.clear();
        self.changes.clear();
    }
}

/// Reads an amount from its text; `column` is where it stood.
pub(super) fn parse_amount(text: &str, column: usize) -> rusqlite::Result<Decimal> {
    Decimal::from_str_exact(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
