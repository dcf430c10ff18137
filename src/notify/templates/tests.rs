//! Templates with the contents of orders, hostile ones included.

use super::*;

fn options() -> TemplateOptions {
    TemplateOptions { shop: "Lamps & More".to_owned(), language: "en".to_owned(), zone: TimeZone::UTC }
}

fn built_in() -> Templates {
    Templates::new(&TemplateFiles::built_in(), &options()).unwrap()
}

fn content(body: &str) -> Content {
    Content::read(body).unwrap()
}

/// A directory of templates with these files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, source) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, source).unwrap();
    }
    directory
}

fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let directory = directory(files);
    let faults = read_directory(directory.path())
        .and_then(|files| Templates::new(&files, &options()))
        .map_or_else(|faults| faults, |templates| templates.check());
    faults.iter().map(ToString::to_string).collect()
}

const ORDER: &str = r#"{"event":"processed","order_id":"ord-2","locale":"de-AT","placed_at":"2026-11-22T08:00:00Z",
    "items":[{"product":"Laptop","quantity":1,"price":"1299.00","total":"1299.00"},
             {"product":"Maus","quantity":2,"price":"4.95","total":"9.90"}],
    "shipping":"4.90","goods_total":"1308.90","total":"1313.80","currency":"EUR"}"#;

#[test]
fn the_built_in_templates_have_no_fault() {
    assert_eq!(built_in().check(), Vec::new());
}

#[test]
fn a_customer_reads_amounts_and_dates_in_the_form_of_the_orders_language() {
    let mail = built_in().mail(&content(ORDER)).unwrap();
    assert_eq!((mail.language.as_str(), mail.subject.as_str()), ("de", "Ihre Bestellung ord-2"));
    for part in [
        "vom 22.11.2026",
        "1 x Laptop  1.299,00\u{a0}€\n2 x Maus  9,90\u{a0}€\n",
        "Versand: 4,90\u{a0}€\n",
        "Gesamt: 1.313,80\u{a0}€",
    ] {
        assert!(mail.text.contains(part), "{part}: {}", mail.text);
    }
    let html = mail.html.unwrap();
    assert!(html.contains("lang=\"de\"") && html.contains("1.313,80") && html.contains("Lamps &amp; More"), "{html}");
    let english = built_in().mail(&content(&ORDER.replace("de-AT", "pl"))).unwrap();
    assert!(english.text.contains("22 November 2026") && english.text.contains("€1,313.80"), "{}", english.text);
    assert!(english.text.starts_with("Thank you"), "{}", english.text);
}

#[test]
fn nothing_in_an_order_becomes_markup_a_template_or_another_line() {
    let order = r#"{"event":"processed","order_id":"1\r\nBcc: eve@example.com\r\n\r\n{{ shop }}","items":[
        {"product":"<script>alert(1)</script>\r\nTotal: 0 {{ 7 * 7 }} {% include 'en/layout.txt' %}\u202e","quantity":1,"total":"1"}],
        "total":"1","currency":"EUR","locale":"en"}"#;
    let mail = built_in().mail(&content(order)).unwrap();
    assert!(mail.subject.starts_with("Your order 1  Bcc: eve@example.com") && !mail.subject.contains('\n'), "{mail:?}");
    assert!(mail.text.contains("{{ 7 * 7 }} {% include") && !mail.text.contains("\nTotal: 0"), "{}", mail.text);
    let html = mail.html.unwrap();
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script>") && !html.contains("49"), "{html}");
    assert!(![&mail.text, &html, &mail.subject].iter().any(|text| text.contains(['\r', '\u{202e}'])));
}

#[test]
fn the_event_of_a_message_cannot_name_another_file() {
    for event in ["../../etc/passwd", "layout", "", "Processed", "en/processed", &"x".repeat(65)] {
        let body = serde_json::json!({"event": event}).to_string();
        assert!(matches!(built_in().mail(&content(&body)), Err(RenderError::UnknownEvent(_))), "{event}");
    }
}

#[test]
fn a_subject_is_one_line_of_limited_length_and_an_endless_text_is_an_error() {
    let order = serde_json::json!({"event": "processed", "order_id": "x".repeat(10_000)}).to_string();
    assert!(built_in().mail(&content(&order)).unwrap().subject.chars().count() <= MAX_SUBJECT_CHARS);
    for (name, body) in [
        ("loops", "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}"),
        ("long", "{% for a in range(3000) %}{{ body.text }}{% endfor %}"),
    ] {
        let directory = directory(&[(&format!("en/{name}.txt"), &format!("Subject: x\n\n{body}"))]);
        let templates = Templates::new(&read_directory(directory.path()).unwrap(), &options()).unwrap();
        let body = serde_json::json!({"event": name, "text": "x".repeat(1000)}).to_string();
        assert!(matches!(templates.mail(&content(&body)), Err(RenderError::Failed(_))), "{name}");
    }
}

#[test]
fn a_directory_replaces_and_adds_templates_and_languages() {
    let directory = directory(&[
        ("en/layout.txt", "== {{ shop }} ==\n{% block content %}{% endblock %}"),
        ("fr/shipped.txt", "Subject: Commande {{ order_id }}\n\n{{ body.parcel }}"),
        ("en/README.md", "not a template"),
        ("en/processed.txt~", "{{ broken"),
    ]);
    let templates = Templates::new(&read_directory(directory.path()).unwrap(), &options()).unwrap();
    assert_eq!(templates.check(), Vec::new());
    let english = templates.mail(&content(r#"{"event":"processed","order_id":"1"}"#)).unwrap();
    assert!(english.text.starts_with("== Lamps & More ==\nThank you"), "{}", english.text);
    let french =
        templates.mail(&content(r#"{"event":"shipped","order_id":"1","locale":"fr","parcel":"P-1"}"#)).unwrap();
    assert_eq!((french.subject.as_str(), french.text.trim(), french.html), ("Commande 1", "P-1", None));
    assert!(read_directory(&directory.path().join("none")).is_err());
    let changed = TemplateFiles::built_in();
    assert_ne!(changed.digest(), read_directory(directory.path()).unwrap().digest());
}

#[test]
fn a_fault_is_named_with_its_file_and_line_even_where_no_sample_comes_along() {
    let lines = faults(&[
        (
            "en/processed.txt",
            "Subject: {{ ordr_id }}\n\n{{ shop }}\n{% if shop == 'x' %}{{ totl | money }}{% endif %}\n",
        ),
        ("de/failed.html", "<p>{{ body.cause }}</p>\n{{ order_id | upper }\n"),
    ]);
    assert!(lines.iter().any(|line| line.starts_with("de/failed.html:2: ")), "{lines:?}");
    let lines = faults(&[
        (
            "en/processed.txt",
            "Subject: {{ ordr_id }}\n\n{{ shop }}\n{% if shop == 'x' %}{{ totl | money }}{% endif %}\n",
        ),
        ("de/cancelled.txt", "no subject\n"),
    ]);
    assert!(lines.iter().any(|line| line.starts_with("de/cancelled.txt:1: ")), "{lines:?}");
    let lines = faults(&[(
        "en/processed.txt",
        "Subject: {{ ordr_id }}\n\n{{ shop }}\n{% if shop == 'x' %}{{ totl | money }}{% endif %}\n{{ items[0].prodct }}",
    )]);
    for part in ["en/processed.txt:1: unknown variable \"ordr_id\"", "en/processed.txt:4: unknown variable \"totl\""] {
        assert!(lines.iter().any(|line| line == part), "{part}: {lines:?}");
    }
    let lines = faults(&[("en/processed.html", "a\n{% for item in items %}{{ item.prodct }}{% endfor %}")]);
    assert!(lines[0].starts_with("en/processed.html:2: ") && lines[0].contains("prodct"), "{lines:?}");
}
