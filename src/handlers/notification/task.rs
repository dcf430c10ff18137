//! The attempts to deliver one notification, and the record of how they end, as a task of its own: a lost connection to the broker does not
//! end it. It never acks, and never decides on a retry.

use std::sync::Arc;

use jiff::Timestamp;

use super::super::claim::{Claim, Claims};
use crate::ledger::{FailedDelivery, LedgerEntry, NewNotification, NotificationDelivery};
use crate::metrics::HandlerOutcome;
use crate::notify::{Delivered, Lease, Notice, ReadyDelivery};
use crate::pipeline::{HandlerError, SharedServices};
use crate::steps::TraceContext;

/// What a delivery needs that does not end with the handler's future.
pub(super) struct NotificationTask {
    pub notice: OwnedNotice,
    pub ready: ReadyDelivery,
    pub services: SharedServices,
    pub lease: Option<Lease>,
    pub claim: Claim<Arc<Claims>>,
}

pub(super) struct OwnedNotice {
    pub id: String,
    pub channel: String,
    pub order_id: Option<String>,
    pub body: String,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

impl OwnedNotice {
    pub fn notice(&self) -> Notice<'_> {
        let OwnedNotice { id, channel, order_id, body, traceparent, tracestate } = self;
        let trace = TraceContext { traceparent: traceparent.as_deref(), tracestate: tracestate.as_deref() };
        Notice { id, channel, order_id: order_id.as_deref(), body, trace }
    }

    /// To be recorded.
    pub fn notified(self, delivery: NotificationDelivery) -> LedgerEntry {
        let OwnedNotice { id, channel, order_id, .. } = self;
        let notified = NewNotification { id, order_id, channel, at: Timestamp::now(), delivery };
        LedgerEntry::Notification(Box::new(notified))
    }
}

impl NotificationTask {
    /// Makes the attempts, and records how they end.
    pub async fn run(self) -> Result<HandlerOutcome, HandlerError> {
        let NotificationTask { notice, ready, services, mut lease, claim: _claim } = self;
        let mut failed = Vec::new();
        match ready.deliver(notice.notice(), &services, lease.as_mut(), &mut failed).await {
            Ok(Delivered::Now { provider, recipient, unrecorded }) => {
                let delivery =
                    NotificationDelivery { provider: Some(provider), recipient, failed, not_delivered: None };
                services.ledger.record(notice.notified(delivery)).await?;
                drop(unrecorded);
                Ok(HandlerOutcome::Completed)
            }
            Ok(Delivered::Before) => {
                release(lease, failed).await?;
                Ok(HandlerOutcome::Duplicate)
            }
            Err(error) => {
                release(lease, failed).await?;
                Err(error)
            }
        }
    }
}

pub(super) async fn release(lease: Option<Lease>, failed: Vec<FailedDelivery>) -> Result<(), HandlerError> {
    match lease {
        Some(lease) => lease.release(failed).await,
        None => Ok(()),
    }
}
