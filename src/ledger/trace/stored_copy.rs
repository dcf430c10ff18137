//! The copies of an order's messages in the store of dead letters, as commands and the API name them.

use serde::Serialize;
use utoipa::ToSchema;

use super::TracedMessage;
use crate::ledger::dead_letters::{DeadLetter, DeadLetterFilter, DeadLetterQuery, LetterState};

/// The most stored dead letters of one order that are looked at.
const MAX_STORED: usize = 1_000;

/// A message in the store of dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoredCopy {
    /// Its number.
    pub id: i64,
    /// What has become of it.
    pub state: LetterState,
    /// The order that it is now, if it was edited to another one.
    pub edited_to: Option<String>,
}

impl StoredCopy {
    /// Finds the dead letters of an order, among them those that were edited to another one, the latest first.
    pub fn query(order: &str) -> DeadLetterQuery {
        let filter = DeadLetterFilter { order: Some(order.to_owned()), ..DeadLetterFilter::default() };
        DeadLetterQuery { filter, limit: MAX_STORED, ..DeadLetterQuery::default() }
    }

    /// Those among the order's dead letters that are this message of it, or were before an edit.
    pub fn of_message(order: &str, message: TracedMessage, letters: &[DeadLetter]) -> Vec<Self> {
        // Only an order can be edited to another one.
        let was_this = |letter: &DeadLetter| letter.former_order_id.as_deref() == Some(order);
        let is_meant = |letter: &&DeadLetter| match was_this(letter) {
            true => message == TracedMessage::Order,
            false => message.is_meant_by(order, letter.identity.as_deref()),
        };
        let copy = |letter: &DeadLetter| StoredCopy {
            id: letter.id,
            state: letter.state,
            edited_to: letter.order_id.clone().filter(|_| was_this(letter)),
        };
        letters.iter().filter(is_meant).map(copy).collect()
    }
}
