//! What the aggregates count of an order: each of its products. Pure; every sum is exact.

use std::collections::HashMap;

use jiff::Timestamp;
use rust_decimal::Decimal;

use super::{Currency, ExactSum};

/// The part of an analytics event that the aggregates count. Only events of processed orders have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sale {
    /// Each product of the order, once.
    products: Vec<ProductSale>,
    /// The amounts' currency.
    pub currency: Currency,
    /// When the order was processed, or cancelled.
    pub at: Timestamp,
    /// The order was cancelled: the sale is subtracted.
    pub is_cancelled: bool,
}

/// What one order contains of one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductSale {
    /// The product.
    pub product: String,
    /// Number of pieces.
    pub quantity: i64,
    /// What they cost.
    pub revenue: ExactSum,
}

impl Sale {
    /// The sale of these lines: product, number of pieces, total. Lines of the same product are added up.
    pub fn new(lines: impl IntoIterator<Item = (String, i64, Decimal)>, currency: Currency, at: Timestamp) -> Self {
        let (mut products, mut indices) = (Vec::<ProductSale>::new(), HashMap::<String, usize>::new());
        for (product, quantity, total) in lines {
            let line = ProductSale { product, quantity, revenue: total.into() };
            // Most orders have one line.
            if let Some(first) = products.first().filter(|_| indices.is_empty()) {
                indices.insert(first.product.clone(), 0);
            }
            match indices.get(&line.product) {
                Some(index) => {
                    let sum = &mut products[*index];
                    sum.quantity = sum.quantity.saturating_add(line.quantity);
                    sum.revenue.add(line.revenue);
                }
                None => {
                    if !products.is_empty() {
                        indices.insert(line.product.clone(), products.len());
                    }
                    products.push(line);
                }
            }
        }
        Sale { products, currency, at, is_cancelled: false }
    }

    /// The same, to be subtracted because the order was cancelled at this time.
    #[must_use]
    pub fn cancelled(self, at: Timestamp) -> Self {
        Sale { at, is_cancelled: true, ..self }
    }

    /// Each product of the order, once.
    pub fn products(&self) -> &[ProductSale] {
        &self.products
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_same_product_are_one_product_of_a_sale() {
        let line = |product: &str, quantity| (product.to_owned(), quantity, Decimal::TEN);
        let at = Timestamp::UNIX_EPOCH;
        let sale =
            Sale::new([line("a", 1), line("b", 2), line("a", 4), line("b", 1), line("c", 1)], Currency::NONE, at);
        let products: Vec<_> = sale.products().iter().map(|sale| (sale.product.as_str(), sale.quantity)).collect();
        assert_eq!(products, [("a", 5), ("b", 3), ("c", 1)]);
        assert_eq!(sale.products()[0].revenue.to_string(), "20");
    }
}
