//! Orders, items and revenue, summed.

use serde::Serialize;

use crate::domain::ExactSum;

/// How many orders, how many items, and their revenue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Figures {
    /// Orders.
    pub orders: i64,
    /// Items ordered: the sum of the orders' quantities.
    pub quantity: i64,
    /// The exact sum of the orders' totals.
    pub revenue: ExactSum,
}

impl Figures {
    /// Adds other figures. Counts saturate.
    pub fn add(&mut self, other: Figures) {
        self.orders = self.orders.saturating_add(other.orders);
        self.quantity = self.quantity.saturating_add(other.quantity);
        self.revenue.add(other.revenue);
    }
}
