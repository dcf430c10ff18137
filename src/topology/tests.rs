//! The plan, compared with the tables of the design.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::delay::Delay;

fn work(name: &str, bindings: &[&str], consumer: &str, delays: &[&str]) -> WorkQueue {
    WorkQueue {
        name: name.to_owned(),
        bindings: bindings.iter().map(|binding| (*binding).to_owned()).collect(),
        role: Role::Work {
            consumer: consumer.to_owned(),
            delays: delays.iter().map(|delay| delay.parse().unwrap()).collect(),
        },
    }
}

fn failed() -> WorkQueue {
    WorkQueue { name: "failed_order_queue".into(), bindings: vec!["order.failed.#".into()], role: Role::Failed }
}

/// One line per declaration.
fn lines(topology: &Topology) -> Vec<String> {
    let shown = |arguments: &std::collections::BTreeMap<&str, Argument>| {
        arguments.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>().replace('"', "")
    };
    topology
        .declarations()
        .iter()
        .map(|declaration| match declaration {
            Declaration::Exchange(x) => format!("exchange {} {}{}", x.name, x.kind.as_str(), shown(&x.arguments)),
            Declaration::Queue(queue) => format!("queue {}{}", queue.name, shown(&queue.arguments)),
            Declaration::Binding(b) => format!("bind {} to {} by {:?}", b.queue, b.exchange, b.routing_key),
        })
        .collect()
}

#[test]
fn the_plan_matches_the_design_and_declares_targets_first() {
    let queues = [work("order_queue", &["order.normal.*", "x"], "order", &["1m", "10s", "60s"]), failed()];
    let expected = [
        "exchange orders.unrouted fanout",
        "queue unrouted_queue x-delivery-limit=2147483647 x-overflow=reject-publish x-queue-type=quorum",
        "bind unrouted_queue to orders.unrouted by \"\"",
        "exchange orders.dead_letter fanout",
        "queue dead_letter_queue x-delivery-limit=2147483647 x-overflow=reject-publish x-queue-type=quorum",
        "bind dead_letter_queue to orders.dead_letter by \"\"",
        "exchange orders.requeue direct",
        "exchange orders.retry direct",
        "exchange orders topic alternate-exchange=orders.unrouted",
        "queue failed_order_queue x-dead-letter-exchange=orders.dead_letter x-dead-letter-strategy=at-least-once \
         x-delivery-limit=20 x-overflow=reject-publish x-queue-type=quorum",
        "bind failed_order_queue to orders.requeue by \"failed_order_queue\"",
        "queue order_queue x-dead-letter-exchange=orders x-dead-letter-routing-key=order.failed.order \
         x-dead-letter-strategy=at-least-once x-delivery-limit=20 x-overflow=reject-publish x-queue-type=quorum",
        "bind order_queue to orders.requeue by \"order_queue\"",
        "queue order_queue.retry.10s x-dead-letter-exchange=orders.requeue x-dead-letter-routing-key=order_queue \
         x-dead-letter-strategy=at-least-once x-message-ttl=10000 x-overflow=reject-publish x-queue-type=quorum",
        "bind order_queue.retry.10s to orders.retry by \"order_queue.retry.10s\"",
        "queue order_queue.retry.1m x-dead-letter-exchange=orders.requeue x-dead-letter-routing-key=order_queue \
         x-dead-letter-strategy=at-least-once x-message-ttl=60000 x-overflow=reject-publish x-queue-type=quorum",
        "bind order_queue.retry.1m to orders.retry by \"order_queue.retry.1m\"",
        "bind failed_order_queue to orders by \"order.failed.#\"",
        "bind order_queue to orders by \"order.normal.*\"",
        "bind order_queue to orders by \"x\"",
    ];
    assert_eq!(lines(&Topology::new(ExchangeNames::new("orders"), &queues)), expected);
}

#[test]
fn the_exchanges_are_named_after_the_orders_exchange() {
    let topology = Topology::new(ExchangeNames::new("shop"), &[failed()]);
    let names: Vec<&str> = topology.exchanges().map(|exchange| exchange.name.as_str()).collect();
    assert_eq!(names, ["shop.unrouted", "shop.dead_letter", "shop.requeue", "shop.retry", "shop"]);
}

#[test]
fn a_consumer_without_delays_has_no_retry_queues() {
    let topology = Topology::new(ExchangeNames::new("orders"), &[work("q", &["a"], "c", &[]), failed()]);
    assert!(!topology.queues().any(|queue| queue.name.contains(".retry.")));
}

fn some_queues() -> impl Strategy<Value = Vec<WorkQueue>> {
    let delays = proptest::collection::vec(1u64..100_000, 0..5);
    let bindings = proptest::collection::vec("[a-z]{1,3}(\\.[a-z*]){0,2}", 1..4);
    proptest::collection::vec((bindings, delays), 0..6).prop_shuffle().prop_map(|queues| {
        let mut queues: Vec<WorkQueue> = queues
            .into_iter()
            .enumerate()
            .map(|(index, (bindings, delays))| WorkQueue {
                name: format!("queue_{index}"),
                bindings,
                role: Role::Work {
                    consumer: format!("consumer_{index}"),
                    delays: delays
                        .into_iter()
                        .filter_map(|millis| Delay::new(std::time::Duration::from_millis(millis)))
                        .collect(),
                },
            })
            .collect();
        queues.insert(queues.len() / 2, failed());
        queues
    })
}

proptest! {
    /// When a queue with a dead-letter exchange, or an exchange with an alternate exchange, is declared, that exchange exists
    /// and has a queue bound to it. Only the orders exchange gets its bindings last, the failed-order queue's first: before
    /// that, no message enters a new queue.
    #[test]
    fn what_a_declaration_refers_to_is_declared_before_it(queues in some_queues()) {
        let topology = Topology::new(ExchangeNames::new("orders"), &queues);
        let (mut exchanges, mut declared) = (BTreeSet::new(), BTreeSet::new());
        let mut bindings: Vec<&Binding> = Vec::new();
        let routes_on = |bindings: &[&Binding], exchange: &str, key: &str| {
            let pattern = |binding: &Binding| binding.routing_key.is_empty() || pattern::matches(&binding.routing_key, key);
            bindings.iter().any(|binding| binding.exchange == exchange && pattern(binding))
        };
        let text = |arguments: &std::collections::BTreeMap<&str, Argument>, name: &str| match arguments.get(name) {
            Some(Argument::Text(text)) => Some(text.clone()),
            Some(Argument::Number(_)) | None => None,
        };
        for declaration in topology.declarations() {
            match declaration {
                Declaration::Exchange(exchange) => {
                    if let Some(alternate) = text(&exchange.arguments, "alternate-exchange") {
                        prop_assert!(routes_on(&bindings, &alternate, ""), "{exchange:?}");
                    }
                    prop_assert!(exchanges.insert(exchange.name.clone()), "twice: {exchange:?}");
                }
                Declaration::Queue(queue) => {
                    if let Some(target) = text(&queue.arguments, "x-dead-letter-exchange") {
                        let key = text(&queue.arguments, "x-dead-letter-routing-key").unwrap_or_default();
                        prop_assert!(exchanges.contains(&target), "{queue:?}");
                        prop_assert!(target == "orders" || routes_on(&bindings, &target, &key), "{queue:?}");
                    }
                    prop_assert!(declared.insert(queue.name.clone()), "twice: {queue:?}");
                }
                Declaration::Binding(binding) => {
                    prop_assert!(exchanges.contains(&binding.exchange) && declared.contains(&binding.queue), "{binding:?}");
                    let first = binding.exchange == "orders" && !bindings.iter().any(|earlier| earlier.exchange == "orders");
                    prop_assert!(!first || binding.queue == "failed_order_queue" && declared.len() == topology.queues().count());
                    bindings.push(binding);
                }
            }
        }
    }
}
