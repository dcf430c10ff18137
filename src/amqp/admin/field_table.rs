//! Field tables as the client library represents them.
//!
//! Pure. Works around a defect of the library: see [`insert`].

use amqprs::{FieldTable, FieldValue};

use crate::topology::Argument;

/// The arguments of an exchange or queue.
pub fn from_arguments<'a>(arguments: impl Iterator<Item = (&'a &'static str, &'a Argument)>) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => text.as_str().into(),
            Argument::Number(number) => FieldValue::l(*number),
        };
        insert(&mut table, name, value);
    }
    table
}

/// A table with one field.
pub fn with_field(name: &'static str, value: FieldValue) -> FieldTable {
    let mut table = FieldTable::new();
    insert(&mut table, name, value);
    table
}

/// Inserts or replaces a field.
///
/// The library computes the encoded length by adding up everything inserted. Inserting a name a second time would make that
/// length wrong and so corrupt the encoded table.
pub fn insert(table: &mut FieldTable, name: &str, value: FieldValue) {
    let name = name.try_into().expect("names of arguments fit 255 bytes");
    table.remove(&name);
    table.insert(name, value);
}
