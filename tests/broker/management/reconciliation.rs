//! A real broker's counts against those of a real pool: none differ while connections are killed under load, and what
//! others take is found.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orderd::amqp::Connector;
use orderd::metrics::{Counters, HandlerOutcome};
use orderd::pipeline::{Handler, HandlerInput, HandlerOutput};
use orderd::reconcile::FindingKind;
use orderd::reconcile::{BrokerView, LocalCounts};
use orderd::recovery::Failure;
use orderd::shutdown::Shutdown;
use tokio::sync::watch;

use super::{QUEUE, QUICK, config, poll, work};
use crate::support::{Node, eventually, with_deadline};

const RETRY: &str = "order_queue.retry.1s";

/// Works only while the gate is open.
struct Gated(watch::Receiver<bool>);

impl Handler for Gated {
    fn handle<'a>(&'a self, _work: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
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
    let link = Connector::new(vhost.broker());
    with_deadline("declared", link.declare(config.topology().declarations())).await.unwrap();
    let directory = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (gate, counters) = (watch::Sender::new(true), Arc::new(Counters::default()));
    let shutdown = Shutdown::new();
    let _pool = work(link, Arc::new(Gated(gate.subscribe())), directory.path(), &counters, &shutdown);
    let counted = Arc::clone(&counters);
    let own = move || LocalCounts {
        counts: BTreeMap::from([(QUEUE.to_owned(), counted.counts())]),
        publisher_connection: 1,
        ..LocalCounts::default()
    };
    let mut polling = poll(&config, own);

    let raw = || vhost.raw();
    for batch in 0..5 {
        tokio::task::block_in_place(|| raw().publish_many(QUEUE, (0..2000).map(|n: u32| n.to_be_bytes().to_vec())));
        eventually("under way", async || counters.counts().completed > 2000 * batch + 500).await;
        // Deliveries in hand are finished after their connection is gone: acked for orderd, and handed out again.
        gate.send_replace(false);
        tokio::task::block_in_place(|| vhost.close_connections());
        gate.send_replace(true);
    }
    eventually("all is consumed", async || {
        tokio::task::block_in_place(|| raw().depth(QUEUE)) == 0 && counters.counts().completed >= 10_000
    })
    .await;
    let quiet = jiff::Timestamp::now();
    // Two lags and a round later, all readings have been judged.
    let judged = quiet + 2 * QUICK.lag + 2 * QUICK.details_every;
    let count = |view: &BrokerView| view.queues[QUEUE].counted.acked;
    let view = polling.until("all is judged", |view| view.taken_at > Some(judged)).await;
    assert_eq!(view.findings, [], "nothing was lost, and nothing was taken");
    assert!(counters.counts().deliveries > 10_000, "no delivery was in hand when its connection was lost");
    // What a connection had not reported yet is lost with it, so that a fast machine leaves little of what went before.
    assert!(count(&view) > Some(0), "the broker counts: {:?}", count(&view));
    assert_eq!(view.queues[QUEUE].consumers, Some(1));

    // The workers hold ten that they do not finish; three of the others are taken, of which two are acked.
    gate.send_replace(false);
    let mut thief = raw();
    tokio::task::block_in_place(|| raw().publish_many(QUEUE, (0..20).map(|n| vec![n])));
    eventually("ten are held", async || {
        counters.counts().deliveries == counters.counts().completed + counters.counts().released + 10
    })
    .await;
    let tags: Vec<u64> = (0..3).map(|_| thief.get_unacked(QUEUE).unwrap().0).collect();
    thief.ack(tags[0]);
    thief.ack(tags[1]);
    // And what waits for a retry cannot return.
    let unbind = format!("/bindings/{}/e/orders.requeue/q/{QUEUE}/{QUEUE}", vhost.name);
    assert_eq!(node.management("DELETE", &unbind, "").0, 204);
    raw().publish_many(RETRY, (0..4).map(|n| vec![n]));

    let found = |view: &BrokerView| -> Vec<(String, FindingKind, u64)> {
        let messages = |count: Option<u64>| count.unwrap_or(0);
        view.findings.iter().map(|found| (found.queue.clone(), found.kind, messages(found.messages))).collect()
    };
    let expected = [
        (QUEUE.to_owned(), FindingKind::AckedByOthers, 2),
        (QUEUE.to_owned(), FindingKind::TakenByOthers, 3),
        (QUEUE.to_owned(), FindingKind::UnackedNotHeld, 1),
        (RETRY.to_owned(), FindingKind::RetriesOverdue, 4),
    ];
    let patience = 2 * super::PATIENCE;
    let all = tokio::time::timeout(patience, polling.view.wait_for(|view| found(view) == expected)).await.is_ok();
    let view = polling.view.borrow().clone();
    assert!(all, "{:#?}, {:#?}, {:?}", view.findings, view.queues[QUEUE], counters.counts());
    shutdown.begin();
}
