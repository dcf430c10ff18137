//! What a producer can pass off as orderd's own, if its topic permissions confine it to orders. And messages that say too little
//! to be distinguished.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::Node;
use crate::support::http::Scrape;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::{Field, Fields, Properties};
use crate::support::test_env::{TestEnv, order, wait_until};

const NORMAL: &str = "order.normal.created";
/// The first RabbitMQ that compares the routing keys in `CC` and `BCC` with topic permissions.
const FIRST_TO_CHECK_ROUTES: (u32, u32) = (4, 0);

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

/// Properties with further routing keys, in a header that routes like the routing key.
pub(super) fn routed_to(key: &str, header: &str) -> Properties {
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
    let mut forger = RawClient::connect_as(&user, node.amqp_port, &env.vhost.name);
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let sale = format!(
        r#"{{"event":"processed","order_id":"ord-1","product":"Yacht","quantity":1,"price":"1","total":"999999999.99",
            "currency":"EUR","at":"2026-11-22T08:00:00Z","n":{at}}}"#
    );
    let mut accepted = Vec::new();
    for header in ["CC", "BCC"] {
        let taken = routed_to("order.analytics.processed", header).text("message_id", "ord-1/analytics/processed");
        let sold = forger.may_publish("orders", NORMAL, &taken.text("user_id", &user), sale.as_bytes());
        let taken = routed_to("order.notification.email", header).text("message_id", "ord-1/notification/processed");
        let phishing = br#"{"order_id":"ord-1","email":"a@b.c","text":"pay here"}"#;
        let notified = forger.may_publish("orders", NORMAL, &taken, phishing);
        let text = |value: &str| Field::Text(value.to_owned());
        let failed = routed_to("order.failed.notification", header)
            .header("x-origin-queue", text("notification_queue"))
            .header("x-origin-routing-key", text("order.notification.email"))
            .header("x-failure-kind", text("transient"))
            .header("x-original-user-id", text("guest"));
        let failed = forger.may_publish("orders", NORMAL, &failed, br#"{"text":"pay here"}"#);
        accepted.push([sold, notified, failed]);
    }
    // Neither another user's name, nor another routing key, nor orderd's other exchanges.
    let impostor = Properties::persistent().text("user_id", "guest");
    assert!(!forger.may_publish("orders", NORMAL, &impostor, &order("forged")));
    for (exchange, key) in [
        ("orders", "order.analytics.processed"),
        ("orders", "order.failed.order"),
        ("orders.requeue", "order_queue"),
        ("orders.retry", "order_queue.retry.1s"),
        ("orders.dead_letter", ""),
        ("", "analytics_queue"),
    ] {
        assert!(
            !forger.may_publish(exchange, key, &Properties::persistent(), &order("forged")),
            "{exchange:?} {key:?}"
        );
    }
    let routes = node.version() < FIRST_TO_CHECK_ROUTES;
    assert_eq!(accepted, [[routes; 3]; 2], "which routes RabbitMQ {:?} accepts", node.version());
    let mut raw = env.raw();
    let forged = if routes { 10 } else { 0 };
    wait_until("the forgeries are dead-lettered", || raw.depth("dead_letter_queue") == forged);
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("ord-1"));
    let ledger = env.ledger();
    let count = |query: &str| ledger.number(&format!("SELECT count(*) FROM {query}"));
    wait_until("the real events are recorded", || {
        count("events WHERE id IN ('ord-1/analytics/processed', 'ord-1/notification/processed')") == 2
    });
    assert_eq!(ledger.rows("SELECT product, revenue FROM sales WHERE granularity = 'day'"), ["Laptop|1200.00"]);
    assert_eq!(count("events WHERE kind = 'notification'"), 1);
    if routes {
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

/// What only orderd may say, and values that no honest producer sends, on orders that the producer may publish.
#[test]
fn forged_headers_and_odd_properties_of_an_order_have_no_effect() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let user = confined_user(&env);
    let mut forger = RawClient::connect_as(&user, node.amqp_port, &env.vhost.name);
    let text = |value: &str| Field::Text(value.to_owned());
    let death = Fields::from([
        ("queue".to_owned(), text("notification_queue")),
        ("exchange".to_owned(), text("orders.requeue")),
        ("reason".to_owned(), text("delivery_limit")),
        ("count".to_owned(), Field::Long(i64::MAX)),
        ("routing-keys".to_owned(), Field::List(vec![text("order.notification.email")])),
    ]);
    let with = |name: &str, value: Field| Properties::persistent().header(name, value);
    let at = |time: u64| Properties { timestamp: Some(time), ..Properties::persistent() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let odd = [
        with("x-death", Field::List(vec![Field::Table(death.clone())])),
        with("x-death", Field::Table(death)).header("x-first-death-queue", text("order_queue")),
        with("x-retry-count", Field::Long(i64::MAX)).header("x-failed-at", Field::Time(u64::MAX)),
        with("x-retry-count", text("-1")).header("x-first-failed-at", Field::Time(0)),
        with("x-original-user-id", text("guest")).header("x-identity", text("ord-1/analytics/processed")),
        with("x-dead-letter-reason", text("permanent")).header("x-headers-dropped", Field::Long(-1)),
        with("x-delivery-count", Field::Long(19)).header("x-acquired-count", Field::Long(1000)),
        at(0),
        at(1),
        at(now * 1000),
        at(now * 1_000_000),
        at(u64::MAX),
        at(now + 86_400 * 400),
        Properties { priority: Some(255), ..Properties::persistent() },
        Properties { delivery_mode: Some(7), ..Properties::default() },
        Properties::default(),
        Properties::persistent().text("reply_to", "amq.rabbitmq.reply-to").text("app_id", "\u{1b}[2J\n"),
        Properties::persistent().text("expiration", "3600000").text("type", "unknown"),
        Properties::persistent().text("cluster_id", "x").text("correlation_id", "").text("message_id", ""),
    ];
    let mut sent = 0;
    for (number, properties) in odd.iter().enumerate() {
        let accepted = forger.may_publish("orders", NORMAL, properties, &order(&format!("odd-{number}")));
        sent += u64::from(accepted);
    }
    let ledger = env.ledger();
    ledger.await_settled(sent);
    wait_until("every order is a sale", || {
        ledger.number("SELECT count(*) FROM events WHERE kind = 'analytics'") == sent
    });
    assert!(sent >= 17, "the broker refuses {} of them", odd.len() as u64 - sent);
    assert_eq!(ledger.processed(), sent);
    assert_eq!(ledger.number("SELECT count(*) FROM attempts") + ledger.number("SELECT count(*) FROM dead_letters"), 0);
    let scrape = Scrape::of(orderd.admin_address());
    assert_eq!(scrape.of_consumer("orderd_implausible_timestamps_total", "order"), 6.0);
    assert!(scrape.of_consumer("orderd_publish_to_ack_seconds_sum", "order") < 3600.0);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.logged_errors(), [""; 0]);
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
