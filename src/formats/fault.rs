//! What is wrong with a document, with the place of each fault. Pure.

use std::fmt;

use crate::domain::value::TypeMismatch;
use crate::domain::{DecodeError, JsonError, Order, OrderId, RuleError, UnsupportedEvent};

/// Most faults of a document that are kept.
pub const MAX_FAULTS: usize = 100;
/// Most faults that the text of all shows.
const SHOWN_FAULTS: usize = 10;

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The order's field, such as `items[2].price`; empty if it concerns the whole document.
    pub field: String,
    /// Where the value is, or should be.
    pub pointer: Option<String>,
    /// What is wrong.
    pub problem: ValueProblem,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// A required value is not there.
    #[error("is missing")]
    Missing,
    /// A required value is null.
    #[error("is null")]
    Null,
    /// A required value is a text without any characters but spaces.
    #[error("is empty")]
    Empty,
    /// It has the wrong type.
    #[error(transparent)]
    TypeMismatch(#[from] TypeMismatch),
    /// It is not JSON, or no object.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A list is too long.
    #[error("has more than {0} values")]
    TooMany(usize),
    /// There are a line and a list of lines.
    #[error("is given besides a product, quantity or price of the order itself")]
    Ambiguous,
    /// The order was neither placed nor cancelled.
    #[error(transparent)]
    Event(#[from] UnsupportedEvent),
    /// An amount in minor units has no currency, which says how many decimal places they are.
    #[error("is in minor units, and the order has no currency that says how many of them make one")]
    NoCurrency,
    /// It breaks a rule of the shop.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The message contains no document.
    #[error("{reason}")]
    Unreadable {
        /// The failure's code.
        code: &'static str,
        /// Why.
        reason: String,
    },
    /// orderd's own decoder refuses it.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl ValueProblem {
    /// Whether the value cannot be read at all. If it can, it breaks a rule.
    pub fn is_malformed(&self) -> bool {
        match self {
            ValueProblem::Rule(_) => false,
            ValueProblem::Missing
            | ValueProblem::Null
            | ValueProblem::Empty
            | ValueProblem::TypeMismatch(_)
            | ValueProblem::Json(_)
            | ValueProblem::TooMany(_)
            | ValueProblem::Ambiguous
            | ValueProblem::Event(_)
            | ValueProblem::NoCurrency
            | ValueProblem::Unreadable { .. }
            | ValueProblem::Decode(_) => true,
        }
    }

    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            ValueProblem::Rule(rule) => rule.code(),
            ValueProblem::Decode(error) => error.code(),
            ValueProblem::Unreadable { code, .. } => code,
            ValueProblem::Ambiguous => "ambiguous_items",
            ValueProblem::Event(_) => UnsupportedEvent::CODE,
            ValueProblem::Missing
            | ValueProblem::Null
            | ValueProblem::Empty
            | ValueProblem::TypeMismatch(_)
            | ValueProblem::Json(_)
            | ValueProblem::TooMany(_)
            | ValueProblem::NoCurrency => "invalid_order",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.field, &self.pointer) {
            ("", _) => write!(f, "{}", self.problem),
            // The text of most rules begins with the field's name.
            (field, Some(pointer))
                if !self.problem.is_malformed() || matches!(self.problem, ValueProblem::Event(_)) =>
            {
                write!(f, "{field} ({pointer}): {}", self.problem)
            }
            (field, Some(pointer)) => write!(f, "{field} ({pointer}) {}", self.problem),
            (field, None) => write!(f, "{field}: {}", self.problem),
        }
    }
}

/// Everything that is wrong with a document: at least one fault, and at most [`MAX_FAULTS`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(.faults))]
pub struct OrderFaults {
    /// The order that the document is about, if its id is known.
    pub order_id: Option<OrderId>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

impl OrderFaults {
    /// Faults of a document whose order is not known.
    pub(super) fn of(faults: Vec<Fault>) -> Self {
        OrderFaults { order_id: None, faults }
    }

    /// A rule that an order breaks.
    pub(super) fn of_order(order: &Order, fault: Fault) -> Self {
        OrderFaults { order_id: Some(order.id.clone()), faults: vec![fault] }
    }

    /// The document as a whole is wrong.
    pub(super) fn whole(problem: impl Into<ValueProblem>) -> Self {
        Self::of(vec![Fault { field: String::new(), pointer: None, problem: problem.into() }])
    }

    /// The message contains no document.
    pub fn unreadable(code: &'static str, reason: String) -> Self {
        Self::whole(ValueProblem::Unreadable { code, reason })
    }

    /// Whether the document cannot be read at all. If it can, it breaks a rule.
    pub fn is_malformed(&self) -> bool {
        self.faults.iter().any(|fault| fault.problem.is_malformed())
    }

    /// The stable code of the first fault, or of the first that keeps the document from being read.
    pub fn code(&self) -> &'static str {
        let malformed = self.faults.iter().find(|fault| fault.problem.is_malformed());
        malformed.or(self.faults.first()).map_or("invalid_order", |fault| fault.problem.code())
    }
}

fn shown(faults: &[Fault]) -> String {
    let mut text = faults.iter().take(SHOWN_FAULTS).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = faults.len().checked_sub(SHOWN_FAULTS) {
        text.push_str(&format!("; and {more} more"));
    }
    text
}
