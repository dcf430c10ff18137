//! Orders that are processed, and two different orders with the same id.

use std::collections::BTreeMap;
use std::fs;

use rust_decimal::Decimal;
use serde_json::Value;

use crate::support::Node;
use crate::support::raw_client::properties::{Field, Properties};
use crate::support::test_env::{TestEnv, order, wait_until};

const NORMAL: &str = "order.normal.created";
const PRIORITY: &str = "order.priority.created";

/// The lines of an event file, of any date.
fn event_lines(env: &TestEnv<'_>, name: &str) -> Vec<Value> {
    let paths = fs::read_dir(env.ledger_directory()).unwrap().map(|entry| entry.unwrap().path());
    let ours = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name));
    let text: String = ours.map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn orders_are_processed_once_with_their_events_and_sales_however_often_they_are_published() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let normal = br#"{"id":2,"product":"Laptop","quantity":3,"price":400,"currency":"EUR","note":"kept"}"#;
    let priority = br#"{"id":"p-1","product":"Mouse","quantity":7,"price":"19.99","currency":"EUR","priority":true,
        "customer_id":"c-7","email":"ada@example.com"}"#;
    let persistent = Properties::persistent();
    for _ in 0..2 {
        raw.publish_to("orders", NORMAL, &persistent, normal);
        raw.publish_to("orders", PRIORITY, &persistent, priority);
    }
    ledger.await_settled(2);
    raw.publish_to("orders", NORMAL, &persistent, normal);
    raw.publish_to("orders", PRIORITY, &persistent, priority);
    raw.publish_to("orders", NORMAL, &persistent, &order("ord-3"));
    raw.publish_to("orders", PRIORITY, &persistent, &order("ord-4"));
    ledger.await_settled(4);
    assert_eq!(orderd.stop(), 0);

    assert_eq!(
        ledger
            .rows("SELECT id, status, consumer, product, quantity, total, currency, priority FROM orders ORDER BY id"),
        [
            "2|processed|order|Laptop|3|1200|EUR|0",
            "ord-3|processed|order|Laptop|3|1200.00|EUR|0",
            "ord-4|processed|priority|Laptop|3|1200.00|EUR|0",
            "p-1|processed|priority|Mouse|7|139.93|EUR|1",
        ]
    );
    // An order is processed when its events are confirmed, not when it was accepted.
    assert_eq!(
        ledger.rows("SELECT min(processed_at - accepted_at) >= 0, max(processed_at - accepted_at) > 0 FROM orders"),
        ["1|1"]
    );
    let events: Vec<_> = ["2", "ord-3", "ord-4", "p-1"]
        .iter()
        .flat_map(|id| {
            [
                format!("{id}/analytics/processed|analytics|processed|{id}"),
                format!("{id}/notification/processed|notification|email|{id}"),
            ]
        })
        .collect();
    assert_eq!(ledger.rows("SELECT id, kind, name, order_id FROM events ORDER BY id"), events);
    for granularity in ["minute", "hour", "day"] {
        let mut sales: BTreeMap<String, (u64, u64, Decimal)> = BTreeMap::new();
        for row in ledger.rows(&format!(
            "SELECT currency, product, orders, quantity, revenue FROM sales WHERE granularity = '{granularity}'"
        )) {
            let columns: Vec<_> = row.split('|').collect();
            let sum = sales.entry(format!("{} {}", columns[0], columns[1])).or_default();
            sum.0 += columns[2].parse::<u64>().unwrap();
            sum.1 += columns[3].parse::<u64>().unwrap();
            sum.2 += columns[4].parse::<Decimal>().unwrap();
        }
        let expected = [("EUR Laptop", (3, 9, "3600")), ("EUR Mouse", (1, 7, "139.93"))];
        let expected = expected.map(|(key, (orders, quantity, revenue))| {
            (key.to_owned(), (orders, quantity, revenue.parse::<Decimal>().unwrap()))
        });
        assert_eq!(sales, expected.into(), "{granularity}");
    }
    let lines = event_lines(&env, "analytics.");
    let mut ids: Vec<_> = lines.iter().map(|line| line["body"]["order_id"].to_string()).collect();
    ids.sort();
    assert_eq!(ids, [r#""2""#, r#""ord-3""#, r#""ord-4""#, r#""p-1""#]);
    assert!(ledger.rows("SELECT * FROM attempts").is_empty());
    for queue in ["order_queue", "priority_order_queue", "failed_order_queue", "dead_letter_queue"] {
        assert_eq!(raw.depth(queue), 0, "{queue}");
    }
    assert_eq!(orderd.log_lines("Processing Order").len(), 8);
    for consumer in ["order", "priority"] {
        assert!((1..=2).contains(&orderd.final_count(consumer, "duplicates")), "{consumer}");
    }
}

#[test]
fn an_order_with_several_lines_is_processed_once_and_counted_by_line() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let cart =
        |lines: &str, total: &str| format!(r#"{{"id":"cart","currency":"EUR","total":{total},"items":[{lines}]}}"#);
    let lines = r#"{"product":"Pen","quantity":2,"price":"1.20","sku":"P-1"},{"product":"Ink","quantity":1,"price":3},
        {"product":"Pen","quantity":5,"price":1}"#;
    let mut send = |body: &str| raw.publish_to("orders", NORMAL, &Properties::persistent(), body.as_bytes());
    send(&cart(lines, "10.40"));
    ledger.await_settled(1);
    send(&cart(lines, "10.4"));
    send(&cart(&lines.replace("\"quantity\":5", "\"quantity\":6"), "11.40"));
    send(&cart(lines, "10.41").replace("cart", "wrong"));
    send(r#"{"id":"both","product":"Pen","quantity":1,"price":1,"items":[]}"#);
    send(r#"{"id":"none","items":[]}"#);
    wait_until("four are dead-lettered", || ledger.number("SELECT count(*) FROM dead_letters") == 4);
    wait_until("the copy is recognized", || orderd.status()["consumers"]["order"]["duplicates"] == 1);
    assert_eq!(
        ledger.rows("SELECT identity, failure_kind, failure_code FROM dead_letters ORDER BY 1"),
        [
            "both|malformed|ambiguous_items",
            "cart|permanent|id_conflict",
            "none|permanent|invalid_items",
            "wrong|permanent|total_mismatch",
        ]
    );
    assert_eq!(
        ledger.rows("SELECT id, quantity, goods_total, total, product IS NULL FROM orders"),
        ["cart|8|10.40|10.40|1"]
    );
    assert_eq!(
        ledger.rows(
            "SELECT line, product, quantity, price, total FROM order_items WHERE order_id = 'cart' ORDER BY line"
        ),
        ["1|Pen|2|1.20|2.40", "2|Ink|1|3|3", "3|Pen|5|1|5"]
    );
    assert_eq!(
        ledger.rows("SELECT product, orders, quantity, revenue FROM sales WHERE granularity = 'day' ORDER BY 1"),
        ["Ink|1|1|3", "Pen|1|7|7.40"]
    );
    let line = |n: usize| format!(r#"{{"product":"{n}-{}","quantity":1,"price":"0.01"}}"#, "x".repeat(400));
    send(&cart(&(0..1_000).map(line).collect::<Vec<_>>().join(","), "10").replace("cart", "largest"));
    ledger.await_settled(2);
    let largest = "SELECT (SELECT goods_total FROM orders WHERE id = 'largest'), (SELECT count(*) FROM sales WHERE revenue = '0.01')";
    assert_eq!(ledger.rows(largest), ["10.00|3000"], "in minutes, hours and days");
    let event = event_lines(&env, "analytics.").into_iter().find(|line| line["body"]["order_id"] == "cart").unwrap();
    assert_eq!(event["body"]["items"][0]["extra"]["sku"], "P-1");
    assert_eq!(event["body"]["items"][2]["total"], "5");
    let mut trace = env.command(&["trace", "cart"]);
    assert_eq!(trace.wait_for_exit(), 0);
    assert!(trace.output().contains("8 pieces in 3 lines = 10.40 EUR"), "{}", trace.output());
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn orders_of_a_shop_system_are_processed_as_they_come() {
    const SHOPIFY: &str = include_str!("../../offline/documents/shopify.json");
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.format", "shopify").set("consumers.order.on_conflict", "ignore");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let mut raw_orders = env.raw();
    let mut send = |body: &str| raw_orders.publish_to("orders", NORMAL, &Properties::persistent(), body.as_bytes());
    send(SHOPIFY);
    send(&SHOPIFY.replace("5920047712345", "77").replace(r#""total_price": "82.19""#, r#""total_price": "82.20""#));
    send(&SHOPIFY.replace("5920047712345", "78").replace(r#""name": "Canvas Bag","#, ""));
    ledger.await_settled(1);
    send(&SHOPIFY.replace("Trail Mug - Green", "Trail Mug - Blue"));
    wait_until("the changed order is ignored", || orderd.status()["consumers"]["order"]["duplicates"] == 1);
    let updated = Properties::persistent().text("type", "order.updated");
    raw.publish_to("orders", NORMAL, &updated, SHOPIFY.replace("5920047712345", "79").as_bytes());
    wait_until("three are dead-lettered", || ledger.number("SELECT count(*) FROM dead_letters") == 3);
    assert_eq!(
        ledger.rows("SELECT identity, failure_kind, failure_code FROM dead_letters ORDER BY 1"),
        ["77|permanent|total_mismatch", "78|malformed|invalid_order", "79|malformed|unsupported_event"]
    );
    let reason = ledger.rows("SELECT failure_reason FROM dead_letters WHERE identity = '78'");
    assert!(reason[0].starts_with("order 78: items[1].product (/line_items/1/name) is missing"), "{reason:?}");
    assert_eq!(
        ledger.rows("SELECT id, goods_total, shipping, fees, tax, tax_included, discount, total, currency FROM orders"),
        ["5920047712345|70.00|9.90|-|7.29|0|5.00|82.19|CAD"]
    );
    let mut report = env.command(&["report", "--since", "1h", "--format", "json"]);
    assert_eq!(report.wait_for_exit(), 0);
    let report: Value = serde_json::from_str(&report.output()).unwrap();
    let processed = &report["currencies"][0]["processed"];
    assert_eq!(
        (&processed["revenue"], &processed["shipping"], &processed["total"]),
        (&"70.00".into(), &"9.90".into(), &"82.19".into())
    );
    assert_eq!(ledger.rows("SELECT sum(revenue) FROM sales WHERE granularity = 'day'"), ["70"]);
    let mut schema = env.command(&["schema", "event"]);
    assert_eq!(schema.wait_for_exit(), 0);
    let schema = jsonschema::validator_for(&serde_json::from_str(&schema.stdout()).unwrap()).unwrap();
    let events = [event_lines(&env, "analytics."), event_lines(&env, "notifications.")].concat();
    assert!(events.len() >= 3 && events.iter().all(|line| schema.is_valid(&line["body"])), "{events:#?}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn cloud_events_are_unwrapped_and_identified_by_their_source_and_id() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let event = |id: &str, data: &str| {
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/shop","type":"order.placed",{data}}}"#)
    };
    let structured = || Properties::persistent().text("content_type", "application/cloudevents+json; charset=utf-8");
    let binary = |prefix: &str, source: &str| {
        let attributes = [("specversion", "1.0"), ("id", "e-1"), ("source", source), ("type", "shop.event")];
        attributes.iter().fold(Properties::persistent(), |properties, (name, value)| {
            properties.header(&format!("{prefix}{name}"), Field::Text((*value).to_owned()))
        })
    };
    let wrapped = |id: &str| String::from_utf8(order(id)).unwrap();
    raw.publish_to("orders", NORMAL, &structured(), event("1", &format!("\"data\":{}", wrapped("data"))).as_bytes());
    // {"id":"base64","product":"Pen","quantity":1,"price":"0.10","currency":"EUR"}
    let encoded =
        "eyJpZCI6ImJhc2U2NCIsInByb2R1Y3QiOiJQZW4iLCJxdWFudGl0eSI6MSwicHJpY2UiOiIwLjEwIiwiY3VycmVuY3kiOiJFVVIifQ==";
    raw.publish_to("orders", NORMAL, &structured(), event("2", &format!("\"data_base64\":\"{encoded}\"")).as_bytes());
    raw.publish_to("orders", NORMAL, &binary("ce-", "/shop"), &order("binary"));
    raw.publish_to("orders", NORMAL, &binary("cloudEvents:", "/shop"), &order("colon"));
    raw.publish_to("orders", NORMAL, &structured(), event("3", "\"data\":5,\"data_base64\":\"\"").as_bytes());
    ledger.await_settled(4);
    wait_until("the invalid event is dead-lettered", || ledger.number("SELECT count(*) FROM dead_letters") == 1);
    assert_eq!(
        ledger.rows("SELECT id, total FROM orders ORDER BY id"),
        ["base64|0.10", "binary|1200.00", "colon|1200.00", "data|1200.00"]
    );
    assert_eq!(ledger.rows("SELECT failure_kind, failure_code FROM dead_letters"), ["malformed|invalid_cloud_event"]);
    for (message_id, source) in [("m-1", "/shop"), ("m-2", "/shop"), ("m-1", "/other")] {
        let properties = binary("ce-", source).text("message_id", message_id);
        raw.publish_to("orders", "order.analytics.view", &properties, b"{\"page\":\"/\"}");
    }
    wait_until("the copy is recognized", || orderd.status()["consumers"]["analytics"]["duplicates"] == 1);
    wait_until("both are recorded", || ledger.number("SELECT count(*) FROM events WHERE name = 'view'") == 2);
    assert_eq!(
        ledger.rows("SELECT id FROM events WHERE name = 'view' ORDER BY id"),
        ["cloudevent:5:/shop:e-1/unverified", "cloudevent:6:/other:e-1/unverified"]
    );
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn an_order_with_a_known_id_and_different_content_is_dead_lettered_with_its_whole_message() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let _orderd = env.start();
    let mut raw = env.raw();
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);

    let forged = |name: &str| Field::Text(format!("forged {name}"));
    let death = [("queue", "elsewhere"), ("reason", "expired"), ("exchange", "orders")];
    let death = Field::Table(death.map(|(name, value)| (name.to_owned(), Field::Text(value.into()))).into());
    let mut sent = Properties::default()
        .text("message_id", "m-1")
        .text("correlation_id", "c-1")
        .text("content_type", "application/json")
        .text("user_id", "guest")
        .text("expiration", "600000")
        .header("tenant", Field::Text("north".into()))
        .header("weight", Field::Other(b'I', vec![0, 0, 0, 7]))
        .header("CC", Field::List(vec![Field::Text("of.no.queue".into())]))
        .header("x-death", Field::List(vec![death]))
        .header("x-delivery-count", Field::Long(2))
        .header("x-retry-count", Field::Long(9))
        .header("x-first-failed-at", Field::Time(1));
    for name in ["exchange", "queue", "reason"] {
        sent = sent.header(&format!("x-first-death-{name}"), forged(name));
        sent = sent.header(&format!("x-last-death-{name}"), forged(name));
    }
    sent.delivery_mode = Some(1);
    sent.timestamp = Some(1_700_000_000);
    let body = br#"{"id":"ord-1","product":"Laptop","quantity":4,"price":"400.00","currency":"EUR"}"#;
    let before = now();
    raw.publish_to("orders", NORMAL, &sent, body);
    wait_until("it is dead-lettered", || raw.depth("dead_letter_queue") == 1);
    let dead_lettered = raw.get("dead_letter_queue").unwrap();
    let mut properties = dead_lettered.properties();

    assert_eq!(dead_lettered.body, body);
    assert_eq!((dead_lettered.exchange.as_str(), dead_lettered.routing_key.as_str()), ("orders.dead_letter", NORMAL));
    assert_eq!(properties.delivery_mode, Some(2));
    assert_eq!(properties.timestamp, Some(1_700_000_000));
    let texts =
        [("content_type", "application/json"), ("correlation_id", "c-1"), ("message_id", "m-1"), ("user_id", "guest")];
    assert_eq!(properties.texts, texts.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    for name in ["x-first-failed-at", "x-failed-at"] {
        match properties.headers.remove(name) {
            Some(Field::Time(at)) => assert!((before..=now()).contains(&at), "{name}: {at}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let reason = properties.headers.remove("x-failure-reason").unwrap();
    assert!(reason.text().contains("ord-1"), "{reason:?}");
    // The dead letter queue sets its own count for this delivery.
    assert_ne!(properties.headers.remove("x-delivery-count"), Some(Field::Long(2)));
    let text = |value: &str| Field::Text(value.to_owned());
    let expected = [
        ("tenant", text("north")),
        ("weight", Field::Other(b'I', vec![0, 0, 0, 7])),
        ("x-original-user-id", text("guest")),
        ("x-retry-count", Field::Long(0)),
        ("x-origin-queue", text("order_queue")),
        ("x-origin-exchange", text("orders")),
        ("x-origin-routing-key", text(NORMAL)),
        ("x-failure-kind", text("permanent")),
        ("x-failure-code", text("id_conflict")),
        ("x-dead-letter-reason", text("permanent")),
    ];
    assert_eq!(properties.headers, expected.map(|(name, value)| (name.to_owned(), value)).into());

    let ledger = env.ledger();
    wait_until("it is recorded", || ledger.number("SELECT count(*) FROM dead_letters") == 1);
    assert_eq!(
        ledger.rows("SELECT identity, consumer, reason, retry_count, failure_code, origin_queue FROM dead_letters"),
        ["ord-1|order|permanent|0|id_conflict|order_queue"]
    );
    assert_eq!(
        ledger.rows("SELECT id, status, quantity FROM orders"),
        ["ord-1|processed|3"],
        "the first order is unchanged"
    );
    wait_until("analytics has the event", || {
        ledger.number("SELECT count(*) FROM events WHERE id = 'ord-1/analytics/failed'") == 1
    });
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
