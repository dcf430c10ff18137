//! The audit against answers of RabbitMQ 3.10.8, 4.0.5 and 4.3.6.

use serde_json::json;

use super::*;
use crate::topology::{ExchangeNames, Role, WorkQueue};

fn topology() -> Topology {
    let queues = [
        WorkQueue {
            name: "order_queue".into(),
            bindings: vec!["order.normal.*".into()],
            role: Role::Work { consumer: "order".into(), delays: vec!["10s".parse().unwrap()] },
        },
        WorkQueue { name: "failed_order_queue".into(), bindings: vec!["order.failed.#".into()], role: Role::Failed },
    ];
    Topology::new(ExchangeNames::new("orders"), &queues)
}

/// A broker whose objects match the topology exactly.
fn matching_broker() -> ObservedTopology {
    let arguments = |arguments: &BTreeMap<&'static str, Argument>| -> Value {
        arguments.iter().map(|(name, value)| ((*name).to_owned(), super::json(value))).collect::<Map<_, _>>().into()
    };
    let mut observed = ObservedTopology::default();
    for declaration in topology().declarations() {
        match declaration {
            Declaration::Exchange(exchange) => {
                let answer = json!({"arguments": arguments(&exchange.arguments), "auto_delete": false, "durable": true,
                    "internal": false, "name": exchange.name, "type": exchange.kind.as_str(),
                    "user_who_performed_action": "guest", "vhost": "/"});
                observed.exchanges.insert(exchange.name.clone(), serde_json::from_value(answer).unwrap());
            }
            Declaration::Queue(queue) => {
                let answer = json!({"name": queue.name, "type": "quorum", "durable": true, "auto_delete": false,
                    "exclusive": false, "arguments": arguments(&queue.arguments), "policy": null,
                    "operator_policy": null, "effective_policy_definition": {}, "messages": 0, "vhost": "/",
                    "state": "running"});
                observed.queues.insert(queue.name.clone(), serde_json::from_value(answer).unwrap());
            }
            Declaration::Binding(binding) => observed.bindings.push(binding.clone()),
        }
    }
    observed
}

fn with_policy(queue: &str, definition: Value) -> Vec<String> {
    let mut observed = matching_broker();
    let found = observed.queues.get_mut(queue).unwrap();
    found.policy = Some("mine".to_owned());
    found.operator_policy = Some("ops".to_owned());
    found.effective_policy = Some(definition.as_object().unwrap().clone());
    let found = audit(&topology(), &observed).dangerous_policies;
    assert!(found.len() <= 1, "{found:?}");
    let settings = found.iter().flat_map(|policy| &policy.settings);
    settings.map(|DangerousSetting { key, queues, .. }| format!("{key} of {}", queues.join(" "))).collect()
}

#[test]
fn a_broker_that_matches_the_topology_passes() {
    let audit = audit(&topology(), &matching_broker());
    assert_eq!(audit, Audit::default());
    assert!(!audit.forbids_start());
}

#[test]
fn an_empty_broker_misses_every_object_and_is_accepted() {
    let audit = audit(&topology(), &ObservedTopology::default());
    assert_eq!(audit.missing.len(), topology().declarations().len());
    assert!(audit.missing.contains(&Object::Queue("order_queue.retry.10s".into())));
    assert!(!audit.forbids_start());
}

#[test]
fn each_mismatch_names_the_expected_and_the_actual_value() {
    let mut observed = matching_broker();
    let orders = observed.exchanges.get_mut("orders").unwrap();
    orders.kind = "direct".to_owned();
    orders.arguments.clear();
    let queue = observed.queues.get_mut("order_queue").unwrap();
    queue.arguments["x-delivery-limit"] = json!(5);
    queue.arguments.insert("x-max-length".to_owned(), json!(10));
    queue.durable = false;
    let audit = audit(&topology(), &observed);
    let mismatches: Vec<String> = audit.mismatches.iter().map(ToString::to_string).collect();
    assert_eq!(
        mismatches,
        [
            "exchange \"orders\": argument \"type\": expected \"topic\", is \"direct\"",
            "exchange \"orders\": argument \"alternate-exchange\": expected \"orders.unrouted\", is missing",
            "queue \"order_queue\": argument \"durable\": expected true, is false",
            "queue \"order_queue\": argument \"x-delivery-limit\": expected 20, is 5",
            "queue \"order_queue\": argument \"x-max-length\": expected none, is 10",
        ]
    );
    assert!(audit.forbids_start());
}

#[test]
fn a_binding_of_an_earlier_configuration_is_reported_and_those_of_other_programs_are_not() {
    let mut observed = matching_broker();
    let binding = |exchange: &str, key: &str| Binding {
        exchange: exchange.to_owned(),
        queue: "order_queue".to_owned(),
        routing_key: key.to_owned(),
    };
    observed.bindings.push(binding("orders", "old.*"));
    observed.bindings.push(binding("amq.topic", "#"));
    let extra: Vec<String> = audit(&topology(), &observed).extra_bindings.iter().map(ToString::to_string).collect();
    assert_eq!(extra, ["binding of queue \"order_queue\" to exchange \"orders\" by \"old.*\""]);
}

#[test]
fn policies_that_delete_or_divert_are_refused() {
    let policies = with_policy("order_queue", json!({"overflow": "drop-head"}));
    assert_eq!(policies, ["overflow of order_queue"]);
    for (queue, definition, dangers) in [
        ("order_queue", json!({"overflow": "reject-publish"}), 0),
        ("order_queue", json!({"message-ttl": 1000, "expires": 1, "max-length": 5, "max-length-bytes": 5}), 4),
        ("order_queue", json!({"delivery-limit": 5}), 1),
        ("order_queue", json!({"delivery-limit": -1}), 1),
        ("order_queue", json!({"delivery-limit": 50}), 0),
        ("order_queue", json!({"dead-letter-exchange": "x", "dead-letter-routing-key": "y"}), 0),
        ("order_queue", json!({"consumer-timeout": 3_600_000, "federation-upstream-set": "all"}), 0),
        ("order_queue.retry.10s", json!({"message-ttl": 9_999}), 1),
        ("order_queue.retry.10s", json!({"message-ttl": 60_000}), 0),
        ("order_queue.retry.10s", json!({"delivery-limit": 5}), 0),
        ("dead_letter_queue", json!({"delivery-limit": 50}), 1),
        ("dead_letter_queue", json!({"message-ttl": 604_800_000}), 1),
        ("unrouted_queue", json!({"dead-letter-exchange": "x"}), 1),
    ] {
        assert_eq!(with_policy(queue, definition.clone()).len(), dangers, "{queue} {definition}");
    }
}

#[test]
fn a_policy_for_all_queues_is_one_entry_that_lists_them() {
    let mut observed = matching_broker();
    for queue in observed.queues.values_mut() {
        queue.policy = Some("wide".to_owned());
        queue.effective_policy = json!({"max-length": 5, "overflow": "drop-head"}).as_object().cloned();
    }
    let found = audit(&topology(), &observed).dangerous_policies;
    let [policy] = &found[..] else { panic!("{found:?}") };
    let topology = topology();
    let queues: BTreeSet<&str> = topology.queues().map(|queue| queue.name.as_str()).collect();
    assert_eq!(policy.settings.iter().map(|setting| setting.queues.len()).collect::<Vec<_>>(), [queues.len(); 2]);
    assert_eq!(policy.queues(), queues);
    let text = policy.to_string();
    assert!(text.contains("\"overflow\" to \"drop-head\"") && text.contains(" more)"), "{text}");
}

#[test]
fn a_queue_whose_policies_are_not_reported_yet_is_unknown_not_safe() {
    let mut observed = matching_broker();
    // Within ten seconds of the declaration, the answer lacks these keys.
    let fresh = json!({"name": "order_queue", "durable": true, "auto_delete": false, "exclusive": false,
        "arguments": observed.queues["order_queue"].arguments, "vhost": "/", "type": "quorum"});
    observed.queues.insert("order_queue".to_owned(), serde_json::from_value(fresh).unwrap());
    assert_eq!(audit(&topology(), &observed).unknown_policies, ["order_queue"]);
}

#[test]
fn an_answer_without_statistics_is_parsed() {
    // GET /api/queues/%2F/order_queue?disable_stats=true&enable_queue_totals=true, RabbitMQ 4.3.6.
    let answer = json!({"arguments": {"x-queue-type": "quorum"}, "auto_delete": false, "delivery_limit": 20,
        "durable": true, "effective_policy_definition": {"overflow": "drop-head"}, "exclusive": null,
        "leader": "r@localhost", "messages": 0, "name": "order_queue", "operator_policy": null, "policy": "mine",
        "state": "running", "type": "quorum", "vhost": "/"});
    let queue: crate::management::ObservedQueue = serde_json::from_value(answer).unwrap();
    assert_eq!(queue.effective_policy.unwrap()["overflow"], "drop-head");
    assert_eq!((queue.exclusive, queue.policy.as_deref()), (None, Some("mine")));
}

#[test]
fn an_empty_list_is_an_empty_table() {
    let answer = json!({"durable": true, "auto_delete": false, "arguments": [], "effective_policy_definition": []});
    let queue: crate::management::ObservedQueue = serde_json::from_value(answer).unwrap();
    assert_eq!((queue.arguments.len(), queue.effective_policy), (0, Some(Map::new())));
}
