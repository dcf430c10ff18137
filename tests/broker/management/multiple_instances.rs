//! A real broker's counts against those of one of two instances: what the other takes is never held against anybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orderd::amqp::Connector;
use orderd::metrics::{Counters, HandlerOutcome};
use orderd::pipeline::{Handler, HandlerInput, HandlerOutput};
use orderd::reconcile::LocalCounts;
use orderd::recovery::Failure;
use orderd::shutdown::Shutdown;

use super::{QUEUE, QUICK, config, poll, work};
use crate::support::test_env::{TestEnv, order, wait_until};
use crate::support::{Node, with_deadline};

struct Done;

impl Handler for Done {
    fn handle<'a>(&'a self, _work: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
        Box::pin(async { Ok(HandlerOutput::finished(HandlerOutcome::Completed)) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_that_starts_stops_and_is_killed_under_load_causes_no_finding() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let config = config(&env.vhost, &[]);
    let link = Connector::new(env.vhost.broker());
    with_deadline("declared", link.declare(config.topology().declarations())).await.unwrap();
    let directory = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (counters, shutdown) = (Arc::new(Counters::default()), Shutdown::new());
    let _pool = work(link, Arc::new(Done), directory.path(), &counters, &shutdown);
    let counted = Arc::clone(&counters);
    let own = move || LocalCounts {
        counts: BTreeMap::from([(QUEUE.to_owned(), counted.counts())]),
        publisher_connection: 1,
        ..LocalCounts::default()
    };
    let mut polling = poll(&config, own);
    let consumers = |count: u64| {
        let mut view = polling.view.clone();
        async move {
            let seen = |view: &Arc<orderd::reconcile::BrokerView>| {
                view.queues.get(QUEUE).is_some_and(|queue| queue.consumers == Some(count))
            };
            tokio::time::timeout(super::PATIENCE, view.wait_for(seen)).await.unwrap().unwrap();
        }
    };
    let work = |name: &str| {
        let orders = (0..500).map(|n| ("order.normal.created".to_owned(), order(&format!("{name}-{n}"))));
        tokio::task::block_in_place(|| {
            env.raw().publish_all("orders", orders);
            wait_until("all is taken", || env.raw().depth(QUEUE) == 0);
        });
    };

    consumers(1).await;
    work("alone");
    for round in ["stopped", "killed"] {
        let mut other = tokio::task::block_in_place(|| env.start());
        consumers(2).await;
        work(round);
        tokio::task::block_in_place(|| wait_until("the other takes part", || other.has_logged("Processing Order")));
        if round == "stopped" {
            tokio::task::block_in_place(|| assert_eq!(other.stop(), 0));
        } else {
            other.kill();
        }
        work(&format!("after-{round}"));
    }
    // Two lags and a round later, all readings have been judged.
    let judged = jiff::Timestamp::now() + 2 * QUICK.lag + 2 * QUICK.details_every;
    let view = polling.until("all is judged", |view| view.taken_at > Some(judged)).await;
    // The other queues have no consumer now, which is found, and rightly.
    let found: Vec<_> = view.findings.iter().filter(|finding| finding.queue == QUEUE).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert!(counters.counts().completed > 1_000, "the first took hardly any part: {:?}", counters.counts());
    shutdown.begin();
}
