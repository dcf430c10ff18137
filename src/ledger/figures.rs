//! Orders, pieces, revenue and charges, summed.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::{Amounts, ExactSum};

/// How many orders, how many items, and their revenue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Figures {
    /// Orders.
    pub orders: i64,
    /// Pieces ordered: the sum of the orders' quantities.
    pub quantity: i64,
    /// What the goods cost, without shipping, discounts, and tax that their prices do not include: the exact sum of the orders'
    /// lines.
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

impl std::ops::Neg for Figures {
    type Output = Figures;

    fn neg(self) -> Figures {
        Figures { orders: -self.orders, quantity: -self.quantity, revenue: -self.revenue }
    }
}

/// What orders charge besides their goods: exact sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct ChargeSums {
    /// Shipping.
    pub shipping: ExactSum,
    /// Fees, such as those for payments; may be negative.
    pub fees: ExactSum,
    /// Tax, whether the prices include it or not.
    pub tax: ExactSum,
    /// Discounts.
    pub discount: ExactSum,
}

impl ChargeSums {
    /// Adds other charges.
    pub fn add(&mut self, other: ChargeSums) {
        self.shipping.add(other.shipping);
        self.fees.add(other.fees);
        self.tax.add(other.tax);
        self.discount.add(other.discount);
    }

    /// Whether nothing is charged.
    pub fn is_zero(&self) -> bool {
        *self == ChargeSums::default()
    }
}

/// Whole orders, with what they charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct OrderFigures {
    /// The orders and their goods.
    #[serde(flatten)]
    pub figures: Figures,
    /// What they charge besides.
    #[serde(flatten)]
    pub charges: ChargeSums,
    /// What customers paid: the exact sum of the orders' totals.
    pub total: ExactSum,
}

impl OrderFigures {
    /// Adds other orders.
    pub fn add(&mut self, other: OrderFigures) {
        self.figures.add(other.figures);
        self.charges.add(other.charges);
        self.total.add(other.total);
    }
}

impl std::ops::Neg for OrderFigures {
    type Output = OrderFigures;

    fn neg(self) -> OrderFigures {
        let ChargeSums { shipping, fees, tax, discount } = self.charges;
        let charges = ChargeSums { shipping: -shipping, fees: -fees, tax: -tax, discount: -discount };
        OrderFigures { figures: -self.figures, charges, total: -self.total }
    }
}

/// Whole orders of one period, by what happened to them in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OrdersByStatus {
    /// Accepted.
    pub accepted: OrderFigures,
    /// Processed.
    pub processed: OrderFigures,
    /// Cancelled after they were processed, perhaps in another period.
    pub cancelled: OrderFigures,
    /// Cancelled before they were processed.
    pub prevented: OrderFigures,
}

impl OrdersByStatus {
    /// Adds other orders.
    pub fn add(&mut self, other: OrdersByStatus) {
        let OrdersByStatus { accepted, processed, cancelled, prevented } = other;
        self.accepted.add(accepted);
        self.processed.add(processed);
        self.cancelled.add(cancelled);
        self.prevented.add(prevented);
    }
}

/// One order.
impl From<&Amounts> for OrderFigures {
    fn from(amounts: &Amounts) -> Self {
        let sum = |amount: Option<rust_decimal::Decimal>| amount.map_or_else(ExactSum::default, ExactSum::from);
        let charges = &amounts.charges;
        OrderFigures {
            figures: Figures { orders: 1, quantity: amounts.quantity, revenue: amounts.goods.into() },
            charges: ChargeSums {
                shipping: sum(charges.shipping),
                fees: sum(charges.fees),
                tax: sum(charges.tax),
                discount: sum(charges.discount),
            },
            total: amounts.total.into(),
        }
    }
}
