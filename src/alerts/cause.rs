//! A cause of an alert: its kind, its name and its texts, and which entry of the runbook is about it. Pure.
//!
//! Names are those of `config/prometheus/orderd.rules.yml` where it has them.

use std::time::Duration;

use jiff::Timestamp;

use crate::escape::escaped;
use crate::reconcile::FindingKind;

/// The longest title and the longest explanation, in characters.
const MAX_TITLE_CHARS: usize = 160;
pub(super) const MAX_DETAIL_CHARS: usize = 1_000;

/// What may be an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    pub scope: String,
    /// Kind and subject: the same for as long as it lasts.
    pub id: String,
    pub title: String,
    pub detail: String,
    pub since: Timestamp,
    /// How long it must have been seen before it is an alert. Zero for what has happened, and so cannot pass.
    pub wait: Duration,
}

/// The kinds of causes; also the values of a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CauseKind {
    Finding,
    DeadLetters,
    Breaker,
    Reload,
    DeadLettersWaiting,
    Unrouted,
    ReplayStopped,
}

impl CauseKind {
    pub const ALL: [CauseKind; 7] = [
        CauseKind::Finding,
        CauseKind::DeadLetters,
        CauseKind::Breaker,
        CauseKind::Reload,
        CauseKind::DeadLettersWaiting,
        CauseKind::Unrouted,
        CauseKind::ReplayStopped,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            CauseKind::Finding => "finding",
            CauseKind::DeadLetters => "dead_letters",
            CauseKind::Breaker => "breaker",
            CauseKind::Reload => "reload",
            CauseKind::DeadLettersWaiting => "dead_letters_waiting",
            CauseKind::Unrouted => "unrouted",
            CauseKind::ReplayStopped => "replay_stopped",
        }
    }

    /// Of a cause's id.
    pub fn of(id: &str) -> Option<Self> {
        let word = id.split('/').next().unwrap_or_default();
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Whether a cause is something that has happened. Then its alert ends once it has not happened again for some time, which
/// corrects nothing.
pub(super) fn is_event(id: &str) -> bool {
    match CauseKind::of(id) {
        Some(CauseKind::DeadLetters | CauseKind::Unrouted | CauseKind::ReplayStopped) => true,
        Some(CauseKind::Finding) => finding_kind(id).is_some_and(is_event_finding),
        Some(CauseKind::Breaker | CauseKind::Reload | CauseKind::DeadLettersWaiting) | None => false,
    }
}

/// Whether findings of this kind are events, which are shown for some time after they have happened.
pub(super) fn is_event_finding(kind: FindingKind) -> bool {
    match kind {
        FindingKind::Redeclared
        | FindingKind::AckedByOthers
        | FindingKind::AcksMissing
        | FindingKind::DeliveriesMissing
        | FindingKind::PublishesMissing
        | FindingKind::TakenByOthers
        | FindingKind::UndoFailed => true,
        FindingKind::ExchangeMissing
        | FindingKind::QueueMissing
        | FindingKind::BindingMissing
        | FindingKind::ExchangeMismatch
        | FindingKind::QueueMismatch
        | FindingKind::DangerousPolicy
        | FindingKind::ShortConsumerTimeout
        | FindingKind::NoConsumer
        | FindingKind::ConsumerPaused
        | FindingKind::UnackedNotHeld
        | FindingKind::DeadLettersHeld
        | FindingKind::RetriesOverdue
        | FindingKind::NotCollected => false,
    }
}

fn finding_kind(id: &str) -> Option<FindingKind> {
    let word = id.split('/').nth(1).unwrap_or_default();
    FindingKind::ALL.into_iter().find(|kind| kind.as_str() == word)
}

/// The entry of the runbook about a cause.
pub(super) fn runbook_entry(id: &str) -> &'static str {
    match CauseKind::of(id) {
        Some(CauseKind::DeadLetters) if id.ends_with("/undo_failed") => "OrderdUndoFailed",
        Some(CauseKind::DeadLetters) => "OrderdDeadLettersGrowing",
        Some(CauseKind::Breaker) if id.starts_with("breaker/channel/") => "OrderdChannelUnavailable",
        Some(CauseKind::Breaker) => "OrderdStepUnavailable",
        Some(CauseKind::Reload) => "OrderdConfigRejected",
        Some(CauseKind::DeadLettersWaiting) => "OrderdDeadLettersWaiting",
        Some(CauseKind::Unrouted) => "OrderdUnroutedMessages",
        Some(CauseKind::ReplayStopped) => "OrderdReplayStopped",
        Some(CauseKind::Finding) => finding_kind(id).map_or("Alerts", finding_entry),
        None => "Alerts",
    }
}

fn finding_entry(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::ExchangeMissing => "OrderdExchangeMissing",
        FindingKind::QueueMissing => "OrderdQueueMissing",
        FindingKind::BindingMissing => "OrderdBindingMissing",
        FindingKind::ExchangeMismatch | FindingKind::QueueMismatch => "OrderdTopologyMismatch",
        FindingKind::DangerousPolicy => "OrderdDangerousPolicy",
        FindingKind::ShortConsumerTimeout => "OrderdShortConsumerTimeout",
        FindingKind::Redeclared => "OrderdTopologyRedeclared",
        FindingKind::NoConsumer => "OrderdNoConsumer",
        FindingKind::ConsumerPaused => "OrderdConsumerPaused",
        FindingKind::AckedByOthers
        | FindingKind::AcksMissing
        | FindingKind::DeliveriesMissing
        | FindingKind::PublishesMissing
        | FindingKind::TakenByOthers
        | FindingKind::UnackedNotHeld => "OrderdMessagesMissing",
        FindingKind::DeadLettersHeld | FindingKind::RetriesOverdue => "OrderdRetriesOverdue",
        FindingKind::UndoFailed => "OrderdUndoFailed",
        FindingKind::NotCollected => "OrderdDeadLettersNotCollected",
    }
}

/// A cause that is an alert at once.
pub(super) fn cause(scope: &str, id: &[&str], title: &str, detail: &str, since: Timestamp) -> Cause {
    Cause {
        scope: scope.to_owned(),
        id: id.iter().map(|part| escaped(part)).collect::<Vec<_>>().join("/"),
        title: limited(title, MAX_TITLE_CHARS),
        detail: limited(detail, MAX_DETAIL_CHARS),
        since,
        wait: Duration::ZERO,
    }
}

/// Texts of others, such as names of queues and answers of services, in one line.
pub(super) fn limited(text: &str, max: usize) -> String {
    let text = escaped(text);
    match text.char_indices().nth(max) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
