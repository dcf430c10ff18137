//! Reconciliation of a real broker's counts with those of a real pool: connections that are closed under load cause no
//! finding, and messages that another consumer takes do.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orderd::amqp::Connector;
use orderd::metrics::{Counters, HandlerOutcome};
use orderd::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput};
use orderd::reconcile::FindingKind;
use orderd::reconcile::{BrokerView, LocalCounts};
use orderd::shutdown::Shutdown;
use tokio::sync::watch;

use super::{QUEUE, SHORT_LIMITS, config, poll, start_pool};
use crate::support::{Node, eventually, with_deadline};

const RETRY: &str = "order_queue.retry.1s";

/// Completes deliveries only while the gate is open.
struct GatedHandler(watch::Receiver<bool>);

impl Handler for GatedHandler {
    fn handle<'a>(&'a self, _input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(async {
            self.0.clone().wait_for(|open| *open).await.unwrap();
            Ok(HandlerOutput::finished(HandlerOutcome::Completed))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_agree_through_lost_connections_and_messages_taken_by_others_are_found() {
    let node = Node::shared();
    let vhost = node.vhost();
    let config = config(&vhost, &[]);
    let connector = Connector::new(vhost.broker());
    with_deadline("declared", connector.declare(config.topology().declarations())).await.unwrap();
    let directory = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (gate, counters) = (watch::Sender::new(true), Arc::new(Counters::default()));
    let shutdown = Shutdown::new();
    let _pool = start_pool(connector, Arc::new(GatedHandler(gate.subscribe())), directory.path(), &counters, &shutdown);
    let counted = Arc::clone(&counters);
    let own = move || LocalCounts {
        counts: BTreeMap::from([(QUEUE.to_owned(), counted.counts())]),
        publisher_connection: 1,
        ..LocalCounts::default()
    };
    let mut poller = poll(&config, own);

    let raw = || vhost.raw();
    for batch in 0..5 {
        tokio::task::block_in_place(|| raw().publish_many(QUEUE, (0..2000).map(|n: u32| n.to_be_bytes().to_vec())));
        eventually("part of the batch is completed", async || counters.counts().completed > 2000 * batch + 500).await;
        // Deliveries in flight are completed after their connection is lost: orderd counts an ack, the broker redelivers.
        gate.send_replace(false);
        tokio::task::block_in_place(|| vhost.close_connections());
        gate.send_replace(true);
    }
    eventually("all is consumed", async || {
        tokio::task::block_in_place(|| raw().depth(QUEUE)) == 0 && counters.counts().completed >= 10_000
    })
    .await;
    // After two lags and a polling round, all readings have been compared.
    let compared_by = jiff::Timestamp::now() + 2 * SHORT_LIMITS.lag + 2 * SHORT_LIMITS.details_every;
    let acked = |view: &BrokerView| view.queues[QUEUE].counted.acked;
    let view = poller.until("all readings are compared", |view| view.taken_at > Some(compared_by)).await;
    assert_eq!(view.findings, [], "nothing was lost, and no other consumer took anything");
    assert!(counters.counts().deliveries > 10_000, "no delivery was in flight when its connection was lost");
    // Statistics that a connection has not reported yet are lost with it, so the broker may count only a few.
    assert!(acked(&view) > Some(0), "acked by the broker's count: {:?}", acked(&view));
    assert_eq!(view.queues[QUEUE].consumers, Some(1));

    // The workers hold ten deliveries that they cannot complete. Another consumer takes three messages and acks two.
    gate.send_replace(false);
    let mut other_consumer = raw();
    tokio::task::block_in_place(|| raw().publish_many(QUEUE, (0..20).map(|n| vec![n])));
    eventually("ten deliveries are in flight", async || {
        counters.counts().deliveries == counters.counts().completed + counters.counts().released + 10
    })
    .await;
    let tags: Vec<u64> = (0..3).map(|_| other_consumer.get_unacked(QUEUE).unwrap().0).collect();
    other_consumer.ack(tags[0]);
    other_consumer.ack(tags[1]);
    // Without the binding, messages that wait for a retry cannot return to the queue.
    let unbind = format!("/bindings/{}/e/orders.requeue/q/{QUEUE}/{QUEUE}", vhost.name);
    assert_eq!(node.management("DELETE", &unbind, "").0, 204);
    raw().publish_many(RETRY, (0..4).map(|n| vec![n]));

    let found = |view: &BrokerView| -> Vec<(String, FindingKind, u64)> {
        let messages = |count: Option<u64>| count.unwrap_or(0);
        view.findings.iter().map(|found| (found.queue.clone().unwrap(), found.kind, messages(found.messages))).collect()
    };
    let expected = [
        (QUEUE.to_owned(), FindingKind::BindingMissing, 0),
        (QUEUE.to_owned(), FindingKind::AckedByOthers, 2),
        (QUEUE.to_owned(), FindingKind::TakenByOthers, 3),
        (QUEUE.to_owned(), FindingKind::UnackedNotHeld, 1),
        (RETRY.to_owned(), FindingKind::RetriesOverdue, 4),
    ];
    let patience = 2 * super::PATIENCE;
    let matches = tokio::time::timeout(patience, poller.view.wait_for(|view| found(view) == expected)).await.is_ok();
    let view = poller.view.borrow().clone();
    assert!(matches, "{:#?}, {:#?}, {:?}", view.findings, view.queues[QUEUE], counters.counts());
    shutdown.begin();
}
