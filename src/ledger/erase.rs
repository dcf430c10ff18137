//! Erasing a customer's personal data: the subject, and the result.

use serde::Serialize;

/// Takes the place of erased text. A redelivered order whose customer was erased is still recognized.
pub const ERASED: &str = "[erased]";

/// Whose data is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErasureSubject {
    /// All orders of the customer with this id.
    Customer(String),
    /// The order with this id.
    Order(String),
}

/// What was erased from a ledger, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ErasedRows {
    /// Orders whose customer was erased.
    pub customer_ids: usize,
    /// Texts of failed attempts and dead letters.
    pub failure_texts: usize,
    /// Results and failures of steps.
    pub step_texts: usize,
    /// Whether copies of erased text may remain in the store's log until it is written anew.
    pub copies_remain: bool,
}
