//! The lines of an order, what is charged besides the goods, and the order's total. Pure; every sum is exact.

use rust_decimal::Decimal;
use serde::Serialize;

use super::currency::Currency;
use super::exact_sum::ExactSum;
use super::limits::{MAX_ITEMS, MAX_PRODUCTS_BYTES, MAX_QUANTITY};
use super::rule::{AmountField, RuleError};

/// One line of an order: an amount of one product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was ordered.
    pub product: String,
    /// Number of pieces; 1 to [`MAX_QUANTITY`] in a valid order.
    pub quantity: i64,
    /// Price of one piece.
    pub price: Decimal,
    /// Price times quantity. Zero where that is too large, which [`super::Order::check`] rejects.
    pub total: Decimal,
}

impl Item {
    /// A line. `None` as its total if it is too large.
    pub(super) fn exact_total(quantity: i64, price: Decimal) -> Option<Decimal> {
        let total = |price: Decimal| {
            let total = price.checked_mul(Decimal::from(quantity))?;
            // A product that needs more than 96 bits is rounded if it has decimal places to drop.
            (total.scale() >= price.scale() || total.is_zero()).then_some(total)
        };
        // Zeros at the end of the price may take up the digits that the total needs.
        total(price).or_else(|| total(price.normalize()))
    }

    /// A line with its total, which is zero where it is too large.
    pub fn new(product: impl Into<String>, quantity: i64, price: Decimal) -> Self {
        let total = Self::exact_total(quantity, price).unwrap_or_default();
        Item { product: product.into(), quantity, price, total }
    }

    fn check(&self) -> Result<(), RuleError> {
        if self.product.is_empty() {
            return Err(RuleError::Product);
        }
        if !(1..=MAX_QUANTITY).contains(&self.quantity) {
            return Err(RuleError::quantity(self.quantity));
        }
        not_negative(Some(self.price), AmountField::Price)
    }
}

/// What an order charges besides its goods. `None`: the order does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charges {
    /// Added to the goods.
    pub shipping: Option<Decimal>,
    /// Added to the goods, such as a duty or a fee for the payment. May be negative: some shops deduct with a fee.
    pub fees: Option<Decimal>,
    /// Added to the goods, unless the prices include it.
    pub tax: Option<Decimal>,
    /// Deducted from the goods.
    pub discount: Option<Decimal>,
    /// The prices include the tax, so that it adds nothing to the total.
    pub tax_included: bool,
}

impl Charges {
    /// Whether the prices include the tax; `None` if the order states no tax.
    pub fn stated_tax_included(&self) -> Option<bool> {
        self.tax.map(|_| self.tax_included)
    }

    /// How many of them the order states.
    pub(super) fn count(&self) -> usize {
        [self.shipping, self.fees, self.tax, self.discount].iter().flatten().count()
    }

    fn check(&self) -> Result<(), RuleError> {
        not_negative(self.shipping, AmountField::Shipping)?;
        not_negative(self.tax, AmountField::Tax)?;
        not_negative(self.discount, AmountField::Discount)
    }
}

/// The total that an order states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatedTotal {
    /// `None`: the order states none.
    pub amount: Option<Decimal>,
    /// The unit that the shop rounds each amount to before it states it; zero if all amounts are exact. A total with fewer decimal
    /// places shows that the unit is larger: in a currency without decimals it is 1.
    pub rounding: Decimal,
    /// How many amounts the charges were added up from, each of them rounded.
    pub charges: usize,
}

impl StatedTotal {
    /// The order's total: what it states if that is the sum of its amounts, but for their rounding, else an error.
    fn checked(self, sum: Decimal, lines: usize) -> Result<Decimal, RuleError> {
        let Some(stated) = self.amount else { return Ok(sum) };
        if stated == sum {
            return Ok(sum);
        }
        // Each amount is at most half a unit away from the one that the shop has added, and so is the total.
        let rounded = lines + self.charges + 1;
        let most =
            self.unit(stated).checked_mul(Decimal::new(5, 1)).and_then(|half| half.checked_mul(Decimal::from(rounded)));
        let difference = stated.checked_sub(sum).map(|difference| difference.abs());
        match (difference, most) {
            (Some(difference), Some(most)) if difference <= most => Ok(stated),
            _ => Err(RuleError::TotalMismatch { expected: sum, stated }),
        }
    }
}

impl StatedTotal {
    /// What the amounts are rounded to.
    fn unit(self, stated: Decimal) -> Decimal {
        if self.rounding.is_zero() { self.rounding } else { self.rounding.max(Decimal::new(1, stated.scale())) }
    }
}

/// The amounts of an order that passed its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amounts {
    /// The sum of the lines.
    pub goods: Decimal,
    /// What is charged besides.
    pub charges: Charges,
    /// The goods with all charges.
    pub total: Decimal,
    /// The currency of all amounts.
    pub currency: Currency,
    /// The sum of the lines' quantities.
    pub quantity: i64,
}

impl Amounts {
    /// The amounts of these lines, with these charges.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn new(items: &[Item], charges: Charges, currency: Currency) -> Result<Self, RuleError> {
        amounts(items, charges, StatedTotal::default(), || Ok(currency))
    }
}

fn not_negative(amount: Option<Decimal>, field: AmountField) -> Result<(), RuleError> {
    match amount {
        Some(amount) if amount.is_sign_negative() && !amount.is_zero() => Err(RuleError::Negative(field)),
        Some(_) | None => Ok(()),
    }
}

/// Checks the lines and the charges, and adds them up.
pub(super) fn amounts(
    items: &[Item],
    charges: Charges,
    stated: StatedTotal,
    currency: impl FnOnce() -> Result<Currency, RuleError>,
) -> Result<Amounts, RuleError> {
    let quantity = match items {
        [item] => item.check().map(|()| item.quantity)?,
        _ => check_all(items)?,
    };
    charges.check()?;
    let currency = currency()?;
    let goods = sum(items)?;
    let total = stated.checked(total(goods, charges)?, items.len())?;
    Ok(Amounts { goods, charges, total, currency, quantity })
}

/// Checks each of several lines. Returns the sum of their quantities.
fn check_all(items: &[Item]) -> Result<i64, RuleError> {
    if !(1..=MAX_ITEMS).contains(&items.len()) {
        return Err(RuleError::Items(items.len()));
    }
    for (index, item) in items.iter().enumerate() {
        item.check().map_err(|error| error.of_item(index))?;
    }
    // Each is at most `MAX_QUANTITY`, so the sum of all fits.
    let quantity: i64 = items.iter().map(|item| item.quantity).sum();
    let names: usize = items.iter().map(|item| json_length(&item.product)).sum();
    if quantity > MAX_QUANTITY {
        return Err(RuleError::quantity(quantity));
    }
    if names > MAX_PRODUCTS_BYTES {
        return Err(RuleError::Products { max: MAX_PRODUCTS_BYTES, length: names });
    }
    Ok(quantity)
}

/// The length of a text as JSON, in bytes, or a little more.
fn json_length(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

/// The exact sum of the lines' totals.
fn sum(items: &[Item]) -> Result<Decimal, RuleError> {
    for (index, item) in items.iter().enumerate() {
        if item.total.is_zero() && !item.price.is_zero() {
            let error = RuleError::Total;
            return Err(if items.len() == 1 { error } else { error.of_item(index) });
        }
    }
    match items {
        [item] => Ok(item.total),
        _ => exact(items.iter().map(|item| item.total)),
    }
}

fn total(goods: Decimal, charges: Charges) -> Result<Decimal, RuleError> {
    let Charges { shipping, fees, tax, discount, tax_included } = charges;
    if charges.count() == 0 {
        return Ok(goods);
    }
    let added = [Some(goods), shipping, fees, tax.filter(|_| !tax_included), discount.map(|discount| -discount)];
    let total = exact(added.into_iter().flatten())?;
    if total.is_sign_negative() && !total.is_zero() { Err(RuleError::NegativeTotal) } else { Ok(total) }
}

/// The sum, if a `Decimal` can keep it without rounding.
fn exact(amounts: impl Iterator<Item = Decimal>) -> Result<Decimal, RuleError> {
    sum_exactly(amounts).ok_or(RuleError::Total)
}

/// The sum of amounts, if a `Decimal` can keep it without rounding.
pub fn sum_exactly(amounts: impl Iterator<Item = Decimal>) -> Option<Decimal> {
    let mut sum = ExactSum::default();
    amounts.for_each(|amount| sum.add(amount.into()));
    sum.to_decimal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    fn checked(items: &[Item], charges: Charges, stated: Option<&str>) -> Result<Amounts, RuleError> {
        let stated = StatedTotal { amount: stated.map(decimal), rounding: Decimal::ZERO, charges: 0 };
        amounts(items, charges, stated, || Ok(Currency::NONE))
    }

    fn line(product: &str, quantity: i64, price: &str) -> Item {
        Item::new(product, quantity, decimal(price))
    }

    #[test]
    fn the_total_of_several_lines_is_exact() {
        let items = [line("a", 3, "0.1"), line("b", 1, "0.20"), line("a", 2, "1000000000000000000000000")];
        let amounts = checked(&items, Charges::default(), Some("2000000000000000000000000.5")).unwrap();
        assert_eq!((amounts.goods.to_string().as_str(), amounts.quantity), ("2000000000000000000000000.50", 6));
        assert_eq!(amounts.goods, amounts.total);
    }

    #[test]
    fn a_sum_that_would_be_rounded_is_refused() {
        let huge = line("a", 1, "79228162514264337593543950335");
        let small = line("b", 1, "0.1");
        assert_eq!(checked(&[huge.clone(), small], Charges::default(), None), Err(RuleError::Total));
        let twice = line("a", 2, "79228162514264337593543950335");
        assert_eq!(checked(std::slice::from_ref(&twice), Charges::default(), None), Err(RuleError::Total));
        assert_eq!(checked(&[huge, twice], Charges::default(), None).unwrap_err().code(), "total_too_large");
    }

    #[test]
    fn charges_are_added_to_the_goods_and_the_discount_is_deducted() {
        let items = [line("a", 2, "10.00"), line("b", 1, "5")];
        let charges = |tax_included| Charges {
            shipping: Some(decimal("4.90")),
            fees: Some(decimal("-1")),
            tax: Some(decimal("4.75")),
            discount: Some(decimal("2.5")),
            tax_included,
        };
        assert_eq!(checked(&items, charges(false), Some("31.15")).unwrap().total, decimal("31.15"));
        assert_eq!(checked(&items, charges(true), Some("26.40")).unwrap().goods, decimal("25"));
        let error = checked(&items, charges(true), Some("31.15")).unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("26.40")), ("total_mismatch", true), "{error}");
        let discount = Some(decimal("25.01"));
        let error = checked(&items, Charges { discount, ..Charges::default() }, None).unwrap_err();
        assert_eq!(error.code(), "invalid_discount");
        let negative = Charges { shipping: Some(decimal("-1")), ..Charges::default() };
        assert_eq!(checked(&items, negative, None).unwrap_err().code(), "invalid_shipping");
    }

    #[test]
    fn a_total_of_rounded_amounts_may_differ_by_their_rounding_and_no_more() {
        let items = [line("a", 1, "8.40"), line("b", 1, "8.40"), line("c", 1, "8.40")];
        let checked = |amount: &str, rounding: &str| {
            let stated = StatedTotal { amount: Some(decimal(amount)), rounding: decimal(rounding), charges: 0 };
            amounts(&items, Charges::default(), stated, || Ok(Currency::NONE)).map(|amounts| amounts.total)
        };
        assert_eq!(checked("25.22", "0.01"), Ok(decimal("25.22")));
        assert_eq!(checked("25.18", "0.01"), Ok(decimal("25.18")));
        assert!(checked("25.23", "0.01").is_err() && checked("25.21", "0").is_err());
    }

    #[test]
    fn a_line_that_breaks_a_rule_is_named() {
        let error = checked(&[line("a", 1, "1"), line("b", 0, "1")], Charges::default(), None).unwrap_err();
        assert_eq!((error.code(), error.to_string().starts_with("items[1]: quantity")), ("invalid_quantity", true));
        assert_eq!(checked(&[], Charges::default(), None).unwrap_err().code(), "invalid_items");
        let many = vec![line("a", 1, "1"); MAX_ITEMS + 1];
        assert_eq!(checked(&many, Charges::default(), None).unwrap_err(), RuleError::Items(MAX_ITEMS + 1));
        let large = [line("a", MAX_QUANTITY, "0"), line("a", 1, "0")];
        assert_eq!(checked(&large, Charges::default(), None).unwrap_err().code(), "invalid_quantity");
        let names = vec![line(&"\u{1}".repeat(1024), 1, "1"); 100];
        assert_eq!(checked(&names, Charges::default(), None).unwrap_err().code(), "invalid_product");
    }
}
