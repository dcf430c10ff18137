//! What can be recorded, and the answers.

use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::domain::{Currency, OrderId, Sale};

/// One thing to record, or to look up.
#[derive(Debug, Clone)]
pub enum LedgerEntry {
    /// Enters an order with status `accepted`. Answers [`Recorded::New`], [`Recorded::Unfinished`],
    /// [`Recorded::Duplicate`] (already `processed`) or [`Recorded::Conflict`].
    AcceptOrder(Box<NewOrder>),
    /// Sets an accepted order to `processed`. Answers `New`, or `Duplicate` if it already was.
    FinishOrder {
        /// The order.
        id: OrderId,
        /// When its events had been confirmed.
        at: Timestamp,
    },
    /// Asks whether a notification is recorded, and records nothing. Answers `Duplicate` if it is, else `New`.
    LookUpNotification {
        /// The event's message id.
        id: String,
    },
    /// Enters a delivered notification. Answers `New` or `Duplicate`.
    Notification(Box<NewNotification>),
    /// Enters an analytics event and adds its sale to the aggregates. Answers `New` or `Duplicate`.
    Analytics(Box<NewAnalytics>),
    /// Enters a failed attempt that will be retried. Answers `New` or `Duplicate`.
    Attempt(Box<NewAttempt>),
    /// Enters a dead-lettered message and its last attempt, or renews its row if it was dead-lettered before and has failed
    /// again since. Answers `New`, or `Duplicate` if nothing changed.
    DeadLetter(Box<NewDeadLetter>),
}

impl LedgerEntry {
    /// Dates what is over once its publications are confirmed, which they are only now: an order processed, a
    /// message dead-lettered.
    #[must_use]
    pub fn confirmed_at(mut self, now: Timestamp) -> Self {
        match &mut self {
            LedgerEntry::FinishOrder { at, .. } => *at = now,
            LedgerEntry::DeadLetter(letter) => letter.at = now,
            LedgerEntry::AcceptOrder(_)
            | LedgerEntry::LookUpNotification { .. }
            | LedgerEntry::Notification(_)
            | LedgerEntry::Analytics(_)
            | LedgerEntry::Attempt(_) => {}
        }
        self
    }
}

/// An order that passed its checks.
#[derive(Debug, Clone)]
pub struct NewOrder {
    /// Primary key.
    pub id: OrderId,
    /// The consumer that took it: `order` or `priority`.
    pub consumer: Arc<str>,
    /// What was ordered.
    pub product: String,
    /// At least 1.
    pub quantity: i64,
    /// Price of one piece.
    pub price: Decimal,
    /// Price times quantity.
    pub total: Decimal,
    /// The amounts' currency.
    pub currency: Currency,
    /// Whether the producer marked it urgent.
    pub priority: bool,
    /// Who ordered.
    pub customer_id: Option<String>,
    /// When the customer ordered.
    pub placed_at: Option<Timestamp>,
    /// When it was accepted.
    pub at: Timestamp,
}

/// A notification that was handed to its channel.
#[derive(Debug, Clone)]
pub struct NewNotification {
    /// The message id; with the kind of event the primary key.
    pub id: String,
    /// The order it is about, where the message says so.
    pub order_id: Option<String>,
    /// The channel: `email`, `sms`, …
    pub channel: String,
    /// When it was delivered.
    pub at: Timestamp,
}

/// An analytics event.
#[derive(Debug, Clone)]
pub struct NewAnalytics {
    /// The message id; with the kind of event the primary key.
    pub id: String,
    /// The order it is about, where the message says so.
    pub order_id: Option<String>,
    /// The last word of its routing key: `processed`, `failed`, `page_view`, …
    pub name: String,
    /// What it adds to the aggregates: set for processed orders only.
    pub sale: Option<Sale>,
    /// When it was received.
    pub at: Timestamp,
}

/// One failed attempt of one message.
#[derive(Debug, Clone)]
pub struct NewAttempt {
    /// The message's identity: the order's id, else the message id.
    pub identity: String,
    /// The consumer that failed.
    pub consumer: String,
    /// Delayed retries before this attempt: 0 for the first. With identity and consumer the primary key.
    pub retry_count: u32,
    /// See [`crate::recovery::FailureKind`].
    pub kind: &'static str,
    /// Stable code.
    pub code: String,
    /// Text for people.
    pub reason: String,
    /// When it failed.
    pub failed_at: Timestamp,
    /// The delay before the retry, such as `10s`; `None` when it is dead-lettered instead.
    pub delay: Option<String>,
}

/// One message that was dead-lettered.
#[derive(Debug, Clone)]
pub struct NewDeadLetter {
    /// The last attempt. Its identity and consumer are the primary key here.
    pub attempt: NewAttempt,
    /// The value of `x-dead-letter-reason`.
    pub reason: &'static str,
    /// The queue it had failed in, where known.
    pub origin_queue: Option<String>,
    /// When it was dead-lettered.
    pub at: Timestamp,
}

/// What the ledger knew of an entry before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// Nothing: it is recorded now.
    New,
    /// The same order was accepted before, but its events are not known to be confirmed.
    Unfinished,
    /// It was recorded, and finished, before.
    Duplicate,
    /// An order of this id but other content (product, quantity, price, currency or customer) is recorded.
    Conflict,
}
