//! The aggregates of sales for reports: per minute, hour or day (UTC), currency and product.
//!
//! Sums are exact and never floats, so no sale can prevent another from being counted. Sales are added up in memory and
//! written once per commit and bucket. A sale must never be added unless its event was new.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use rusqlite::{Connection, OptionalExtension, Statement};
use rust_decimal::Decimal;

use super::order_sums;
use crate::domain::{Currency, Sale};
use crate::ledger::buckets::{DAY, HOUR, MINUTE, bucket_start};
use crate::ledger::figures::Figures;

/// Most memory for sums that are cached between commits, in bytes: about 8,000 sums with names of the usual length. If there
/// are more, all are dropped and read again when needed.
const MAX_CACHED_BYTES: usize = 2 << 20;
/// The memory of a cached sum without its product's name, in bytes.
const SUM_BYTES: usize = 256;

/// The kinds of buckets: their names in the table, and their widths in milliseconds.
const GRANULARITIES: [(&str, i64); 3] = [("minute", MINUTE), ("hour", HOUR), ("day", DAY)];

/// The key of one sum.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bucket {
    /// Index in `GRANULARITIES`.
    granularity: usize,
    starts_at: i64,
    currency: Currency,
    product: Rc<str>,
}

/// The sales of one minute and currency since the last commit.
struct Minute {
    starts_at: i64,
    currency: Currency,
    products: HashMap<Rc<str>, Figures>,
}

/// The writer's sums of sales, and the statements that read and write them. Sums are cached across transactions, so
/// that a busy bucket is read once and then only written.
pub(super) struct Sales<'c> {
    read: Statement<'c>,
    write: Statement<'c>,
    sums: HashMap<Bucket, Figures>,
    /// The memory of `sums`, in bytes.
    cached_bytes: usize,
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
            cached_bytes: 0,
            changes: Vec::new(),
        })
    }

    /// Adds a sale in memory, or subtracts that of a cancelled order.
    pub(super) fn add(&mut self, sale: &Sale) {
        let at = sale.at.as_millisecond();
        let (starts_at, currency) = (bucket_start(at, MINUTE), sale.currency);
        // The sales of one commit have few different minutes and currencies, and mostly those of the sale before.
        let known =
            self.changes.iter().rposition(|change| change.starts_at == starts_at && change.currency == currency);
        let index = known.unwrap_or_else(|| {
            self.changes.push(Minute { starts_at, currency, products: HashMap::new() });
            self.changes.len() - 1
        });
        let products = &mut self.changes[index].products;
        for sold in sale.products() {
            let figures = Figures { orders: 1, quantity: sold.quantity, revenue: sold.revenue };
            let figures = if sale.is_cancelled { -figures } else { figures };
            match products.get_mut(sold.product.as_str()) {
                Some(sum) => sum.add(figures),
                None => drop(products.insert(sold.product.as_str().into(), figures)),
            }
        }
    }

    /// Writes the changes since the last commit: each minute's sales to its minute, hour and day. Call it before every
    /// commit.
    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        for Minute { starts_at: minute, currency, products } in self.changes.drain(..) {
            for (product, change) in products {
                for (granularity, (name, width)) in GRANULARITIES.into_iter().enumerate() {
                    let starts_at = bucket_start(minute, width);
                    let bucket = Bucket { granularity, starts_at, currency, product: Rc::clone(&product) };
                    let sum = match self.sums.entry(bucket) {
                        Entry::Occupied(cached) => cached.into_mut(),
                        Entry::Vacant(missing) => {
                            let key = (name, starts_at, currency.as_str(), &product);
                            let stored = self.read.query_row(key, |row| order_sums::read_figures(row, 0)).optional()?;
                            self.cached_bytes += SUM_BYTES + product.len();
                            missing.insert(stored.unwrap_or_default())
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
        if self.cached_bytes > MAX_CACHED_BYTES {
            self.drop_cached();
        }
        Ok(())
    }

    /// Drops all sums and changes. After a rollback, or a commit of another process, the sums may differ from the file.
    pub(super) fn clear(&mut self) {
        self.drop_cached();
        self.changes.clear();
    }

    fn drop_cached(&mut self) {
        self.sums.clear();
        self.cached_bytes = 0;
    }
}

/// Parses an amount. `column` is the column it was read from, for the error.
pub(super) fn parse_amount(text: &str, column: usize) -> rusqlite::Result<Decimal> {
    Decimal::from_str_exact(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn long_product_names_do_not_fill_the_memory() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, schema::MIGRATIONS, || true).unwrap();
        let mut sales = Sales::prepare(&connection).unwrap();
        for batch in 0..20 {
            for number in 0..20 {
                let product = format!("{batch}-{number}-{}", "x".repeat(1 << 17));
                let at = jiff::Timestamp::UNIX_EPOCH;
                sales.add(&Sale::new([(product, 1, Decimal::ONE)], Currency::NONE, at));
            }
            sales.write().unwrap();
            assert!(sales.cached_bytes <= MAX_CACHED_BYTES);
            assert_eq!(sales.sums.is_empty(), sales.cached_bytes == 0);
        }
    }
}
