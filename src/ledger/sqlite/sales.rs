//! The aggregates for reports: what was sold per minute, hour and day (UTC), currency and product.
//!
//! Sums are exact decimals, never floats. A sale is added in memory and written once per commit and bucket;
//! this must never add one whose event was not new.

use std::collections::HashMap;
use std::rc::Rc;

use rusqlite::{Connection, OptionalExtension, Statement, params};
use rust_decimal::Decimal;

use crate::order::Sale;

/// Sums kept in memory between commits, about 1 MiB; beyond it all are dropped and read again.
const KEPT_SUMS: usize = 4_096;

/// Widths of the buckets in milliseconds, with their names in the table.
const GRANULARITIES: [(&str, i64); 3] = [("minute", 60_000), ("hour", 3_600_000), ("day", 86_400_000)];

/// A sum would not fit its type, or would have to be rounded.
#[derive(Debug, thiserror::Error)]
#[error("the {granularity}'s sum of {product:?} in {currency} cannot take {total} more")]
pub(super) struct Overflow {
    granularity: &'static str,
    product: String,
    currency: String,
    total: Decimal,
}

/// Why a sale was not added.
#[derive(Debug)]
pub(super) enum FoldError {
    /// The sum is full; nothing was added.
    Overflow(Overflow),
    /// SQLite refused to read a sum.
    Sqlite(rusqlite::Error),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bucket {
    granularity: usize,
    starts_at: i64,
    currency: Rc<str>,
    product: Rc<str>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    orders: i64,
    quantity: i64,
    revenue: Decimal,
    /// Differs from its row, and is listed in [`Sales::unwritten`].
    unwritten: bool,
}

impl Sum {
    /// One sale more; `None` if that does not fit exactly.
    fn plus(self, sale: &Sale) -> Option<Sum> {
        Some(Sum {
            orders: self.orders.checked_add(1)?,
            quantity: self.quantity.checked_add(sale.quantity)?,
            revenue: exact_sum(self.revenue, sale.total)?,
            unwritten: true,
        })
    }
}

/// Adds two decimals; `None` if the sum needs more than 96 bits. `checked_add` alone would drop digits.
pub(super) fn exact_sum(a: Decimal, b: Decimal) -> Option<Decimal> {
    if a.is_zero() || b.is_zero() {
        return Some(if a.is_zero() { b } else { a });
    }
    a.checked_add(b).filter(|sum| sum.scale() >= a.scale().max(b.scale()))
}

/// The sums the writer knows, and the statements that read and write them. Sums outlive their transaction, so
/// that a busy bucket is read once and then only written.
pub(super) struct Sales<'c> {
    read: Statement<'c>,
    write: Statement<'c>,
    data_version: Statement<'c>,
    sums: HashMap<Bucket, Sum>,
    unwritten: Vec<Bucket>,
    /// SQLite's count of other connections' commits when the sums were last known to be the file's.
    known_version: i64,
    /// Whether the sums have been found current in this transaction: none can write from then on.
    current: bool,
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
            data_version: connection.prepare("PRAGMA data_version")?,
            sums: HashMap::new(),
            unwritten: Vec::new(),
            known_version: 0,
            current: false,
        })
    }

    /// Adds a sale to its three buckets, or to none.
    pub(super) fn add(&mut self, sale: &Sale) -> Result<(), FoldError> {
        self.refresh().map_err(FoldError::Sqlite)?;
        let (product, currency): (Rc<str>, Rc<str>) = (sale.product.as_str().into(), sale.currency.as_str().into());
        let at = sale.at.as_millisecond();
        let mut sums = [Sum::default(); GRANULARITIES.len()];
        let bucket = |granularity: usize| Bucket {
            granularity,
            starts_at: at - at.rem_euclid(GRANULARITIES[granularity].1),
            currency: Rc::clone(&currency),
            product: Rc::clone(&product),
        };
        for (granularity, sum) in sums.iter_mut().enumerate() {
            let before = self.sum(&bucket(granularity)).map_err(FoldError::Sqlite)?;
            *sum = before.plus(sale).ok_or_else(|| {
                FoldError::Overflow(Overflow {
                    granularity: GRANULARITIES[granularity].0,
                    product: sale.product.clone(),
                    currency: sale.currency.clone(),
                    total: sale.total,
                })
            })?;
        }
        for (granularity, sum) in sums.into_iter().enumerate() {
            let bucket = bucket(granularity);
            if !self.sums.insert(bucket.clone(), sum).is_some_and(|before| before.unwritten) {
                self.unwritten.push(bucket);
            }
        }
        Ok(())
    }

    /// Once per transaction: drops the sums if another process has written to the file, or if they are many.
    fn refresh(&mut self) -> rusqlite::Result<()> {
        if !self.current {
            let version = self.data_version.query_row([], |row| row.get(0))?;
            if version != self.known_version || self.sums.len() > KEPT_SUMS {
                self.sums.clear();
            }
            (self.known_version, self.current) = (version, true);
        }
        Ok(())
    }

    fn sum(&mut self, bucket: &Bucket) -> rusqlite::Result<Sum> {
        if let Some(sum) = self.sums.get(bucket) {
            return Ok(*sum);
        }
        let key = params![GRANULARITIES[bucket.granularity].0, bucket.starts_at, bucket.currency, bucket.product];
        let stored = self.read.query_row(key, |row| {
            let revenue = parse_amount(row.get_ref(2)?.as_str()?, 2)?;
            Ok(Sum { orders: row.get(0)?, quantity: row.get(1)?, revenue, unwritten: false })
        });
        Ok(stored.optional()?.unwrap_or_default())
    }

    /// Writes the sums that changed. The last step before every commit.
    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        for bucket in self.unwritten.drain(..) {
            let sum = self.sums.get_mut(&bucket).expect("an unwritten sum is kept until it is written");
            self.write.execute(params![
                GRANULARITIES[bucket.granularity].0,
                bucket.starts_at,
                bucket.currency,
                bucket.product,
                sum.orders,
                sum.quantity,
                sum.revenue.to_string(),
            ])?;
            sum.unwritten = false;
        }
        self.current = false;
        Ok(())
    }

    /// Drops all sums: after a rollback they are not the file's.
    pub(super) fn forget(&mut self) {
        self.sums.clear();
        self.unwritten.clear();
        self.current = false;
    }
}

/// Reads an amount from its text; `column` is where it stood.
pub(super) fn parse_amount(text: &str, column: usize) -> rusqlite::Result<Decimal> {
    Decimal::from_str_exact(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
