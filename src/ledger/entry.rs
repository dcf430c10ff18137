//! The entries that a ledger records, and its answers.

use std::sync::Arc;

use jiff::Timestamp;

use super::replay_outcome::ReplayOutcome;
use crate::domain::{Amounts, Item, Order, OrderId, ProductSale, Sale};

/// One thing to record, or to look up.
#[derive(Debug, Clone)]
pub enum LedgerEntry {
    /// Adds an order with status `accepted`, or accepts one that has `failed` again. Answers [`Recorded::New`],
    /// [`Recorded::Unfinished`], [`Recorded::Undone`], [`Recorded::Duplicate`] (already processed), [`Recorded::Cancelled`] or
    /// [`Recorded::Conflict`].
    AcceptOrder(Box<NewOrder>),
    /// Sets an accepted order to `processed`. Answers `New`, `Duplicate` if it already was, or `Undone`, and then nothing is
    /// recorded; or `Cancelled` if it was cancelled meanwhile: then it stays so, and counts as processed and cancelled.
    FinishOrder {
        /// The order.
        id: OrderId,
        /// When the broker had confirmed its events.
        at: Timestamp,
    },
    /// Records that a cancellation is complete: the order's steps are undone, and its events are confirmed. Answers `New` or
    /// `Duplicate`.
    FinishCancellation {
        /// The order.
        id: OrderId,
        /// When that was.
        at: Timestamp,
    },
    /// Looks up a notification and records nothing. Answers `Duplicate` if it is recorded, else `New`.
    LookUpNotification {
        /// The event's message id.
        id: String,
    },
    /// Claims a notification that is about to be delivered, so that no other instance delivers it too. A claim of the same owner is
    /// renewed. Answers `New`, [`Recorded::Held`], or `Duplicate` if it is recorded as sent.
    ClaimNotification {
        /// The event's message id.
        id: String,
        /// Who asks: one process.
        owner: Arc<str>,
        /// When it asks.
        at: Timestamp,
        /// Until when it is claimed, unless it is recorded or released before.
        until: Timestamp,
    },
    /// Ends a claim of this owner, and keeps why the notification was not delivered. Answers `New`, or `Duplicate` if there is no
    /// claim.
    ReleaseNotification {
        /// The event's message id.
        id: String,
        /// Who has claimed it.
        owner: Arc<str>,
        /// The attempts to deliver it that have failed.
        failed: Vec<FailedDelivery>,
    },
    /// Looks up an analytics event and records nothing. Answers `Duplicate` if it is recorded, else `New`.
    LookUpAnalytics {
        /// The event's message id.
        id: String,
    },
    /// Adds a sent notification, and ends its claim. Answers `New` or `Duplicate`.
    Notification(Box<NewNotification>),
    /// Adds an analytics event, and its sale to the aggregates. If the order was cancelled, the sale is subtracted in the period
    /// of the cancellation. Answers `New` or `Duplicate`.
    Analytics(Box<NewAnalytics>),
    /// Adds a failed attempt that will be retried. If this same failure, with its code, was recorded with another decision before,
    /// which was not carried out, the new decision replaces it, and a dead letter of it is removed. Answers `New`, or `Duplicate` if
    /// nothing changed.
    Attempt(Box<NewAttempt>),
    /// Adds a dead-lettered message and its last attempt. Replaces the row if the message was dead-lettered before and
    /// has failed again since, or if the same failure was recorded with another decision. If the message is an accepted order, that
    /// becomes `failed`. Answers `New`, `Duplicate` if nothing changed, or `Cancelled` if the message is an order that was
    /// cancelled: then no dead letter is recorded, because it must not be dead-lettered. Another order with the same id is.
    DeadLetter(Box<NewDeadLetter>),
    /// Records what became of a dead letter that was replayed. Answers `New`, or `Duplicate` if no replay is known with this key, or
    /// its letter has an outcome already.
    ReplayOutcome {
        /// The message's `x-replay-id`.
        key: String,
        /// What became of it.
        outcome: ReplayOutcome,
        /// The failure's stable code, if it has failed.
        code: Option<String>,
        /// When.
        at: Timestamp,
    },
}

/// The length of an optional text.
fn length(text: Option<&String>) -> usize {
    text.map_or(0, String::len)
}

impl LedgerEntry {
    /// About how much memory the entry takes, in bytes.
    pub fn bytes(&self) -> usize {
        let attempt = |attempt: &NewAttempt| {
            size_of::<NewAttempt>()
                + attempt.identity.len()
                + attempt.consumer.len()
                + length(attempt.replay.as_ref())
                + attempt.code.len()
                + attempt.reason.len()
                + length(attempt.delay.as_ref())
        };
        let more = match self {
            LedgerEntry::AcceptOrder(order) => order.bytes(),
            LedgerEntry::FinishOrder { id, .. } | LedgerEntry::FinishCancellation { id, .. } => id.as_str().len(),
            LedgerEntry::LookUpNotification { id }
            | LedgerEntry::ClaimNotification { id, .. }
            | LedgerEntry::LookUpAnalytics { id } => id.len(),
            LedgerEntry::ReleaseNotification { id, failed, .. } => id.len() + FailedDelivery::bytes_of(failed),
            LedgerEntry::Notification(notification) => {
                let NewNotification { id, order_id, channel, delivery, .. } = &**notification;
                let NotificationDelivery { provider, recipient, failed, not_delivered: _ } = delivery;
                let texts = [order_id, provider, recipient].map(|text| length(text.as_ref()));
                let texts: usize = texts.iter().sum();
                size_of::<NewNotification>() + id.len() + channel.len() + texts + FailedDelivery::bytes_of(failed)
            }
            LedgerEntry::Analytics(event) => {
                let NewAnalytics { id, order_id, name, sale, .. } = &**event;
                let products = sale.iter().flat_map(Sale::products);
                let products: usize = products.map(|sold| size_of::<ProductSale>() + sold.product.len()).sum();
                size_of::<NewAnalytics>() + id.len() + length(order_id.as_ref()) + name.len() + products
            }
            LedgerEntry::ReplayOutcome { key, code, .. } => key.len() + length(code.as_ref()),
            LedgerEntry::Attempt(failed) => attempt(failed),
            LedgerEntry::DeadLetter(letter) => {
                let order = letter.order.as_ref().map_or(0, |order| order.bytes());
                size_of::<NewDeadLetter>() + attempt(&letter.attempt) + length(letter.origin_queue.as_ref()) + order
            }
        };
        size_of::<LedgerEntry>() + more
    }

    /// Sets the time of an entry that is recorded once its publications are confirmed: the processing of an order, or a
    /// dead-lettering. Other entries keep their time.
    #[must_use]
    pub fn confirmed_at(mut self, now: Timestamp) -> Self {
        match &mut self {
            LedgerEntry::FinishOrder { at, .. } | LedgerEntry::FinishCancellation { at, .. } => *at = now,
            LedgerEntry::DeadLetter(letter) => letter.at = now,
            LedgerEntry::AcceptOrder(_)
            | LedgerEntry::LookUpNotification { .. }
            | LedgerEntry::ClaimNotification { .. }
            | LedgerEntry::ReleaseNotification { .. }
            | LedgerEntry::LookUpAnalytics { .. }
            | LedgerEntry::Notification(_)
            | LedgerEntry::Analytics(_)
            | LedgerEntry::Attempt(_)
            | LedgerEntry::ReplayOutcome { .. } => {}
        }
        self
    }
}

/// An order that passed its checks.
#[derive(Debug, Clone)]
pub struct NewOrder {
    /// The id, which is the primary key.
    pub id: OrderId,
    /// Name of the consumer that accepted it.
    pub consumer: Arc<str>,
    /// The lines, at least one.
    pub items: Arc<[Item]>,
    /// What it costs, and its number of pieces.
    pub amounts: Amounts,
    /// Whether the producer marked it as priority.
    pub priority: bool,
    /// Id of the customer.
    pub customer_id: Option<String>,
    /// The customer's email address, for the notification of a cancellation.
    pub email: Option<String>,
    /// The customer's telephone number, for the same.
    pub phone: Option<String>,
    /// The customer's language, for the same.
    pub locale: Option<String>,
    /// The notification channel that the order asks for.
    pub notify: Option<String>,
    /// When the customer placed the order.
    pub placed_at: Option<Timestamp>,
    /// When it was accepted.
    pub at: Timestamp,
}

impl NewOrder {
    /// The order as the ledger records and compares it.
    pub fn new(order: &Order, consumer: &Arc<str>, amounts: Amounts, at: Timestamp) -> Self {
        NewOrder {
            id: order.id.clone(),
            consumer: Arc::clone(consumer),
            items: Arc::clone(&order.items),
            amounts,
            priority: order.priority,
            customer_id: order.customer_id.clone(),
            email: order.email.clone(),
            phone: order.customer_phone().map(str::to_owned),
            locale: order.customer_locale().map(str::to_owned),
            notify: order.notify.clone(),
            placed_at: order.placed_at,
            at,
        }
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let items = self.items.iter().map(|item| size_of::<Item>() + item.product.len()).sum::<usize>();
        let texts =
            [&self.customer_id, &self.email, &self.phone, &self.locale, &self.notify].map(|text| length(text.as_ref()));
        size_of::<Self>() + self.id.as_str().len() + items + texts.iter().sum::<usize>()
    }
}

/// The cancellation of an order.
#[derive(Debug, Clone)]
pub struct NewCancellation {
    /// The order.
    pub id: OrderId,
    /// Name of the consumer that received the cancellation.
    pub consumer: Arc<str>,
    /// When it was cancelled.
    pub at: Timestamp,
}

impl NewCancellation {
    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.id.as_str().len()
    }
}

/// The ledger's answer to a cancellation.
#[derive(Debug, Clone)]
pub enum CancelAnswer {
    /// The order is not known. That it was cancelled is kept, so that it is not processed when it arrives.
    Kept,
    /// The order is cancelled, now or by an earlier delivery of the cancellation, which was not completed.
    Cancelled(Box<CancelledOrder>),
    /// It was cancelled before, and nothing is left to do.
    Duplicate,
}

/// An order that was cancelled after it was accepted.
#[derive(Debug, Clone)]
pub struct CancelledOrder {
    /// The order, as it was accepted.
    pub order: NewOrder,
    /// When it was cancelled.
    pub at: Timestamp,
    /// Whether the events of its processing were published, or may have been.
    pub was_announced: bool,
    /// The queue of the consumer that has called its steps; `None` if none were called. Only that consumer can undo them.
    pub steps_queue: Option<String>,
}

/// A notification that was sent to its channel.
#[derive(Debug, Clone)]
pub struct NewNotification {
    /// The message id. With the kind of event, it is the primary key.
    pub id: String,
    /// The order it is about, if the message says so.
    pub order_id: Option<String>,
    /// The channel: `email`, `sms`, …
    pub channel: String,
    /// When it was sent.
    pub at: Timestamp,
    /// How it was delivered.
    pub delivery: NotificationDelivery,
}

/// How a notification was delivered.
#[derive(Debug, Clone, Default)]
pub struct NotificationDelivery {
    /// The provider that has accepted it; `None`: the file of notifications.
    pub provider: Option<String>,
    /// Its recipient, shortened so that it names nobody.
    pub recipient: Option<String>,
    /// The attempts before that which have failed.
    pub failed: Vec<FailedDelivery>,
    /// Why it was not delivered, a stable code; `None` if it was.
    pub not_delivered: Option<&'static str>,
}

/// The latest failed attempts to deliver one notification that are kept.
pub(super) const MAX_FAILED_DELIVERIES: usize = 100;

/// An attempt to deliver a notification that has failed.
#[derive(Debug, Clone)]
pub struct FailedDelivery {
    /// The channel.
    pub channel: String,
    /// The provider that did not accept it.
    pub provider: String,
    /// The recipient, shortened so that it names nobody.
    pub recipient: Option<String>,
    /// The name of the failure's [`crate::recovery::FailureKind`].
    pub kind: &'static str,
    /// The failure's stable code.
    pub code: String,
    /// The failure's text.
    pub reason: String,
    /// When it failed.
    pub at: Timestamp,
}

impl FailedDelivery {
    fn bytes_of(failed: &[FailedDelivery]) -> usize {
        let bytes = |failed: &FailedDelivery| {
            let FailedDelivery { channel, provider, recipient, code, reason, .. } = failed;
            let texts = channel.len() + provider.len() + code.len() + reason.len() + length(recipient.as_ref());
            size_of::<FailedDelivery>() + texts
        };
        failed.iter().map(bytes).sum()
    }
}

/// An analytics event.
#[derive(Debug, Clone)]
pub struct NewAnalytics {
    /// The message id. With the kind of event, it is the primary key.
    pub id: String,
    /// The order it is about, if the message says so.
    pub order_id: Option<String>,
    /// The last word of its routing key: `processed`, `failed`, `page_view`, …
    pub name: String,
    /// The sale to add to the aggregates; `None` unless the event is about a processed order.
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
    /// The `x-replay-id` of the replay after which it was made; `None`: the message was not replayed before.
    pub replay: Option<String>,
    /// Delayed retries before this attempt, since the replay: 0 for the first. With identity, consumer and replay, it is the primary
    /// key.
    pub retry_count: u32,
    /// The name of the failure's [`crate::recovery::FailureKind`].
    pub kind: &'static str,
    /// The failure's stable code.
    pub code: String,
    /// The failure's text.
    pub reason: String,
    /// When it failed.
    pub failed_at: Timestamp,
    /// The delay before the retry, such as `10s`; `None` if the message was dead-lettered instead.
    pub delay: Option<String>,
}

impl NewAttempt {
    /// The replay as the ledger records it: empty if there was none.
    pub(super) fn replay_key(&self) -> &str {
        self.replay.as_deref().unwrap_or_default()
    }
}

/// A dead-lettered message.
#[derive(Debug, Clone)]
pub struct NewDeadLetter {
    /// The last attempt. Its identity and consumer are the primary key of the dead letter.
    pub attempt: NewAttempt,
    /// The order that the message is, if all of it could be read and it passes its checks. It is compared with the recorded order
    /// of the same id.
    pub order: Option<Box<NewOrder>>,
    /// The value of `x-dead-letter-reason`.
    pub reason: &'static str,
    /// The queue it failed in, if known.
    pub origin_queue: Option<String>,
    /// When it was dead-lettered.
    pub at: Timestamp,
}

/// The ledger's answer to an entry: what it contained before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The entry was new and is now recorded.
    New,
    /// The same order was accepted before, but it is not recorded that its events were confirmed.
    Unfinished,
    /// The same order was accepted before, and its steps are being undone or were, or could not be: it must not be processed.
    Undone,
    /// The entry was recorded before. An order was also processed, even if it was cancelled after that.
    Duplicate,
    /// The order was cancelled: it must not be processed.
    Cancelled,
    /// Another instance has claimed the notification.
    Held,
    /// The ledger has not replayed the dead letter: an instance with another ledger has, or the record is removed.
    UnknownReplay,
    /// The same order was accepted before, and the consumer of another queue calls its steps: it is not processed without them.
    InProgress,
    /// An order with this id but other content (a line, a charge, the currency or the customer) is recorded.
    Conflict(OtherOrder),
}

/// How far the recorded order is with which another one is in conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherOrder {
    /// It is accepted.
    InProgress,
    /// It was processed or cancelled.
    Finished,
    /// It was dead-lettered, or its steps are being undone or were.
    Failed,
}
