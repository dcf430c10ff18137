//! What waits to be recorded, by precedence: orders first, then messages from the dead letter queues, then what persons do with those.
//!
//! It owns how much of each is recorded before the writer looks for orders again. It never records.

use std::collections::VecDeque;

use super::request::{PendingEntry, WriterEntry};
use crate::ledger::error::LedgerError;

/// Messages from the dead letter queues in one transaction.
const LETTERS_AT_ONCE: usize = 100;
/// Operations on letters in one transaction: each may change many messages, or contain a large one.
const CHANGES_AT_ONCE: usize = 1;

/// Which entries are recorded first. Each kind has a queue, transactions and room of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precedence {
    /// What consumers record, and everything else that is small and rare.
    Orders,
    /// Messages from the dead letter queues.
    Letters,
    /// What persons do with stored messages.
    Operation,
}

impl Precedence {
    /// Those that give way to orders, in the order in which they are recorded.
    pub const AFTER_ORDERS: [Precedence; 2] = [Precedence::Letters, Precedence::Operation];
}

impl WriterEntry {
    /// When it is recorded.
    pub fn precedence(&self) -> Precedence {
        match self {
            WriterEntry::Effect(_)
            | WriterEntry::Cancel(_)
            | WriterEntry::Claim(_)
            | WriterEntry::Run(_)
            | WriterEntry::Alerts(_)
            | WriterEntry::Journal(_) => Precedence::Orders,
            WriterEntry::Letter(_)
            | WriterEntry::BeginReading { .. }
            | WriterEntry::EndReading { .. }
            | WriterEntry::BeginReadingAgain { .. }
            | WriterEntry::EndReadingAgain(_) => Precedence::Letters,
            WriterEntry::Operation(_) => Precedence::Operation,
        }
    }
}

/// Entries that wait, each kind in order of arrival.
#[derive(Debug, Default)]
pub(super) struct EntryQueues {
    orders: VecDeque<PendingEntry>,
    letters: VecDeque<PendingEntry>,
    actions: VecDeque<PendingEntry>,
}

impl EntryQueues {
    pub fn of(&mut self, precedence: Precedence) -> &mut VecDeque<PendingEntry> {
        match precedence {
            Precedence::Orders => &mut self.orders,
            Precedence::Letters => &mut self.letters,
            Precedence::Operation => &mut self.actions,
        }
    }

    pub fn push(&mut self, entry: PendingEntry) {
        self.of(entry.entry.precedence()).push_back(entry);
    }

    pub fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.letters.is_empty() && self.actions.is_empty()
    }

    /// How many are recorded before the writer looks for further orders.
    pub fn turn(&self, precedence: Precedence) -> usize {
        match precedence {
            Precedence::Orders => self.orders.len(),
            Precedence::Letters => self.letters.len().min(LETTERS_AT_ONCE),
            Precedence::Operation => self.actions.len().min(CHANGES_AT_ONCE),
        }
    }

    /// Drops those whose callers have stopped waiting: their messages are delivered again.
    pub fn retain_awaited(&mut self) {
        for queue in [&mut self.orders, &mut self.letters, &mut self.actions] {
            queue.retain(|entry| !entry.answer.is_closed());
        }
    }

    /// Answers all of them.
    pub fn refuse_all(&mut self, error: &LedgerError) {
        for queue in [&mut self.orders, &mut self.letters, &mut self.actions] {
            refuse(queue, error);
        }
    }
}

/// Answers all entries of a queue. Their callers may have stopped waiting.
pub(super) fn refuse(queue: &mut VecDeque<PendingEntry>, error: &LedgerError) {
    for PendingEntry { answer, .. } in queue.drain(..) {
        let _ = answer.send(Err(error.clone()));
    }
}
