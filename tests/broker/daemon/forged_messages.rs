//! What a producer can pass off as orderd's own, if its topic permissions confine it to orders. And messages that say too little
//! to be distinguished.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::Node;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::{Field, Properties};
use crate::support::test_env::{TestEnv, order, wait_until};

const NORMAL: &str = "order.normal.created";

/// A broker user that may publish orders and nothing else. Deleted with the test, unless it fails.
fn confined_user(env: &TestEnv<'_>) -> String {
    let (node, vhost) = (env.vhost.node, &env.vhost.name);
    let user = format!("shop-{vhost}");
    let topic = r#"{"exchange":"orders","write":"^order\\.(normal|priority)\\.","read":"^$"}"#;
    for (path, body) in [
        (format!("/users/{user}"), format!(r#"{{"password":"{user}","tags":""}}"#)),
        (format!("/permissions/{vhost}/{user}"), r#"{"configure":"^$","write":"^orders$","read":"^$"}"#.to_owned()),
        (format!("/topic-permissions/{vhost}/{user}"), topic.to_owned()),
    ] {
        let (status, answer) = node.management("PUT", &path, &body);
        assert!([201, 204].contains(&status), "{path}: {status} {answer}");
    }
    user
}

/// Properties with further routing keys, in the header that routes without being checked on RabbitMQ 3.10.
fn routed_to(key: &str, header: &str) -> Properties {
    let key = [b"S", u32::try_from(key.len()).unwrap().to_be_bytes().as_slice(), key.as_bytes()].concat();
    let list = [u32::try_from(key.len()).unwrap().to_be_bytes().as_slice(), &key].concat();
    Properties::persistent().header(header, Field::Other(b'A', list))
}

#[test]
fn a_producer_of_orders_cannot_forge_a_sale_a_notification_or_a_failure() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let user = confined_user(&env);
    // Only RabbitMQ 3.10 is known to route by these headers without checking their keys.
    if node.version() < (4, 0) {
        let mut forger = RawClient::connect_as(&user, node.amqp_port, &env.vhost.name);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let sale = format!(
            r#"{{"event":"processed","order_id":"ord-1","product":"Yacht","quantity":1,"price":"1","total":"999999999.99",
                "currency":"EUR","at":"2026-11-22T08:00:00Z","n":{at}}}"#
        );
        for header in ["CC", "BCC"] {
            let taken = routed_to("order.analytics.processed", header).text("message_id", "ord-1/analytics/processed");
            forger.publish_to("orders", NORMAL, &taken.text("user_id", &user), sale.as_bytes());
            let taken =
                routed_to("order.notification.email", header).text("message_id", "ord-1/notification/processed");
            forger.publish_to("orders", NORMAL, &taken, br#"{"order_id":"ord-1","email":"a@b.c","text":"pay here"}"#);
            let text = |value: &str| Field::Text(value.to_owned());
            let failed = routed_to("order.failed.notification", header)
                .header("x-origin-queue", text("notification_queue"))
                .header("x-origin-routing-key", text("order.notification.email"))
                .header("x-failure-kind", text("transient"))
                .header("x-original-user-id", text("guest"));
            forger.publish_to("orders", NORMAL, &failed, br#"{"text":"pay here"}"#);
        }
    }
    let mut raw = env.raw();
    let forged = if node.version() < (4, 0) { 10 } else { 0 };
    wait_until("the forgeries are dead-lettered", || raw.depth("dead_letter_queue") == forged);
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("ord-1"));
    let ledger = env.ledger();
    let count = |query: &str| ledger.number(&format!("SELECT count(*) FROM {query}"));
    wait_until("the real events are recorded", || {
        count("events WHERE id IN ('ord-1/analytics/processed', 'ord-1/notification/processed')") == 2
    });
    assert_eq!(ledger.rows("SELECT product, revenue FROM sales WHERE granularity = 'day'"), ["Laptop|1200.00"]);
    assert_eq!(count("events WHERE kind = 'notification'"), 1);
    if node.version() < (4, 0) {
        let foreign = format!("events WHERE id = 'ord-1/analytics/processed/from/{user}'");
        assert_eq!(count(&foreign), 1, "it is recorded as an event of its sender");
        let codes = "SELECT DISTINCT consumer, failure_code FROM dead_letters WHERE consumer <> 'order' ORDER BY 1";
        assert_eq!(ledger.rows(codes), ["notification|sender_not_permitted", "unknown|unknown_failure"]);
        assert_eq!(count("dead_letters WHERE origin_queue IS NULL AND reason = 'no_origin'"), 2);
        let status = orderd.status();
        let unproven = |consumer: &str| status["consumers"][consumer]["senders"]["unproven"].as_u64().unwrap();
        assert_eq!(["analytics", "notification", "failed"].map(unproven), [2, 2, 2]);
    }
    assert_eq!(orderd.stop(), 0);
    node.management("DELETE", &format!("/users/{user}"), "");
}

#[test]
fn five_identical_messages_without_an_id_are_all_delivered_and_counted() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let mut raw = env.raw();
    for _ in 0..5 {
        for key in ["order.notification.email", "order.analytics.page_view"] {
            raw.publish_to("orders", key, &Properties::persistent(), br#"{"page":"/"}"#);
        }
    }
    let ledger = env.ledger();
    for kind in ["notification", "analytics"] {
        let query = format!("SELECT count(*) FROM events WHERE kind = '{kind}'");
        wait_until(kind, || ledger.number(&query) == 5);
    }
    let warned = orderd.log_lines(
        "a message without a message_id: after a crash such messages may be processed twice; set one in the producer",
    );
    assert_eq!(warned.len(), 2, "once per consumer");
    assert_eq!(orderd.stop(), 0);
}
