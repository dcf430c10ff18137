//! What is wrong with templates: each is rendered with sample orders, and names that no event has are found even where a sample
//! does not come along. Pure.

use super::fault::TemplateFault;
use super::source::event_of;
use super::{Content, SUBJECT, Templates};

/// The events whose fields are known. A shop's own event may have any field in `body`.
pub(super) const KNOWN_EVENTS: [&str; 4] = ["processed", "failed", "cancelled", "operator"];
/// What a template may use besides the names of [`Content`]: what orderd adds, and the functions of MiniJinja.
const GLOBALS: [&str; 6] = ["shop", "language", "range", "dict", "namespace", "debug"];

/// Every problem, each once.
pub(super) fn check(templates: &Templates) -> Vec<TemplateFault> {
    let mut faults: Vec<TemplateFault> = Vec::new();
    let mut add = |fault: TemplateFault| {
        if !faults.iter().any(|known| known.file == fault.file && known.line == fault.line) {
            faults.push(fault);
        }
    };
    for (name, template) in templates.environment.templates() {
        let file = name.strip_suffix(SUBJECT).unwrap_or(name);
        let (language, base) = file.split_once('/').unwrap_or(("", file));
        for unknown in template.undeclared_variables(false).iter().filter(|name| !is_known(name)) {
            let line = template.source().lines().position(|line| has_word(line, unknown)).map(|index| index + 1);
            add(TemplateFault::new(file, line, &format!("unknown variable {unknown:?}")));
        }
        let Some(event) = event_of(base).filter(|event| *event != "layout") else { continue };
        if !KNOWN_EVENTS.contains(&event) {
            continue;
        }
        for sample in samples(event) {
            if let Err(error) = templates.render_with(name, &sample, language) {
                add(TemplateFault::of(file, &error));
            }
        }
    }
    faults
}

fn is_known(name: &str) -> bool {
    let sample = &samples(KNOWN_EVENTS[0])[0];
    let names = serde_json::to_value(sample).expect("a sample consists of plain values");
    GLOBALS.contains(&name) || names.get(name).is_some()
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        !line[..at].ends_with(is_part)
            && !line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

/// A body with everything, and one with as little as possible.
pub(in crate::notify) fn samples(event: &str) -> [Content; 2] {
    let whole = serde_json::json!({
        "event": event, "order_id": "ord-2", "channel": "email", "email": "ada@example.com", "customer_id": "c-7",
        "phone": "+49 30 123456", "locale": "en", "placed_at": "2026-11-22T08:00:00Z", "quantity": 3,
        "items": [{"product": "Lamp", "quantity": 1, "price": "1299.00", "total": "1299.00"},
                  {"product": "Bulb <E27>", "quantity": 2, "price": "4.95", "total": "9.90"}],
        "goods_total": "1308.90", "shipping": "4.90", "fees": "1.00", "tax": "208.98", "tax_included": true,
        "discount": "10.00", "total": "1304.80", "currency": "EUR", "reason": "sold out",
        "title": "The circuit breaker of a step is open", "text": "order/charge", "resolved": false,
    });
    let least = match event {
        "operator" => serde_json::json!({"event": event, "title": "A finding", "text": "", "resolved": true}),
        _ => serde_json::json!({"event": event}),
    };
    [whole, least].map(|body| Content::read(&body.to_string()).expect("a sample is an object"))
}
