//! The rules that an order must follow, as the errors for orders that break them.
//!
//! Pure. An error never contains a value as it was sent, unless that is a short number: it may be a secret in the wrong field.

use rust_decimal::Decimal;

use super::json::describe;
use super::limits::{MAX_EMAIL_BYTES, MAX_EXTRA_FIELDS, MAX_ID_BYTES, MAX_ITEMS, MAX_PRODUCT_BYTES, MAX_QUANTITY};

/// Longest quantity or amount that is shown, in characters: [`MAX_QUANTITY`] has 13.
const SHOWN_DIGITS: usize = 13;

/// The body is an order, but it breaks a rule of the shop. Failure kind `permanent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A quantity, or the sum of all, is less than 1 or more than [`MAX_QUANTITY`].
    #[error("quantity must be 1 to {MAX_QUANTITY}, is {0}")]
    Quantity(String),
    /// An amount is below zero.
    #[error("{} must not be negative", .0.name())]
    Negative(AmountField),
    /// An amount has more digits after the decimal point than a `Decimal` keeps.
    #[error("{} has too many digits after the decimal point: at most 28 digits can be kept", .0.name())]
    TooPrecise(AmountField),
    /// An amount is larger than a `Decimal` can be.
    #[error("{} is too large: at most 28 digits can be kept", .0.name())]
    TooLarge(AmountField),
    /// The currency is not three letters; what it is, without the text.
    #[error("currency must be three letters, is {0}")]
    Currency(String),
    /// Two amounts of the order are in different currencies.
    #[error("all amounts must have the same currency")]
    Currencies,
    /// The product is empty.
    #[error("product must not be empty")]
    Product,
    /// The names of all products are too long for the order's events.
    #[error("the names of all products must have at most {max} bytes as JSON, have {length}")]
    Products {
        /// How long they may be.
        max: usize,
        /// How long they are.
        length: usize,
    },
    /// A text is longer than its field allows. The text itself is not kept.
    #[error("{} must have at most {} bytes, has {length}", .field.name(), .field.max_bytes())]
    TooLong {
        /// The field.
        field: TextField,
        /// The text's length in bytes.
        length: usize,
    },
    /// The order has more than [`MAX_EXTRA_FIELDS`] unknown fields.
    #[error("an order may have at most {MAX_EXTRA_FIELDS} fields that orderd does not know")]
    TooManyFields,
    /// The list of items is empty or too long.
    #[error("items must have 1 to {MAX_ITEMS} lines, has {0}")]
    Items(usize),
    /// One of several items breaks a rule.
    #[error("items[{index}]: {error}")]
    Item {
        /// From 0.
        index: usize,
        /// The broken rule.
        error: Box<RuleError>,
    },
    /// Price times quantity, or the sum of all amounts, does not fit the 96 bits of a `Decimal` exactly.
    #[error("the total is too large: price times quantity, and the sum of all amounts, must have at most 28 digits")]
    Total,
    /// What is deducted is more than what the order costs without.
    #[error("the total is negative: discount must be at most what the order costs without it")]
    NegativeTotal,
    /// The total that the order states is not the sum of its amounts.
    #[error("total must be {}, the sum of the order's amounts, is {}", shown(.expected), shown(.stated))]
    TotalMismatch {
        /// The sum.
        expected: Decimal,
        /// What the order states.
        stated: Decimal,
    },
}

impl RuleError {
    /// [`RuleError::Quantity`] for this quantity, of which only a short one is shown.
    pub fn quantity(quantity: i64) -> Self {
        RuleError::Quantity(describe(&quantity.to_string()))
    }

    /// The same rule, broken by one of several items. `index` counts from 0.
    pub(super) fn of_item(self, index: usize) -> Self {
        RuleError::Item { index, error: Box::new(self) }
    }

    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            RuleError::Quantity(_) => "invalid_quantity",
            RuleError::Negative(field) | RuleError::TooPrecise(field) | RuleError::TooLarge(field) => field.code(),
            RuleError::Currency(_) | RuleError::Currencies => "invalid_currency",
            RuleError::Product | RuleError::Products { .. } => "invalid_product",
            RuleError::TooLong { field, .. } => field.code(),
            RuleError::TooManyFields => "too_many_fields",
            RuleError::Items(_) => "invalid_items",
            RuleError::Item { error, .. } => error.code(),
            RuleError::Total => "total_too_large",
            RuleError::NegativeTotal => "invalid_discount",
            RuleError::TotalMismatch { .. } => "total_mismatch",
        }
    }
}

/// A number for a log line or a message. One that is too long for an amount is described only: it may be the number of a card in
/// the wrong field.
pub(super) fn shown(number: &impl ToString) -> String {
    let number = number.to_string();
    match number.len() {
        0..=SHOWN_DIGITS => number,
        length => format!("[{length} characters]"),
    }
}

/// An amount of money in an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AmountField {
    /// `price`
    Price,
    /// `total`
    Total,
    /// `shipping`
    Shipping,
    /// `fees`
    Fees,
    /// `tax`
    Tax,
    /// `discount`
    Discount,
}

impl AmountField {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            AmountField::Price => "price",
            AmountField::Total => "total",
            AmountField::Shipping => "shipping",
            AmountField::Fees => "fees",
            AmountField::Tax => "tax",
            AmountField::Discount => "discount",
        }
    }

    fn code(self) -> &'static str {
        match self {
            AmountField::Price => "invalid_price",
            AmountField::Total => "invalid_total",
            AmountField::Shipping => "invalid_shipping",
            AmountField::Fees => "invalid_fees",
            AmountField::Tax => "invalid_tax",
            AmountField::Discount => "invalid_discount",
        }
    }
}

/// A text in an order whose length is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextField {
    /// `id`
    Id,
    /// `product`
    Product,
    /// `customer_id`
    CustomerId,
    /// `email`
    Email,
}

impl TextField {
    fn name(self) -> &'static str {
        match self {
            TextField::Id => "id",
            TextField::Product => "product",
            TextField::CustomerId => "customer_id",
            TextField::Email => "email",
        }
    }

    /// The longest text that the field may have, in bytes.
    pub fn max_bytes(self) -> usize {
        match self {
            TextField::Id | TextField::CustomerId => MAX_ID_BYTES,
            TextField::Product => MAX_PRODUCT_BYTES,
            TextField::Email => MAX_EMAIL_BYTES,
        }
    }

    fn code(self) -> &'static str {
        match self {
            TextField::Id => "invalid_id",
            TextField::Product => "invalid_product",
            TextField::CustomerId => "invalid_customer_id",
            TextField::Email => "invalid_email",
        }
    }

    /// Cuts a text that is too long, which `broken` then says.
    pub(super) fn cut(self, mut text: String, broken: &mut Option<RuleError>) -> String {
        if text.len() > self.max_bytes() {
            *broken = Some(RuleError::TooLong { field: self, length: text.len() });
            text.truncate(text.floor_char_boundary(self.max_bytes()));
            text.shrink_to_fit();
        }
        text
    }
}
