//! Reconciliation in one of two instances: messages that the other instance consumes cause no findings.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orderd::amqp::Connector;
use orderd::metrics::{Counters, HandlerOutcome};
use orderd::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput};
use orderd::reconcile::LocalCounts;
use orderd::shutdown::Shutdown;

use super::{QUEUE, SHORT_LIMITS, config, poll, start_pool};
use crate::support::test_env::{TestEnv, order, wait_until};
use crate::support::{Node, with_deadline};

/// Completes every delivery.
struct CompletingHandler;

impl Handler for CompletingHandler {
    fn handle<'a>(&'a self, _input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(async { Ok(HandlerOutput::finished(HandlerOutcome::Completed)) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_that_starts_stops_and_is_killed_under_load_causes_no_finding() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let config = config(&env.vhost, &[]);
    let connector = Connector::new(env.vhost.broker());
    with_deadline("declared", connector.declare(config.topology().declarations())).await.unwrap();
    let directory = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (counters, shutdown) = (Arc::new(Counters::default()), Shutdown::new());
    let _pool = start_pool(connector, Arc::new(CompletingHandler), directory.path(), &counters, &shutdown);
    let counted = Arc::clone(&counters);
    let own = move || LocalCounts {
        counts: BTreeMap::from([(QUEUE.to_owned(), counted.counts())]),
        publisher_connection: 1,
        ..LocalCounts::default()
    };
    let mut poller = poll(&config, own);
    let await_consumers = |count: u64| {
        let mut view = poller.view.clone();
        async move {
            let has_consumers = |view: &Arc<orderd::reconcile::BrokerView>| {
                view.queues.get(QUEUE).is_some_and(|queue| queue.consumers == Some(count))
            };
            tokio::time::timeout(super::PATIENCE, view.wait_for(has_consumers)).await.unwrap().unwrap();
        }
    };
    let publish_and_drain = |name: &str| {
        let orders = (0..500).map(|n| ("order.normal.created".to_owned(), order(&format!("{name}-{n}"))));
        tokio::task::block_in_place(|| {
            env.raw().publish_all("orders", orders);
            wait_until("the queue is empty", || env.raw().depth(QUEUE) == 0);
        });
    };

    await_consumers(1).await;
    publish_and_drain("alone");
    for round in ["stopped", "killed"] {
        let mut other = tokio::task::block_in_place(|| env.start());
        await_consumers(2).await;
        publish_and_drain(round);
        tokio::task::block_in_place(|| {
            wait_until("the other instance processes orders", || other.has_logged("Processing Order"))
        });
        if round == "stopped" {
            tokio::task::block_in_place(|| assert_eq!(other.stop(), 0));
        } else {
            other.kill();
        }
        publish_and_drain(&format!("after-{round}"));
    }
    // After two lags and a polling round, all readings have been compared.
    let compared_by = jiff::Timestamp::now() + 2 * SHORT_LIMITS.lag + 2 * SHORT_LIMITS.details_every;
    let view = poller.until("all readings are compared", |view| view.taken_at > Some(compared_by)).await;
    // The other queues have no consumer now, which is a finding, and a correct one.
    let found: Vec<_> = view.findings.iter().filter(|finding| finding.queue.as_deref() == Some(QUEUE)).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert!(counters.counts().completed > 1_000, "the first instance processed too little: {:?}", counters.counts());
    shutdown.begin();
}
