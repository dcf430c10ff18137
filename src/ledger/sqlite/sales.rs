//! The aggregates for reports: what was sold per minute, hour and day (UTC), currency and product.
//!
//! Sums are exact however many digits they take, never floats, so no sale can keep another from being counted. A sale is added in memory and written once per commit and bucket;
//! this must never add one whose event was not new.

use std::collections::HashMap;
use std::rc::Rc;

use rusqlite::{Connection, OptionalExtension, Statement, params};
use rust_decimal::Decimal;

use super::order_sums;
use crate::ledger::report::{DAY, Figures, HOUR, MINUTE};
use crate::order::{Currency, Sale};

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

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    figures: Figures,
    /// Differs from its row, and is listed in [`Sales::unwritten`].
    unwritten: bool,
}

/// The sums the writer knows, and the statements that read and write them. Sums outlive their transaction, so
/// that a busy bucket is read once and then only written.
pub(super) struct Sales<'c> {
    read: Statement<'c>,
    write: Statement<'c>,
    sums: HashMap<Bucket, Sum>,
    unwritten: Vec<Bucket>,
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
            unwritten: Vec::new(),
        })
    }

    /// Adds a sale to its three buckets, or to none.
    pub(super) fn add(&mut self, sale: &Sale) -> rusqlite::Result<()> {
        let product: Rc<str> = sale.product.as_str().into();
        let figures = Figures { orders: 1, quantity: sale.quantity, revenue: sale.total.into() };
        let at = sale.at.as_millisecond();
        let mut sums = [Sum::default(); GRANULARITIES.len()];
        let bucket = |granularity: usize| Bucket {
            granularity,
            starts_at: at - at.rem_euclid(GRANULARITIES[granularity].1),
            currency: sale.currency,
            product: Rc::clone(&product),
        };
        for (granularity, sum) in sums.iter_mut().enumerate() {
            *sum = Sum { unwritten: true, ..self.sum(&bucket(granularity))? };
            sum.figures.add(figures);
        }
        for (granularity, sum) in sums.into_iter().enumerate() {
            let bucket = bucket(granularity);
            if !self.sums.insert(bucket.clone(), sum).is_some_and(|before| before.unwritten) {
                self.unwritten.push(bucket);
            }
        }
        Ok(())
    }

    fn sum(&mut self, bucket: &Bucket) -> rusqlite::Result<Sum> {
        if let Some(sum) = self.sums.get(bucket) {
            return Ok(*sum);
        }
        let key =
            params![GRANULARITIES[bucket.granularity].0, bucket.starts_at, bucket.currency.as_str(), bucket.product];
        let stored = self.read.query_row(key, |row| order_sums::figures(row, 0)).optional()?;
        Ok(Sum { figures: stored.unwrap_or_default(), unwritten: false })
    }

    /// Writes the sums that changed. The last step before every commit.
    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        for bucket in self.unwritten.drain(..) {
            let sum = self.sums.get_mut(&bucket).expect("an unwritten sum is kept until it is written");
            self.write.execute(params![
                GRANULARITIES[bucket.granularity].0,
                bucket.starts_at,
                bucket.currency.as_str(),
                bucket.product,
                sum.figures.orders,
                sum.figures.quantity,
                sum.figures.revenue.to_string(),
            ])?;
            sum.unwritten = false;
        }
        if self.sums.len() > KEPT_SUMS {
            self.sums.clear();
        }
        Ok(())
    }

    /// Drops all sums: after a rollback, or another process's commit, they are not the file's.
    pub(super) fn forget(&mut self) {
        self.sums.clear();
        self.unwritten.clear();
    }
}

/// Reads an amount from its text; `column` is where it stood.
pub(super) fn parse_amount(text: &str, column: usize) -> rusqlite::Result<Decimal> {
    Decimal::from_str_exact(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
