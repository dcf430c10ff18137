//! What the status shows about alerts. Field names are a contract; new ones may be added.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cause::CauseKind;
use super::tracker::unsent;
use crate::ledger::AlertBook;

use super::settings::AlertTimes;

/// Operators' alerts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertsStatus {
    /// The notification channel.
    pub channel: String,
    /// The alerts that are open, of all instances that share the ledger, sorted by scope and cause.
    pub open: Vec<OpenAlert>,
    /// Alerts that opened, ended or are to be repeated, and are in no message yet.
    pub unsent: u64,
    /// Messages that this process has sent.
    pub sent: u64,
    /// Attempts of this process to send one that failed.
    pub failed: u64,
    /// When the last message was sent, by any instance.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub sent_at: Option<Timestamp>,
    /// Why messages cannot be sent, or not to every recipient; `None` if the last one reached all.
    pub problem: Option<String>,
}

/// An alert that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenAlert {
    /// Its kind and what it is about, such as `finding/queue_missing/order_queue`.
    pub cause: String,
    /// Where: a virtual host, or a host and a configuration file.
    pub scope: String,
    /// One line for people.
    pub title: String,
    /// The instance that opened it.
    pub instance: String,
    /// When the cause began.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When a message last said so; `None` if none has yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub reported_at: Option<Timestamp>,
}

impl AlertsStatus {
    /// Enters what is recorded.
    pub(super) fn set_book(&mut self, book: &AlertBook, times: &AlertTimes, now: Timestamp) {
        let open = book.alerts.iter().filter(|alert| alert.resolved_at.is_none());
        self.open = open
            .map(|alert| OpenAlert {
                cause: alert.cause.clone(),
                scope: alert.scope.clone(),
                title: alert.title.clone(),
                instance: alert.instance.clone(),
                since: alert.opened_at,
                reported_at: alert.reported_at,
            })
            .collect();
        self.unsent = unsent(book, times, now).count() as u64;
        self.sent_at = book.sent_at;
    }

    /// The number of open alerts of each kind.
    pub fn open_by_kind(&self) -> BTreeMap<&'static str, u64> {
        let of = |kind: CauseKind| self.open.iter().filter(|alert| CauseKind::of(&alert.cause) == Some(kind)).count();
        CauseKind::ALL.into_iter().map(|kind| (kind.as_str(), of(kind) as u64)).collect()
    }
}
