//! Events to try templates with: with everything, with as little as possible, and with each field missing or alone, so that
//! every part of a template is reached that depends on one. Pure.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use serde_json::{Map, Value as Json, json};

use super::Content;

/// The events whose fields are known. A shop's own event may have any field in `body`.
pub(super) const KNOWN_EVENTS: [&str; 4] = ["processed", "failed", "cancelled", "operator"];

/// Bodies of an event: the first has everything, the second as little as possible.
pub(in crate::notify) fn samples(event: &str) -> Vec<Content> {
    let mut whole = json!({
        "event": event, "order_id": "ord-2", "channel": "email", "email": "ada@example.com", "customer_id": "c-7",
        "phone": "+49 30 123456", "locale": "en", "placed_at": "2026-11-22T08:00:00Z", "quantity": 3,
        "items": [{"product": "Lamp", "quantity": 1, "price": "1299.00", "total": "1299.00"},
                  {"product": "Bulb <E27>", "quantity": 2, "price": "4.95", "total": "9.90"}],
        "goods_total": "1308.90", "shipping": "4.90", "fees": "1.00", "tax": "208.98", "tax_included": true,
        "discount": "10.00", "total": "1304.80", "currency": "EUR", "reason": "sold out",
        "title": "The circuit breaker of a step is open", "text": "order/charge", "resolved": false,
    });
    if event == "operator" {
        whole["more"] = json!(1);
        whole["alerts"] = json!([
            {"state": "open", "repeated": false, "cause": "breaker/step/order/charge", "title": "Step \"charge\" is unavailable",
             "detail": "503 <busy>", "since": "2026-11-22T08:00:00Z", "resolved_at": null, "lasted": null,
             "scope": "shop-1, /etc/orderd/orderd.toml", "instance": "shop-1:7", "runbook": "OrderdStepUnavailable"},
            {"state": "resolved", "repeated": false, "cause": "reload", "title": "A reload was rejected", "detail": "",
             "since": "2026-11-22T08:00:00Z", "resolved_at": "2026-11-22T09:00:00Z", "lasted": "1h",
             "scope": "shop-1, /etc/orderd/orderd.toml", "instance": "shop-1:7", "runbook": "OrderdConfigRejected"},
            {"state": "ended", "repeated": false, "cause": "dead_letters/order/permanent", "title": "Messages are dead-lettered",
             "detail": "No more", "since": "2026-11-22T08:00:00Z", "resolved_at": "2026-11-22T09:00:00Z", "lasted": "1h",
             "scope": "virtual host /", "instance": "shop-1:7", "runbook": "OrderdDeadLettersGrowing"},
        ]);
    }
    let always = if event == "operator" { &["event", "title", "text", "resolved"][..] } else { &["event"][..] };
    let object = |value: &Json| value.as_object().cloned().unwrap_or_default();
    let whole = object(&whole);
    let least: Map<String, Json> = whole
        .iter()
        .filter(|(key, _)| always.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut bodies = vec![whole.clone(), least.clone()];
    let optional = || whole.iter().filter(|(key, _)| !always.contains(&key.as_str()));
    for (key, value) in optional() {
        let mut without = whole.clone();
        without.remove(key);
        let mut with = least.clone();
        with.insert(key.clone(), value.clone());
        bodies.extend([without, with]);
    }
    let changes = [
        json!({"tax_included": false}),
        json!({"items": []}),
        json!({"items": [{"product": "Lamp"}]}),
        json!({"items": null, "product": "Lamp", "price": "1299.00", "quantity": 1}),
        json!({"discount": "0", "shipping": "0", "fees": "0", "tax": "0", "total": "0"}),
        json!({"resolved": true, "text": ""}),
    ];
    bodies.extend(changes.iter().map(|change| whole.clone().into_iter().chain(object(change)).collect()));
    let read = |body: Map<String, Json>| Content::read(&Json::Object(body).to_string()).expect("a sample is an object");
    bodies.into_iter().map(read).collect()
}

/// A value that has every field, is a list of such values, and counts as any text, amount and time: the body of an event whose
/// fields are not known.
#[derive(Debug, Clone, Default)]
pub(super) struct AnyValue {
    touched: Arc<AtomicBool>,
    /// How many lists it is in.
    depth: usize,
}

/// A list this deep is empty.
const MAX_DEPTH: usize = 8;

impl AnyValue {
    /// Whether a template has used it.
    pub fn was_used(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    fn used(&self) -> Value {
        self.touched.store(true, Ordering::Relaxed);
        Value::from_object(AnyValue { touched: Arc::clone(&self.touched), depth: self.depth + 1 })
    }
}

impl Object for AnyValue {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(self.used())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.depth {
            MAX_DEPTH.. => Enumerator::Empty,
            _ => Enumerator::Values(vec![self.used()]),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1")
    }
}

/// Whether a value is one of these.
pub(super) fn is_any(value: &Value) -> bool {
    value.downcast_object_ref::<AnyValue>().is_some()
}
