//! What the ledger keeps about operators' alerts: those that are open, or whose end has not been reported yet, and the messages
//! about them. It never decides what is open or when a message is sent; `alerts` does.

use jiff::Timestamp;

/// All alerts of the instances that share the ledger. Each change replaces the whole, so that no two instances send the same message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlertBook {
    /// The number of changes so far; 0 if there was none.
    pub version: u64,
    /// The number of messages sent so far.
    pub messages: u64,
    /// When the last of them was sent.
    pub sent_at: Option<Timestamp>,
    /// The process that is sending one, and until when no other process does.
    pub sender: Option<(String, Timestamp)>,
    /// The alerts. Scope and cause together are unique.
    pub alerts: Vec<AlertRecord>,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertRecord {
    /// Where the cause is: a virtual host, or a host and the configuration of an instance on it.
    pub scope: String,
    /// The kind of cause and what it is about, such as `finding/queue_missing/order_queue`.
    pub cause: String,
    /// One line for people.
    pub title: String,
    /// An explanation for people.
    pub detail: String,
    /// The process that opened it.
    pub instance: String,
    /// When the cause began.
    pub opened_at: Timestamp,
    /// When it was last observed; up to a minute ago while it lasts.
    pub observed_at: Timestamp,
    /// When it ended; `None` while it lasts.
    pub resolved_at: Option<Timestamp>,
    /// When a message last said that it is open; `None` before the first.
    pub reported_at: Option<Timestamp>,
}

/// What is recorded now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertAnswer {
    /// Whether the replacement was recorded.
    pub replaced: bool,
    /// What is recorded after that.
    pub book: AlertBook,
}

impl AlertBook {
    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let texts = |alert: &AlertRecord| {
            [&alert.scope, &alert.cause, &alert.title, &alert.detail, &alert.instance]
                .map(String::len)
                .iter()
                .sum::<usize>()
        };
        let alerts: usize = self.alerts.iter().map(|alert| size_of::<AlertRecord>() + texts(alert)).sum();
        size_of::<Self>() + alerts
    }

    /// What a ledger with this book answers to a replacement, and records.
    #[cfg(test)]
    pub(super) fn exchange(&mut self, replacement: Option<AlertBook>) -> AlertAnswer {
        let replacement = replacement.filter(|replacement| replacement.version == self.version);
        let replaced = replacement.is_some();
        if let Some(replacement) = replacement {
            *self = AlertBook { version: replacement.version + 1, ..replacement };
        }
        AlertAnswer { replaced, book: self.clone() }
    }
}
