//! A daemon whose management API is slow, trickles, is down or silent: it logs that, and processes orders as before.

use std::time::{Duration, Instant};

use orderd::reconcile::ApiState;
use orderd::reconcile::LocalCounts;

use super::http_proxy::{HttpProxy, NetworkCondition};
use super::{config, poll};
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};
use crate::support::{Node, with_deadline};

const SILENT: &str = "the management API does not answer: the broker state is stale";

fn publish(env: &TestEnv<'_>, name: &str) {
    let mut raw = env.raw();
    for n in 0..10 {
        raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order(&format!("{name}-{n}")));
    }
}

fn logged_causes(orderd: &OrderdProcess) -> Vec<String> {
    orderd.log_lines(SILENT).iter().map(|line| line["error"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_trickling_or_unreachable_api_is_logged_once_each_and_delays_neither_orders_nor_shutdown() {
    let node = Node::shared();
    let proxy = HttpProxy::to(node.management_port);
    let env = TestEnv::new(&node).set("management.url", &proxy.url).set("management.poll_every", "100ms");
    let mut orderd = env.start();
    wait_until("the API answers", || orderd.has_logged("the management API answers"));
    assert_eq!(logged_causes(&orderd), [""; 0]);

    proxy.set(NetworkCondition::Trickling);
    publish(&env, "trickling");
    env.ledger().await_settled(10);
    wait_until("the request is given up", || logged_causes(&orderd).len() == 1);

    proxy.set(NetworkCondition::Down);
    publish(&env, "down");
    env.ledger().await_settled(20);
    let before = proxy.connections();
    // Each failure makes the next pause longer, up to a minute.
    wait_until("the API is tried again repeatedly", || proxy.connections() >= before + 2);
    let causes = logged_causes(&orderd);
    assert_eq!(causes.len(), 2, "one line per cause: {causes:#?}");
    assert!(causes.iter().all(|cause| cause.contains("cannot reach")), "{causes:#?}");

    proxy.set(NetworkCondition::Normal);
    wait_until("the API answers again", || orderd.has_logged("the management API answers again"));
    proxy.set(NetworkCondition::Silent);
    let before = proxy.connections();
    publish(&env, "silent");
    env.ledger().await_settled(30);
    // Neither the request that is in flight nor one on a new connection is ever answered.
    wait_until("the request is given up again", || logged_causes(&orderd).len() == 3);
    wait_until("the API is tried again", || proxy.connections() > before);
    let start = Instant::now();
    assert_eq!(orderd.stop(), 0);
    assert!(start.elapsed() < Duration::from_secs(8), "shutdown waited for the API: {:?}", start.elapsed());
    assert_eq!(orderd.logged_errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_slow_within_its_deadline_is_used_like_a_fast_one() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("order_queue", &[]);
    vhost.raw().publish_many("order_queue", (0..5).map(|n| vec![n]));
    let proxy = HttpProxy::to(node.management_port);
    proxy.set(NetworkCondition::Slow);
    let config = config(&vhost, &[&format!("management.url={}", proxy.url)]);
    let mut poller = poll(&config, LocalCounts::default);
    let ready = |view: &orderd::reconcile::BrokerView| view.queues.get("order_queue").and_then(|queue| queue.ready);
    poller.until("five are ready", |view| view.api == ApiState::Fresh && ready(view) == Some(5)).await;

    proxy.set(NetworkCondition::Down);
    let view = poller.until("the view is stale", |view| matches!(view.api, ApiState::Stale { .. })).await;
    assert_eq!(ready(&view), Some(5), "the last known counts are kept");
    let taken_at = view.taken_at;
    proxy.set(NetworkCondition::Slow);
    let fresh = poller.until("the view is fresh", |view| view.api == ApiState::Fresh && view.taken_at > taken_at);
    with_deadline("fresh", fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_addresses_the_next_one_is_asked_and_nothing_is_counted_twice() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("order_queue", &[]);
    vhost.raw().publish_many("order_queue", (0..5).map(|n| vec![n]));
    let proxy = HttpProxy::to(node.management_port);
    let direct = format!("http://127.0.0.1:{}", node.management_port);
    let config = config(&vhost, &[&format!("management.url=http://127.0.0.1:1,{},{direct}", proxy.url)]);
    let mut poller = poll(&config, LocalCounts::default);
    let answers = |view: &orderd::reconcile::BrokerView, address: &str| {
        let ready = view.queues.get("order_queue").and_then(|queue| queue.ready);
        view.api == ApiState::Fresh && view.api_address.as_deref() == Some(address) && ready == Some(5)
    };
    poller.until("the second address answers", |view| answers(view, &proxy.url)).await;
    proxy.set(NetworkCondition::Down);
    poller.until("the third address answers", |view| answers(view, &direct)).await;
}
