//! A daemon whose management API is slow, trickles, is gone or falls silent: it says so, and works as before.

use std::time::{Duration, Instant};

use orderd::reconcile::ApiState;
use orderd::reconcile::LocalCounts;

use super::proxy::{Proxy, Weather};
use super::{config, poll};
use crate::support::raw::properties::Properties;
use crate::support::shop::{Orderd, Shop, order, until};
use crate::support::{Node, soon};

const SILENT: &str = "the management API does not answer: the broker's side is not shown";

fn publish(shop: &Shop<'_>, name: &str) {
    let mut raw = shop.raw();
    for n in 0..10 {
        raw.send_to("orders", "order.normal.created", &Properties::persistent(), &order(&format!("{name}-{n}")));
    }
}

fn causes(orderd: &Orderd) -> Vec<String> {
    orderd.lines(SILENT).iter().map(|line| line["error"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_api_that_trickles_or_is_gone_is_told_once_each_and_costs_no_order_and_no_time_at_the_end() {
    let node = Node::shared();
    let proxy = Proxy::to(node.management_port);
    let shop = Shop::new(&node).set("management.url", &proxy.url).set("management.poll_every", "100ms");
    let mut orderd = shop.open();
    until("it answers", || orderd.says("the management API answers"));
    assert_eq!(causes(&orderd), [""; 0]);

    proxy.set(Weather::Trickling);
    publish(&shop, "trickling");
    shop.book().await_settled(10);
    until("it is given up", || causes(&orderd).len() == 1);

    proxy.set(Weather::Down);
    publish(&shop, "down");
    shop.book().await_settled(20);
    let before = proxy.connections();
    until("it has been tried again and again", || proxy.connections() >= before + 4);
    let causes_so_far = causes(&orderd);
    assert_eq!(causes_so_far.len(), 2, "one line for each cause: {causes_so_far:#?}");
    assert!(causes_so_far.iter().all(|cause| cause.contains("cannot reach")), "{causes_so_far:#?}");

    proxy.set(Weather::Clear);
    until("it answers again", || orderd.says("the management API answers again"));
    proxy.set(Weather::Silent);
    let before = proxy.connections();
    publish(&shop, "silent");
    shop.book().await_settled(30);
    // The one question that is on its way will never be answered, nor one on a new connection.
    until("it is given up again", || causes(&orderd).len() == 3);
    until("it is tried again", || proxy.connections() > before);
    let begun = Instant::now();
    assert_eq!(orderd.stop(), 0);
    assert!(begun.elapsed() < Duration::from_secs(8), "the end has waited for the API: {:?}", begun.elapsed());
    assert_eq!(orderd.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_slow_within_its_deadline_is_as_good_as_a_fast_one() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("order_queue", &[]);
    vhost.raw().publish_many("order_queue", (0..5).map(|n| vec![n]));
    let proxy = Proxy::to(node.management_port);
    proxy.set(Weather::Slow);
    let config = config(&vhost, &[&format!("management.url={}", proxy.url)]);
    let mut polling = poll(&config, LocalCounts::default);
    let ready = |view: &orderd::reconcile::BrokerView| view.queues.get("order_queue").and_then(|queue| queue.ready);
    polling.until("five are ready", |view| view.api == ApiState::Fresh && ready(view) == Some(5)).await;

    proxy.set(Weather::Down);
    let view = polling.until("it is stale", |view| matches!(view.api, ApiState::Stale { .. })).await;
    assert_eq!(ready(&view), Some(5), "what was known is kept");
    let taken_at = view.taken_at;
    proxy.set(Weather::Slow);
    let fresh = polling.until("it is fresh", |view| view.api == ApiState::Fresh && view.taken_at > taken_at);
    soon("fresh", fresh).await;
}
