//! `orderd schema`: what orderd accepts is valid by its schema, and what it refuses is not where a schema can say so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jsonschema::Validator;
use orderd::domain::{AnalyticsEvent, CancelledEvent, Notification, Order, OrderDocument};
use orderd::formats::Format;
use orderd::handlers::StepOrder;
use proptest::prelude::*;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schema(of: &str) -> Value {
    let output = crate::orderd().args(["schema", of]).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn validator(of: &str) -> Validator {
    jsonschema::validator_for(&schema(of)).unwrap()
}

fn accepts(document: &str) -> bool {
    Order::decode(document.as_bytes()).is_ok_and(|order| order.check().is_ok())
}

#[test]
fn an_order_is_valid_if_orderd_accepts_it() {
    let validator = validator("order");
    let line = r#"{"product": "Pen", "quantity": "2", "price": 1.20, "sku": 7}"#;
    for document in [
        r#"{"id": 2, "product": "Laptop", "quantity": 3, "price": "400.00", "gift": {"wrap": true}}"#,
        r#"{"id": "2", "product": "p", "quantity": " +3.0 ", "price": "4E+2", "priority": "False", "email": null, "items": null}"#,
        r#"{"id": "2", "product": "p", "quantity": 1, "price": -0.0, "currency": "eur", "placed_at": "2026-11-22", "notify": ""}"#,
        &format!(r#"{{"id": "c", "items": [{line}, {line}], "total": "4.80", "product": null}}"#),
    ] {
        assert!(accepts(document), "{document}");
        validator
            .validate(&serde_json::from_str(document).unwrap())
            .unwrap_or_else(|error| panic!("{error}: {document}"));
    }
    for document in [
        r#"[]"#,
        r#"{"product": "p", "quantity": 1, "price": 1}"#,
        r#"{"id": 1}"#,
        r#"{"id": 1, "product": "p", "quantity": 0, "price": 1}"#,
        r#"{"id": 1, "product": "p", "quantity": 1.5, "price": 1}"#,
        r#"{"id": 1, "product": "p", "quantity": 1, "price": "1,50"}"#,
        r#"{"id": 1, "product": "p", "quantity": 1, "price": -1}"#,
        r#"{"id": 1, "product": "", "quantity": 1, "price": 1}"#,
        r#"{"id": 1, "product": "p", "quantity": 1, "price": 1, "currency": "euro"}"#,
        r#"{"id": 1, "items": []}"#,
        r#"{"id": 1, "items": [{"product": "p", "quantity": 1}]}"#,
        &format!(r#"{{"id": 1, "product": "p", "quantity": 1, "price": 1, "items": [{line}]}}"#),
    ] {
        assert!(!accepts(document), "{document}");
        assert!(!validator.is_valid(&serde_json::from_str(document).unwrap()), "{document}");
    }
}

#[test]
fn a_cancellation_is_valid_with_nothing_but_its_id() {
    let validator = validator("order");
    let is_cancellation =
        |document: &str| matches!(OrderDocument::from_json(document, None), Ok(OrderDocument::Cancelled(_)));
    for (document, expected) in [
        (r#"{"id": 2, "event": "cancelled"}"#, true),
        (r#"{"id": "2", "event": " Canceled ", "price": "?", "items": 7}"#, true),
        (r#"{"event": "cancelled"}"#, false),
        (r#"{"id": 2, "event": "updated"}"#, false),
        (r#"{"id": 2, "event": 7}"#, false),
    ] {
        assert_eq!(is_cancellation(document), expected, "{document}");
        assert_eq!(validator.is_valid(&serde_json::from_str(document).unwrap()), expected, "{document}");
    }
    let placed = r#"{"id": 2, "product": "Pen", "quantity": 3, "price": 1, "event": "Created"}"#;
    assert!(accepts(placed) && validator.is_valid(&serde_json::from_str(placed).unwrap()));
}

fn any_value() -> impl Strategy<Value = &'static str> {
    let values = [
        "1",
        "\"3\"",
        "\"10.50\"",
        "0.1",
        "\"Pen\"",
        "\"\"",
        "\"  \"",
        "null",
        "true",
        "\"EUR\"",
        "-1",
        "[]",
        "{}",
        "3.0",
        "\" 0 \"",
        "\"-0.0\"",
        "\".5\"",
        "\"5.\"",
        "\"2026-11-22T08:00:00Z\"",
        "[{\"product\":\"p\",\"quantity\":1,\"price\":1}]",
        "\"TRUE\"",
        "0",
    ];
    prop::sample::select(values.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_order_that_orderd_accepts_is_invalid(
        fields in prop::collection::vec((prop::sample::select(vec!["id", "product", "quantity", "price", "items", "total", "customer_id",
            "email", "currency", "placed_at", "priority", "notify", "event"]), any_value()), 0..9),
        complete in any::<bool>(),
    ) {
        static VALIDATOR: std::sync::LazyLock<Validator> = std::sync::LazyLock::new(|| validator("order"));
        let mut parts: std::collections::BTreeMap<&str, &str> = std::collections::BTreeMap::new();
        if complete {
            parts.extend([("id", "1"), ("product", "\"p\""), ("quantity", "2"), ("price", "1.50")]);
        }
        parts.extend(fields);
        let parts: Vec<_> = parts.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let document = format!("{{{}}}", parts.join(","));
        if accepts(&document) {
            let value: Value = serde_json::from_str(&document).unwrap();
            prop_assert!(VALIDATOR.is_valid(&value), "{}: {:?}", document, VALIDATOR.validate(&value).err().map(|error| error.to_string()));
        }
    }
}

#[test]
fn the_events_of_every_order_are_valid() {
    let validator = validator("event");
    for order in [
        r#"{"id": 1, "product": "p", "quantity": 2, "price": "1.50", "email": "a@b.c", "customer_id": 7, "gift": true}"#,
        r#"{"id": 1, "items": [{"product": "p", "quantity": 2, "price": "1.50", "sku": 1}, {"product": "q", "quantity": 1, "price": 0}]}"#,
    ] {
        let order = Order::decode(order.as_bytes()).unwrap();
        let amounts = order.check().unwrap();
        let notification = serde_json::to_value(Notification::processed(&order, &amounts)).unwrap();
        let analytics =
            serde_json::to_value(AnalyticsEvent::processed(&order, &amounts, jiff::Timestamp::UNIX_EPOCH)).unwrap();
        let revoked = serde_json::to_value(Notification::cancelled(&order, &amounts)).unwrap();
        let cancelled =
            serde_json::to_value(CancelledEvent::new(&order, &amounts, jiff::Timestamp::UNIX_EPOCH)).unwrap();
        for event in [&notification, &analytics, &revoked, &cancelled] {
            validator.validate(event).unwrap_or_else(|error| panic!("{error}: {event}"));
            for field in ["order_id", "event"] {
                let mut without = event.clone();
                without.as_object_mut().unwrap().remove(field);
                assert!(!validator.is_valid(&without), "{field}");
            }
        }
    }
    let failed = json!({"event": "failed", "order_id": "1", "reason": "permanent", "failure_kind": "permanent",
        "failure_code": "invalid_price", "consumer": "order", "at": "2026-11-22T08:00:02Z"});
    assert!(validator.is_valid(&failed));
    assert!(!validator.is_valid(&json!({"event": "failed", "order_id": "1"})));
}

/// The properties of an object's schema.
fn properties(schema: &Value) -> BTreeSet<&str> {
    schema["properties"].as_object().unwrap().keys().map(String::as_str).collect()
}

/// The part of a schema, which may be optional, that describes an object or a list.
fn some(schema: &Value) -> &Value {
    let options = schema["anyOf"].as_array();
    options.and_then(|options| options.iter().find(|option| option["type"] != "null")).unwrap_or(schema)
}

#[test]
fn the_request_of_a_step_is_valid_and_every_field_of_its_order_is_documented() {
    let (schema, validator) = (schema("step"), validator("step"));
    let guide = fs::read_to_string(root().join("docs/guides/steps.md")).unwrap();
    let received = guide.split("## What your service receives").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = || received.lines().filter(|line| line.starts_with("| `"));
    let named: BTreeSet<&str> =
        rows().filter_map(|row| row.split(" |").next()).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let order = some(&schema["properties"]["order"]);
    for field in properties(&schema).union(&properties(order)) {
        assert!(named.contains(field), "{field}");
    }
    let lines = rows().find(|row| row.starts_with("| `items` |")).unwrap();
    for field in properties(&order["properties"]["items"]["items"]) {
        assert!(lines.contains(&format!("`{field}`")), "{field}");
    }

    let example = received.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let example: Value = serde_json::from_str(example).unwrap();
    let documents = root().join("tests/offline/documents");
    for (format, document) in [
        ("orderd", example["message"].to_string()),
        ("shopify", fs::read_to_string(documents.join("shopify.json")).unwrap()),
        ("woocommerce", fs::read_to_string(documents.join("woocommerce.json")).unwrap()),
    ] {
        let Ok(OrderDocument::Placed(read)) = Format::built_in(format).unwrap().read(&document, None) else {
            panic!("{format}")
        };
        let called_with = serde_json::to_value(StepOrder::new(&read, &read.check().unwrap())).unwrap();
        if format == "orderd" {
            assert_eq!(called_with, example["order"]);
        }
        assert!(properties(order).is_superset(&called_with.as_object().unwrap().keys().map(String::as_str).collect()));
        let message: Value = serde_json::from_str(&document).unwrap();
        let failure = json!({"kind": "permanent", "code": "http_409", "reason": "sold out"});
        let mut request = json!({"order": called_with, "message": message, "steps": {"charge": 7}, "failure": failure});
        validator.validate(&request).unwrap_or_else(|error| panic!("{error}: {request}"));
        request["order"].as_object_mut().unwrap().remove("total");
        assert!(!validator.is_valid(&request));
    }
    assert!(validator.is_valid(&json!({"message": "text", "steps": {}})), "a message that is not an order");
    assert!(!validator.is_valid(&json!({"message": {}})));
}

/// The keys of a schema by section, with `<name>` for any name.
fn keys(schema: &Value, section: &Value, path: &str, found: &mut BTreeSet<String>) {
    let section = match section["$ref"].as_str() {
        Some(reference) => &schema["$defs"][reference.rsplit('/').next().unwrap()],
        None => section,
    };
    for option in section["anyOf"].as_array().into_iter().flatten() {
        keys(schema, option, path, found);
    }
    if section["items"].is_object() {
        keys(schema, &section["items"], path, found);
    }
    if section["additionalProperties"].is_object() {
        keys(schema, &section["additionalProperties"], &format!("{path}<name>."), found);
    }
    for (key, value) in section["properties"].as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "value" | "pointer" | "none") {
            found.insert(format!("{path}{key}"));
            keys(schema, value, &format!("{path}{key}."), found);
        }
    }
}

#[test]
fn the_schema_of_the_configuration_has_the_keys_of_the_default_file() {
    let schema = schema("config");
    let mut found = BTreeSet::new();
    keys(&schema, &schema, "", &mut found);
    let (mut documented, mut section) = (BTreeSet::new(), String::new());
    for line in fs::read_to_string(root().join("config/orderd.toml")).unwrap().lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let parts: Vec<_> = name.trim_matches(['[', ']']).split('.').enumerate().collect();
            let is_named = matches!(parts[0].1, "queues" | "consumers" | "formats" | "notify");
            let parts: Vec<_> =
                parts.iter().map(|(n, part)| if *n == 1 && is_named { "<name>" } else { part }).collect();
            section = parts.join(".");
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            documented.insert(format!("{section}.{key}"));
        }
    }
    let missing: Vec<_> = documented.difference(&found).collect();
    assert!(missing.is_empty(), "not in the schema: {missing:?}");
    let is_section = |key: &&String| documented.iter().any(|known| known.starts_with(&format!("{key}.")));
    // `server_name` is for the broker only, an amount's unit, an id's prefix and which events are cancellations may be in tables of their own, and tables within a
    // step are documented in one line each.
    let further = |key: &&String| {
        key.ends_with("tls.server_name")
            || key.starts_with("formats.")
                && [".unit", ".id.prefix", ".event.cancelled"].iter().any(|end| key.ends_with(end))
            || key.starts_with("consumers.<name>.steps.")
            || key.starts_with("notify.<name>.http.")
            || key.starts_with("notify.<name>.circuit_breaker.")
    };
    let unknown: Vec<_> = found.difference(&documented).filter(|key| !is_section(key) && !further(key)).collect();
    assert!(unknown.is_empty(), "not in the default file: {unknown:?}");
}

#[test]
fn a_configuration_is_valid_if_orderd_accepts_it() {
    let validator = validator("config");
    let valid = |toml: &str| {
        let value: toml::Value = toml::from_str(toml).unwrap();
        validator.validate(&serde_json::to_value(value).unwrap()).map_err(|error| error.to_string())
    };
    for file in ["config/orderd.toml", "config/docker/orderd/orderd.toml", "examples/shop.toml"] {
        valid(&fs::read_to_string(root().join(file)).unwrap()).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    for page in [
        "docs/reference/formats.md",
        "docs/reference/command-steps.md",
        "docs/guides/steps.md",
        "docs/guides/notifications.md",
    ] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let mut blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).peekable();
        assert!(blocks.peek().is_some(), "{page}");
        for block in blocks {
            // A block may show a part of a consumer.
            let queue = if block.contains("[consumers.order]\n") { "" } else { "[consumers.order]\nqueue = \"q\"\n" };
            let whole = if block.contains("consumers.order.") { format!("{queue}{block}") } else { block.to_owned() };
            valid(&whole).unwrap_or_else(|error| panic!("{page}: {whole}: {error}"));
        }
    }
    for wrong in [
        "[broker]\nheartbeat = 10",
        "[brokr]",
        "[broker]\nhartbeat = \"1s\"",
        "[log]\nlevel = \"loud\"",
        "[consumers.order]\nworkers = 4",
        "[consumers.order]\nqueue = \"q\"\nworkers = 0",
        "[queues.q]\nbindings = []",
        "[formats.f]\nid = 5",
        "[formats.f]\nid = \"/id\"\nshipping = []",
        "[consumers.order]\nqueue = \"q\"\n[consumers.order.faults]\nhang = 1.5",
    ] {
        assert!(valid(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_step_is_valid_if_orderd_accepts_it() {
    let validator = validator("config");
    let accepts = |toml: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        fs::write(&file, format!("{}\n{toml}", fs::read_to_string(root().join("config/orderd.toml")).unwrap()))
            .unwrap();
        let sources = orderd::config::Sources { file: Some(file), ..orderd::handlers::sources() };
        orderd::config::Config::load(&sources).is_ok()
    };
    let valid = |toml: &str| {
        let value: toml::Value = toml::from_str(&format!("[consumers.order]\nqueue = \"q\"\n{toml}")).unwrap();
        validator.is_valid(&serde_json::to_value(value).unwrap())
    };
    for (keys, expected) in [
        ("http = { url = \"http://a/\" }", true),
        ("command = [\"a\"]\nmode = \"per_message\"\nenvironment = { A = \"b\" }\nworking_directory = \"/\"", true),
        ("http = { url = \"http://a/\" }\nundo = { command = [\"a\"], timeout = \"1s\" }", true),
        ("http = { url = \"http://a/\" }\nwhen = { min_total = \"10.0\", pointer = \"/a\", equals = 1 }", true),
        ("http = { url = \"http://a/\" }\ncircuit_breaker = { failures = 0.5 }\nemits = [\"a.*\"]", true),
        ("", false),
        ("http = {}", false),
        ("http = { url = \"http://a/\" }\ncommand = [\"a\"]", false),
        ("command = []", false),
        ("http = { url = \"http://a/\" }\nmode = \"per_message\"", false),
        ("http = { url = \"http://a/\" }\nundo = {}", false),
        ("http = { url = \"http://a/\" }\nundo = { timeout = \"1s\" }", false),
        (
            "http = { url = \"http://a/\" }\nundo = { http = { url = \"http://a/\" }, environment = { A = \"b\" } }",
            false,
        ),
        ("http = { url = \"http://a/\" }\nwhen = { min_total = 10 }", false),
        ("http = { url = \"http://a/\" }\nwhen = { min_total = 10.0 }", false),
        ("http = { url = \"http://a/\" }\nwhen = { equals = 1 }", false),
        ("http = { url = \"http://a/\" }\nmax_concurrent = 0", false),
        ("http = { url = \"http://a/\" }\ntimout = \"1s\"", false),
    ] {
        let toml = format!("[[consumers.order.steps]]\nname = \"a\"\n{keys}\n");
        assert_eq!((accepts(&toml), valid(&toml)), (expected, expected), "{toml}");
    }
}

/// The whole document: which messages producers send and orderd publishes, with the schemas of both.
fn asyncapi() -> Value {
    let exchange = json!({"name": "orders", "type": "topic", "durable": true, "vhost": "/"});
    let channel = |address: &str, message: &str, title: &str| {
        let binding = json!({"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}});
        let reference = format!("#/components/messages/{message}");
        let mut channel = json!({"address": address, "title": title, "messages": {message: {"$ref": reference}}, "bindings": binding});
        if address.contains("{name}") {
            channel["parameters"] = json!({"name": {"description": "One word."}});
        }
        channel
    };
    let operation = |action: &str, channel: &str, summary: &str| json!({"action": action, "summary": summary, "channel": {"$ref": format!("#/channels/{channel}")}});
    let message = |name: &str, title: &str| {
        let schema = json!({"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": {"$ref": format!("#/components/schemas/{name}")}});
        json!({"name": name, "title": title, "contentType": "application/json", "payload": schema})
    };
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "orderd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The messages of orderd with the default topology. docs/reference/messages.md explains them."
        },
        "defaultContentType": "application/json",
        "channels": {
            "normalOrders": channel("order.normal.{name}", "order", "Orders"),
            "priorityOrders": channel("order.priority.{name}", "order", "Orders that must not wait behind the others"),
            "notifications": channel("order.notification.{name}", "event", "Messages for customers; the name is the channel, such as email"),
            "analytics": channel("order.analytics.{name}", "event", "What happened to orders; the name is processed, failed or cancelled")
        },
        "operations": {
            "receiveNormalOrder": operation("receive", "normalOrders", "orderd processes or cancels an order"),
            "receivePriorityOrder": operation("receive", "priorityOrders", "orderd processes an order with priority"),
            "sendNotification": operation("send", "notifications", "orderd notifies a customer that an order was processed or cancelled"),
            "sendAnalyticsEvent": operation("send", "analytics", "orderd says that an order was processed, dead-lettered or cancelled")
        },
        "components": {
            "messages": {"order": message("order", "An order in orderd's own format, or its cancellation"), "event": message("event", "An event about an order")},
            "schemas": {"order": schema("order"), "event": schema("event")}
        }
    })
}

#[test]
fn the_asyncapi_document_describes_the_messages_as_they_are() {
    let path = root().join("docs/reference/asyncapi.json");
    let document = serde_json::to_string_pretty(&asyncapi()).unwrap() + "\n";
    if fs::read_to_string(&path).is_ok_and(|current| current == document) {
        return;
    }
    let generated = Path::new(env!("CARGO_TARGET_TMPDIR")).join("asyncapi.json");
    fs::write(&generated, document).unwrap();
    panic!("{} is not up to date: replace it by {}", path.display(), generated.display());
}

#[test]
fn the_channels_of_the_asyncapi_document_are_bound_to_the_queues_of_the_default_file() {
    let file: toml::Value = toml::from_str(&fs::read_to_string(root().join("config/orderd.toml")).unwrap()).unwrap();
    let queues = file["queues"].as_table().unwrap().values();
    let bindings = queues
        .flat_map(|queue| queue["bindings"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()));
    let bindings: BTreeSet<String> = bindings.filter(|key| key != "order.failed.#").collect();
    let document = asyncapi();
    let channels = document["channels"].as_object().unwrap().values();
    let addresses = channels.map(|channel| channel["address"].as_str().unwrap().replace("{name}", "*"));
    // Priority orders may have further words in their key.
    let addresses: BTreeSet<String> =
        addresses.map(|key| key.replace("order.priority.*", "order.priority.#")).collect();
    assert_eq!(addresses, bindings);
}
