//! The lines of an order's document, and the fields that orderd does not know.

use super::DecodeError;
use super::field::Field;
use crate::domain::item::Item;
use crate::domain::json::{ListItems, OtherFields, describe, list_items, object_fields};
use crate::domain::limits::{MAX_EXTRA_BYTES, MAX_ITEM_EXTRA_FIELDS, MAX_ITEMS};
use crate::domain::model::UnknownFields;
use crate::domain::rule::{AmountField, RuleError, TextField};
use crate::domain::value::{self, TypeMismatch};

const ITEM_FIELDS: &[&str; 3] = &["product", "quantity", "price"];

/// The unknown fields of an order and its lines, which share one limit.
pub(super) struct Unknown {
    /// Fields of lines.
    pub item_count: usize,
    pub bytes: usize,
    pub fields: UnknownFields,
    pub of_items: Vec<UnknownFields>,
    pub dropped: bool,
}

/// One line, from its three fields.
pub(super) fn line(
    product: Field<'_>,
    quantity: Field<'_>,
    price: Field<'_>,
    broken: &mut Option<RuleError>,
) -> Result<Item, DecodeError> {
    let name = product.read(product.required()?, value::as_text)?;
    let name = TextField::Product.cut(name, broken);
    let quantity = quantity.quantity(broken)?;
    let price = price.amount(price.required()?, AmountField::Price, broken)?;
    Ok(Item::new(name, quantity, price))
}

/// The lines of a JSON list. Of more than [`MAX_ITEMS`], none is read.
pub(super) fn lines(
    raw: &str,
    unknown: &mut Unknown,
    broken: &mut Option<RuleError>,
) -> Result<Vec<Item>, DecodeError> {
    let ListItems { items, count } = list_items(raw, MAX_ITEMS).ok_or_else(|| DecodeError::Field {
        field: "items",
        mismatch: TypeMismatch { expected: "a list", found: describe(raw) },
    })?;
    if count > MAX_ITEMS {
        *broken = Some(RuleError::Items(count));
        return Ok(Vec::new());
    }
    let mut lines = Vec::with_capacity(count);
    for (index, raw) in items.into_iter().enumerate() {
        let of_item = |error: DecodeError| DecodeError::Item { index, error: Box::new(error) };
        let others = OtherFields {
            max_count: if unknown.dropped { 0 } else { MAX_ITEM_EXTRA_FIELDS.saturating_sub(unknown.item_count) },
            max_bytes: MAX_EXTRA_BYTES.saturating_sub(unknown.bytes),
        };
        let fields = object_fields(raw.get(), ITEM_FIELDS, others).map_err(|error| of_item(error.into()))?;
        let field = |index: usize| Field { name: ITEM_FIELDS[index], raw: fields.named[index] };
        let mut broken_here = None;
        let item = line(field(0), field(1), field(2), &mut broken_here).map_err(of_item)?;
        if let Some(rule) = broken_here {
            broken.get_or_insert(rule.of_item(index));
        }
        lines.push(item);
        unknown.add(index, fields.others, (fields.others_count, fields.others_bytes), fields.others_dropped);
    }
    unknown.of_items.resize(if unknown.of_items.is_empty() { 0 } else { lines.len() }, UnknownFields::new());
    Ok(lines)
}

impl Unknown {
    fn add(&mut self, index: usize, fields: UnknownFields, (count, bytes): (usize, usize), dropped: bool) {
        self.item_count += count;
        self.bytes += bytes;
        if dropped {
            // All or none: a part of them would look like all.
            (self.fields, self.of_items, self.dropped) = (UnknownFields::new(), Vec::new(), true);
        } else if !fields.is_empty() {
            self.of_items.resize(index, UnknownFields::new());
            self.of_items.push(fields);
        }
    }
}
