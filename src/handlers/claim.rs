//! Claims on message identities: of two copies of a message that arrive at the same time, the second waits for the first.
//!
//! All handlers of a process share the claims, so that they also hold between the former and the new handler of a consumer
//! during a reload. A claim ends when it is dropped. The caller decides which messages are copies of each other.

use std::collections::HashSet;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::config::MessageKind;

/// The identities that are being processed.
#[derive(Debug, Default)]
pub struct Claims {
    /// With the kind of message: an event and a notification may have the same identity.
    identities: Mutex<HashSet<(MessageKind, Arc<str>)>>,
    released: Notify,
}

/// The exclusive right to process an identity; released when dropped.
#[derive(Debug)]
pub(super) struct Claim<C: Deref<Target = Claims>> {
    claims: C,
    claimed: (MessageKind, Arc<str>),
}

impl Claims {
    /// Waits until the identity is not claimed, and claims it. Cancel-safe: nothing is claimed until it returns.
    pub(super) async fn claim(&self, kind: MessageKind, identity: &str) -> Claim<&Claims> {
        Claim { claims: self, claimed: self.claimed(kind, identity).await }
    }

    /// As [`Claims::claim`], for a task of its own.
    pub(super) async fn claim_owned(self: &Arc<Self>, kind: MessageKind, identity: &str) -> Claim<Arc<Claims>> {
        let claimed = self.claimed(kind, identity).await;
        Claim { claims: Arc::clone(self), claimed }
    }

    async fn claimed(&self, kind: MessageKind, identity: &str) -> (MessageKind, Arc<str>) {
        let claimed = (kind, Arc::from(identity));
        while !self.insert(&claimed) {
            let released = self.released.notified();
            tokio::pin!(released);
            // From here on, releases are noticed. One may have happened before, so try again.
            released.as_mut().enable();
            if self.insert(&claimed) {
                break;
            }
            released.await;
        }
        claimed
    }

    fn insert(&self, claimed: &(MessageKind, Arc<str>)) -> bool {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(claimed.clone())
    }
}

impl<C: Deref<Target = Claims>> Drop for Claim<C> {
    fn drop(&mut self) {
        self.claims.identities.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.claimed);
        self.claims.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt;
    use tokio::sync::watch;

    use super::super::analytics::AnalyticsFactory;
    use super::super::event_log::tests::files_in;
    use super::super::notification::{NotificationFactory, NotificationSettings};
    use super::super::{EventLog, HandlerConsumer, HandlerDeps, HandlerFactory, LogChannel};
    use super::*;
    use crate::ledger::memory::MemoryLedger;
    use crate::message::{Delivery, DeliveryId, ExchangeNames, Message, Properties, Provenance, Sender, TrustedUsers};
    use crate::metrics::HandlerOutcome;
    use crate::pipeline::{HandlerInput, LedgerAccess, StepAccess};

    #[tokio::test]
    async fn the_second_copy_waits_for_the_first_and_others_do_not() {
        use MessageKind::{Analytics, Notification};
        let claims = Claims::default();
        let first = claims.claim(Analytics, "a").await;
        let second = claims.claim(Analytics, "a");
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        assert!(claims.claim(Analytics, "b").now_or_never().is_some());
        assert!(claims.claim(Notification, "a").now_or_never().is_some());
        assert!(second.as_mut().now_or_never().is_none(), "the claim of another identity was released");
        drop(first);
        assert!(second.now_or_never().is_some());
        assert!(claims.claim(Analytics, "a").now_or_never().is_some());
    }

    fn copy(queue: &str) -> Delivery {
        let properties = Properties { message_id: Some("copied".to_owned()), ..Properties::default() };
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders".to_owned(),
            routing_key: format!("order.{queue}.page_view"),
            redelivered: false,
            message: Message { properties, body: b"{}".as_slice().into(), ..Message::default() },
        }
    }

    /// As a reload does, both handlers are built from the same parts. Each copy looks the message up before it is written.
    #[tokio::test]
    async fn of_two_copies_in_the_former_and_in_the_new_handler_during_a_reload_only_one_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let event_log = EventLog::start(files_in(directory.path())).await.unwrap().0;
        let deps = HandlerDeps {
            format: crate::formats::Format::Own,
            names: Arc::new(ExchangeNames::new("orders")),
            users: Arc::new(TrustedUsers::known("orderd")),
            max_body: 1 << 20,
            notification_log: Arc::new(LogChannel { log: event_log.clone() }),
            notify: crate::config::HandlerSettings::none(),
            default_channel: "email".into(),
            event_log,
            claims: Arc::default(),
            deliveries: crate::notify::Deliveries::default(),
            steps: crate::steps::StepResources::default(),
            origin_consumers: watch::channel(BTreeMap::new()).1,
        };
        let analytics = || AnalyticsFactory::build(HandlerConsumer { name: "analytics", workers: 1 }, &(), &deps);
        let notification = || {
            NotificationFactory::build(
                HandlerConsumer { name: "notification", workers: 1 },
                &NotificationSettings::default(),
                &deps,
            )
        };
        let memory = MemoryLedger::default();
        let provenance = &Provenance { sender: Sender::Own, is_copy: false, generated: None, cloud_event: None };
        for (name, [former, new]) in
            [("analytics", [analytics(), analytics()]), ("notification", [notification(), notification()])]
        {
            let (delivery, consumer) = (copy(name), name.into());
            let ledger = LedgerAccess::without_deadline(&memory);
            let input = HandlerInput {
                delivery: &delivery,
                provenance,
                consumer: &consumer,
                bindings: &[],
                retries: 0,
                ledger,
                steps: StepAccess::default(),
            };
            let (first, second) = tokio::join!(former.handle(input), new.handle(input));
            let outcomes = [first.unwrap().outcome, second.unwrap().outcome];
            assert_eq!(outcomes, [HandlerOutcome::Completed, HandlerOutcome::Duplicate], "{name}");
        }
        let text = std::fs::read_to_string(directory.path().join("events.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 2, "one of each kind: {text}");
    }
}
