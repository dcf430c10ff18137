//! Decodes an order, or a cancellation, in orderd's own format: its fields from JSON, in the notations that producers use.
//!
//! Pure. What cannot be read at all is a [`DecodeError`]; a value that can be read and breaks a rule is left to
//! [`Order::check`].

mod error;
mod field;
mod lines;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use error::DecodeError;

use self::field::Field;
use self::lines::{Unknown, line, lines};
use super::body::body_text;
use super::item::{Charges, Item, StatedTotal};
use super::json::{ObjectFields, OtherFields, object_fields};
use super::limits::{MAX_EXTRA_BYTES, MAX_EXTRA_FIELDS};
use super::model::{Order, OrderId};
use super::order_event::{OrderDocument, OrderEvent, UnsupportedEvent};
use super::rule::{AmountField, RuleError, TextField};
use super::value;

const FIELDS: &[&str; 15] = &[
    "id",
    "product",
    "quantity",
    "price",
    "priority",
    "customer_id",
    "email",
    "currency",
    "placed_at",
    "notify",
    "items",
    "total",
    "event",
    "phone",
    "locale",
];

impl Order {
    /// Decodes a message body that is not compressed.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        match OrderDocument::from_json(&body_text(body, None, body.len())?, None)? {
            OrderDocument::Placed(order) => Ok(order),
            OrderDocument::Cancelled(_) => Err(UnsupportedEvent.into()),
        }
    }

    fn from_fields(fields: ObjectFields<'_, 15>) -> Result<Self, DecodeError> {
        let field = |index: usize| Field { name: FIELDS[index], raw: fields.named[index] };
        let [id, product, quantity, price, priority] = [0, 1, 2, 3, 4].map(field);
        let [customer_id, email, currency, placed_at, notify, items, total] = [5, 6, 7, 8, 9, 10, 11].map(field);
        let [phone, locale] = [13, 14].map(field);
        let mut broken = (fields.others_count > MAX_EXTRA_FIELDS).then_some(RuleError::TooManyFields);
        let id_text = id.read(id.required()?, value::as_id)?;
        let id = OrderId::cut(id_text, &mut broken);
        let mut unknown = Unknown {
            item_count: 0,
            bytes: fields.others_bytes,
            fields: fields.others,
            of_items: Vec::new(),
            dropped: fields.others_dropped,
        };
        let items: Arc<[Item]> = match items.optional() {
            None => Arc::new([line(product, quantity, price, &mut broken)?]),
            Some(raw) => {
                if let Some(given) = [product, quantity, price].into_iter().find(|field| field.optional().is_some()) {
                    return Err(DecodeError::Ambiguous(given.name));
                }
                lines(raw, &mut unknown, &mut broken)?.into()
            }
        };
        let customer_text = customer_id.optional_value(value::as_id)?;
        let email = email.optional_value(value::as_text)?;
        let stated_total =
            total.optional().map(|raw| total.amount(raw, AmountField::Total, &mut broken)).transpose()?;
        Ok(Order {
            id,
            items,
            charges: Charges::default(),
            stated_total: StatedTotal { amount: stated_total, ..StatedTotal::default() },
            priority: priority.optional_value(value::as_boolean)?.unwrap_or(false),
            customer_id: customer_text.map(|text| TextField::CustomerId.cut(text, &mut broken)),
            email: email.map(|text| TextField::Email.cut(text, &mut broken)),
            phone: phone.optional_value(value::as_phone)?,
            locale: locale.optional_value(value::as_locale)?,
            currency: currency.optional_value(value::as_text)?,
            placed_at: placed_at.optional_value(value::as_time)?,
            notify: notify.optional_value(value::as_text)?,
            extra: unknown.fields,
            item_extra: unknown.of_items,
            extra_dropped: unknown.dropped,
            broken,
        })
    }
}

impl OrderDocument {
    /// Decodes the text of a message body. `stated` is what the message says besides: its type. Of a cancellation, only the id is
    /// read.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn from_json(json: &str, stated: Option<OrderEvent>) -> Result<Self, DecodeError> {
        let others = OtherFields { max_count: MAX_EXTRA_FIELDS, max_bytes: MAX_EXTRA_BYTES };
        let fields = object_fields(json, FIELDS, others)?;
        let event = Field { name: FIELDS[12], raw: fields.named[12] }.optional_value(value::as_text)?;
        match OrderEvent::of_all([stated, event.as_deref().map(OrderEvent::of_word)]).unwrap_or(OrderEvent::Placed) {
            OrderEvent::Placed => Order::from_fields(fields).map(OrderDocument::Placed),
            OrderEvent::Cancelled => {
                let id = Field { name: FIELDS[0], raw: fields.named[0] };
                let text = id.read(id.required()?, value::as_id)?;
                OrderId::new(text).map(OrderDocument::Cancelled).ok_or(DecodeError::LongId)
            }
            OrderEvent::Other => Err(UnsupportedEvent.into()),
        }
    }
}
