//! Erasing personal data: the subject, what the ledger has about it, and the result.

use serde::Serialize;

use super::journal::JournalHead;

/// Takes the place of erased text. A redelivered order whose customer was erased is still recognized.
pub const ERASED: &str = "[erased]";

/// Whose data is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErasureSubject {
    /// All orders of the customer with this id.
    Customer(String),
    /// The order with this id.
    Order(String),
    /// The messages with this `message_id`, of any sender, that are no orders; or the one with this identity.
    Message(String),
    /// The stored dead letter with this number.
    DeadLetter(i64),
}

impl ErasureSubject {
    /// Whether it is the message, other than an order, with this identity.
    pub fn is_message(&self, identity: &str) -> bool {
        match self {
            ErasureSubject::Customer(_) | ErasureSubject::Order(_) | ErasureSubject::DeadLetter(_) => false,
            ErasureSubject::Message(id) => identity.strip_prefix(id.as_str()).is_some_and(|sender| {
                sender.is_empty() || sender == "/unverified" || sender.strip_prefix("/from/").is_some()
            }),
        }
    }
}

/// What a ledger has about a subject.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErasureTargets {
    /// Orders, by id.
    pub orders: Vec<String>,
    /// Other messages, by identity.
    pub messages: Vec<String>,
    /// Stored dead letters, by number, besides those of the orders and messages.
    pub dead_letters: Vec<i64>,
    /// Orders that dead letters of the customer name, and that are, or may be, another customer's: nothing of them is erased but those
    /// dead letters.
    pub orders_of_others: Vec<String>,
    /// The customer, if the orders are those of one. A dead letter of another customer may have the id of one of them.
    pub customer: Option<String>,
}

impl ErasureTargets {
    /// Whether the ledger has nothing about the subject.
    pub fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.messages.is_empty() && self.dead_letters.is_empty()
    }
}

/// How to erase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErasureOptions {
    /// Change nothing, and only say what would be erased.
    pub dry_run: bool,
    /// Also erase results of steps that are still needed.
    pub include_unfinished: bool,
}

/// What was erased from a ledger, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ErasedRows {
    /// Orders whose customer was erased.
    pub customer_ids: usize,
    /// Texts of failed attempts and dead letters.
    pub failure_texts: usize,
    /// Shortened recipients of notifications.
    pub recipients: usize,
    /// Results and failures of steps.
    pub step_texts: usize,
    /// Stored dead letters whose content was erased. They cannot be replayed any more.
    pub dead_letters: usize,
    /// Stored dead letters whose content is not erased, because they are being published again.
    pub replaying_dead_letters: usize,
    /// All stored dead letters with a content of which no order is known, or no customer, if a customer is erased.
    pub unattributed_dead_letters: usize,
    /// Orders and messages of which the results of steps are not erased yet, because they are still needed. Unless an undo has
    /// failed, they are erased as soon as the steps are finished or undone.
    pub unfinished: Vec<UnfinishedSteps>,
    /// The last entry in the journal about it; `None` if nothing was changed.
    pub journal: Option<JournalHead>,
    /// Whether copies of erased text may remain in the store's log until it is written anew.
    pub copies_remain: bool,
}

impl ErasedRows {
    /// Adds what was erased in another transaction.
    pub(super) fn add(&mut self, other: ErasedRows) {
        let ErasedRows { customer_ids, failure_texts, recipients, step_texts, unfinished, copies_remain, .. } = other;
        let ErasedRows { dead_letters, replaying_dead_letters, unattributed_dead_letters, .. } = other;
        self.customer_ids += customer_ids;
        self.failure_texts += failure_texts;
        self.recipients += recipients;
        self.step_texts += step_texts;
        self.dead_letters += dead_letters;
        self.replaying_dead_letters += replaying_dead_letters;
        self.unattributed_dead_letters = unattributed_dead_letters.max(self.unattributed_dead_letters);
        self.unfinished.extend(unfinished);
        self.copies_remain |= copies_remain;
    }
}

/// The steps of an order or message whose results are still needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnfinishedSteps {
    /// The consumer of a message that is no order; `None` for an order.
    pub consumer: Option<String>,
    /// The order's id, or the message's identity.
    pub id: String,
    /// `running`; `done`: the order is about to be processed; `undoing`; `undo_failed`: a person needs the results to undo them.
    pub state: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_names_the_messages_of_all_senders_and_no_others() {
        let subject = ErasureSubject::Message("inv-1".to_owned());
        let found = |identity| subject.is_message(identity);
        assert!(["inv-1", "inv-1/unverified", "inv-1/from/shop"].into_iter().all(found));
        assert!(!["inv-10", "inv-1/2", "inv", "inv-1/unverified/2", "x/inv-1"].into_iter().any(found));
        assert!(!ErasureSubject::Order("inv-1".to_owned()).is_message("inv-1"));
    }
}
