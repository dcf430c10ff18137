//! The accepted order of a trace, as plain values.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::ExactSum;

/// An accepted order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TracedOrder {
    /// `accepted`, `processed`, `failed` or `cancelled`.
    pub status: String,
    /// The consumer that accepted it.
    pub consumer: String,
    /// The lines, as the order has them.
    pub items: Vec<TracedItem>,
    /// Number of pieces.
    pub quantity: i64,
    /// The sum of the lines.
    pub goods_total: ExactSum,
    /// Charged for shipping, if the order says so.
    pub shipping: Option<ExactSum>,
    /// Charged for other things, such as a fee for the payment, if the order says so.
    pub fees: Option<ExactSum>,
    /// The tax, whether the prices include it or not, if the order says so.
    pub tax: Option<ExactSum>,
    /// Whether the prices include the tax, if the order states one.
    pub tax_included: Option<bool>,
    /// Deducted, if the order says so.
    pub discount: Option<ExactSum>,
    /// What the order costs.
    pub total: ExactSum,
    /// The amounts' currency.
    pub currency: String,
    /// Whether the producer marked it as priority.
    pub priority: bool,
    /// Id of the customer, if the order names one.
    pub customer_id: Option<String>,
    /// When the customer placed the order, if the order says so.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub placed_at: Option<Timestamp>,
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TracedItem {
    /// What was ordered.
    pub product: String,
    /// Number of pieces.
    pub quantity: i64,
    /// Price of one piece.
    pub price: ExactSum,
    /// What all of them cost.
    pub total: ExactSum,
}
