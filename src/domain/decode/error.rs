//! Why a document is not an order in orderd's own format.

use crate::domain::body::BodyError;
use crate::domain::json::JsonError;
use crate::domain::limits::MAX_ID_BYTES;
use crate::domain::order_event::UnsupportedEvent;
use crate::domain::value::TypeMismatch;

/// The body is not an order. Failure kind `malformed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body is not text.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The body is not a JSON object.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A required field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has the wrong type, or a value that cannot be read.
    #[error("{field} {mismatch}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it must be, and what it is.
        mismatch: TypeMismatch,
    },
    /// The id of a cancelled order is too long.
    #[error("id must have at most {MAX_ID_BYTES} bytes")]
    LongId,
    /// The order has one product of its own and a list of items.
    #[error("{0} and items are both given: an order has either product, quantity and price, or items")]
    Ambiguous(&'static str),
    /// The order was neither placed nor cancelled: something else happened to it.
    #[error(transparent)]
    Event(#[from] UnsupportedEvent),
    /// One of the items is no line of an order.
    #[error("items[{index}]: {error}")]
    Item {
        /// From 0.
        index: usize,
        /// What is wrong with it.
        error: Box<DecodeError>,
    },
}

impl DecodeError {
    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            DecodeError::Body(error) => error.code(),
            DecodeError::Ambiguous(_) => "ambiguous_items",
            DecodeError::Event(_) => UnsupportedEvent::CODE,
            DecodeError::LongId => "invalid_id",
            DecodeError::Json(_) | DecodeError::Missing(_) | DecodeError::Field { .. } | DecodeError::Item { .. } => {
                "invalid_order"
            }
        }
    }
}
