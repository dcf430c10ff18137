//! The lines of orders that have several: writes and reads them, and compares a stored order with a new one.
//!
//! An order with one line has it in its own row. Statements are prepared when they are needed and cached: most orders need none.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use rust_decimal::Decimal;

use super::sales::parse_amount;
use crate::domain::Item;
use crate::ledger::entry::NewOrder;
use crate::ledger::erase::ERASED;

/// The status of a cancelled order, and the quantity of one whose content is not known.
pub(super) const CANCELLED: &str = "cancelled";
pub(super) const UNKNOWN_QUANTITY: i64 = 0;

/// Reads what [`compare`] compares.
pub(super) const SELECT_STORED: &str = "SELECT status, product, quantity, price, currency, customer_id, goods_total,
    shipping, tax, discount, total, id, fees, processed_at FROM orders WHERE id = ?1";

/// The line of an order that has only one.
pub(super) fn only_item(order: &NewOrder) -> Option<&Item> {
    match &*order.items {
        [item] => Some(item),
        _ => None,
    }
}

/// Adds the lines of an order.
pub(super) fn insert(connection: &Connection, order: &NewOrder) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO order_items (order_id, line, product, quantity, price, total) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for (line, item) in (1_i64..).zip(&*order.items) {
        let (price, total) = (item.price.to_string(), item.total.to_string());
        insert.execute((order.id.as_str(), line, &item.product, item.quantity, price, total))?;
    }
    Ok(())
}

/// Reads the lines of an order, in their order: product, quantity, price and total.
pub(super) fn read<T>(
    connection: &Connection,
    order_id: &str,
    mut line: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut select = connection
        .prepare_cached("SELECT product, quantity, price, total FROM order_items WHERE order_id = ?1 ORDER BY line")?;
    select.query_map([order_id], |row| line(row))?.collect()
}

/// Removes the lines of the order with this row. Returns how many.
pub(super) fn remove(connection: &Connection, rowid: i64) -> rusqlite::Result<usize> {
    let remove =
        "DELETE FROM order_items WHERE order_id = (SELECT id FROM orders WHERE rowid = ?1 AND product IS NULL)";
    connection.prepare_cached(remove)?.execute([rowid])
}

/// How a stored order compares with one of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    /// Another order with the same id.
    Different,
    /// It is accepted.
    Accepted,
    /// It has failed.
    Failed,
    /// It was processed.
    Processed,
    /// It was cancelled after it was processed.
    Revoked,
    /// It was cancelled before it was processed.
    Cancelled,
    /// It was cancelled before it arrived: its content is not known.
    CancelledUnknown,
}

/// Compares a stored order with one of the same id. Amounts are compared as numbers: 400 equals 400.00, and a charge that is not
/// stated equals zero.
pub(super) fn compare(connection: &Connection, row: &Row<'_>, order: &NewOrder) -> rusqlite::Result<Compared> {
    let status = row.get_ref(0)?.as_str()?;
    if status == CANCELLED && row.get::<_, i64>(2)? == UNKNOWN_QUANTITY {
        return Ok(Compared::CancelledUnknown);
    }
    let (only, amounts) = (only_item(order), &order.amounts);
    let equals = |column: usize, amount: Option<Decimal>| match row.get_ref(column)?.as_str_or_null()? {
        Some(stored) => Ok(parse_amount(stored, column)? == amount.unwrap_or_default()),
        None => Ok::<_, rusqlite::Error>(amount.unwrap_or_default().is_zero()),
    };
    let same = row.get_ref(1)?.as_str_or_null()? == only.map(|item| item.product.as_str())
        && row.get::<_, i64>(2)? == amounts.quantity
        && equals(3, only.map(|item| item.price))?
        && row.get_ref(4)?.as_str()? == amounts.currency.as_str()
        && [Some(ERASED), order.customer_id.as_deref()].contains(&row.get_ref(5)?.as_str_or_null()?)
        && equals(6, Some(amounts.goods))?
        && equals(7, amounts.charges.shipping)?
        && equals(8, amounts.charges.tax)?
        && equals(9, amounts.charges.discount)?
        && equals(10, Some(amounts.total))?
        && equals(12, amounts.charges.fees)?
        && (only.is_some() || has_lines(connection, row.get_ref(11)?.as_str()?, &order.items)?);
    Ok(match status {
        _ if !same => Compared::Different,
        "accepted" => Compared::Accepted,
        "failed" => Compared::Failed,
        CANCELLED if row.get_ref(13)? == ValueRef::Null => Compared::Cancelled,
        CANCELLED => Compared::Revoked,
        _ => Compared::Processed,
    })
}

fn has_lines(connection: &Connection, order_id: &str, items: &[Item]) -> rusqlite::Result<bool> {
    let mut rest = items.iter();
    let same = read(connection, order_id, |row| {
        let Some(item) = rest.next() else { return Ok(false) };
        Ok(row.get_ref(0)?.as_str()? == item.product
            && row.get::<_, i64>(1)? == item.quantity
            && parse_amount(row.get_ref(2)?.as_str()?, 2)? == item.price
            && parse_amount(row.get_ref(3)?.as_str()?, 3)? == item.total)
    })?;
    Ok(same.len() == items.len() && same.into_iter().all(|same| same))
}
