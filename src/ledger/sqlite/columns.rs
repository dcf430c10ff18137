//! Values of columns that are not plain numbers or texts. Another program may have written something else into them.

use jiff::Timestamp;
use rusqlite::Row;
use rusqlite::types::Type;

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    row.get(column).map(timestamp)
}

/// A time from the file. A number that is out of range becomes `Timestamp::MIN`.
pub(super) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN)
}

/// A value of an enum.
///
/// # Errors
/// The text is no name of one.
pub(super) fn named<T>(row: &Row<'_>, column: usize, parse: fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).ok_or_else(|| {
        let error = format!("{text:?} is no value of this column").into();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error)
    })
}
