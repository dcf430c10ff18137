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
        .and_then(|files| Templates::new(&files.files, &options()))
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
        "1 x Laptop: 1.299,00\u{a0}€\n2 x Maus (je 4,95\u{a0}€): 9,90\u{a0}€\n\nZwischensumme: 1.308,90\u{a0}€\n",
        "Versand: 4,90\u{a0}€\nGesamtbetrag: 1.313,80\u{a0}€\n\nWenn",
    ] {
        assert!(mail.text.contains(part), "{part}: {}", mail.text);
    }
    let html = mail.html.unwrap();
    assert!(html.contains("lang=\"de\"") && html.contains("1.313,80") && html.contains("Lamps &amp; More"), "{html}");
    let english = built_in().mail(&content(&ORDER.replace("de-AT", "pl"))).unwrap();
    assert!(english.text.contains("22 November 2026") && english.text.contains("€1,313.80"), "{}", english.text);
    assert!(english.text.starts_with("Hello,\n\nThank you"), "{}", english.text);
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
        ("long", "{% for a in range(6000) %}{{ body.text }}{% endfor %}"),
    ] {
        let directory = directory(&[(&format!("en/{name}.txt"), &format!("Subject: x\n\n{body}"))]);
        let templates = Templates::new(&read_directory(directory.path()).unwrap().files, &options()).unwrap();
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
    let templates = Templates::new(&read_directory(directory.path()).unwrap().files, &options()).unwrap();
    assert_eq!(templates.check(), Vec::new());
    let english = templates.mail(&content(r#"{"event":"processed","order_id":"1"}"#)).unwrap();
    assert!(english.text.starts_with("== Lamps & More ==\nHello,\n\nThank you"), "{}", english.text);
    let french =
        templates.mail(&content(r#"{"event":"shipped","order_id":"1","locale":"fr","parcel":"P-1"}"#)).unwrap();
    assert_eq!((french.subject.as_str(), french.text.trim(), french.html), ("Commande 1", "P-1", None));
    assert!(read_directory(&directory.path().join("none")).is_err());
    let changed = read_directory(directory.path()).unwrap().files.changed();
    assert!(TemplateFiles::built_in().changed().is_empty() && changed.contains_key("fr/shipped.txt"), "{changed:?}");
}

#[test]
fn a_field_that_not_every_event_has_is_refused_with_what_to_write_instead() {
    let lines = faults(&[("en/cancelled.txt", "Subject: x\n\n{% if body.gift %}a gift{% endif %}\n")]);
    assert!(
        lines.len() == 1 && lines[0].starts_with("en/cancelled.txt:3: ") && lines[0].contains("is defined"),
        "{lines:?}"
    );
    let mended = "Subject: x\n\n{% if body.gift is defined %}a gift{% endif %}{{ body.parcel | default(\"\") }}\n";
    assert_eq!(faults(&[("en/cancelled.txt", mended)]), [""; 0]);
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

#[test]
fn nothing_in_an_order_breaks_out_through_filters_the_whole_body_or_lists() {
    let source = "{{ order_id | e }} {{ body }} {{ body | tojson }} {{ body.list | join(' ') }} {{ body.k | title }} {{ body.k | trim }}\n\
        {% for key, value in body.map | items %}{{ key }}={{ value }}{% endfor %}{% set x = order_id ~ body.k %}{{ x }}";
    let directory = directory(&[
        ("en/own.txt", &format!("Subject: {{{{ body }}}}\n\n{source}")),
        ("en/own.html", &format!("<p title=\"{{{{ body.k }}}}\" id=\"{{{{ body | tojson }}}}\">{source}")),
        ("en/own.short.txt", "{{ body.k | e }}"),
    ]);
    let templates = Templates::new(&read_directory(directory.path()).unwrap().files, &options()).unwrap();
    assert_eq!(templates.check(), Vec::new());
    let hostile = "x\r\n\r\nBcc: eve\u{2028}\u{85}\u{202e}\u{2066}\u{200b}\" onload='1'<b>{{ shop }}";
    let event = serde_json::json!({"event": "own", "order_id": hostile, "k": hostile, "list": [hostile, [hostile]],
        "map": {hostile: hostile}});
    let mail = templates.mail(&content(&event.to_string())).unwrap();
    let (html, short) = (mail.html.unwrap(), templates.short(&content(&event.to_string())).unwrap());
    for (output, lines) in [(&mail.subject, 1), (&mail.text, 2), (&html, 2), (&short, 1)] {
        assert_eq!(output.lines().count(), lines, "{output:?}");
        assert!(!output.contains(['\r', '\u{2028}', '\u{85}', '\u{202e}', '\u{2066}', '\u{200b}']), "{output:?}");
    }
    assert!(
        !html.contains("<b>")
            && !html.contains("onload='")
            && !html.contains("\\\" onload")
            && !html.contains("  \" onload"),
        "{html}"
    );
}

#[test]
fn an_order_of_a_thousand_lines_with_long_words_becomes_an_e_mail() {
    let line = serde_json::json!({"product": "<&'\"".repeat(120), "quantity": 1, "price": "1.00", "total": "1.00"});
    let order =
        serde_json::json!({"event": "processed", "items": vec![line; 1000], "total": "1000", "currency": "EUR"});
    let mail = built_in().mail(&content(&order.to_string())).unwrap();
    assert!(mail.text.lines().count() > 1000);
    assert!(mail.html.unwrap().matches("&lt;&amp;").count() >= 1000);
}

#[test]
fn templates_of_own_events_are_checked_and_may_use_any_field() {
    let right = "Subject: {{ body.parcel.number }}\n\n{{ body.at | date }} {{ body.price | money }} {{ body.count * 2 }}\
        {% for parcel in body.parcels %}{{ parcel.weight + 1 }} {{ parcel.name | upper }}{% endfor %}\
        {% if body.count > 3 %}{{ body.list | join(', ') }}{% endif %}{{ body | tojson }}{{ total | money }}\
        {% for key, value in body.map | items %}{{ key }}{% endfor %}{% if body.a == 'b' %}{{ body.c[0] }}{% endif %}";
    assert_eq!(faults(&[("en/shipped.txt", right)]), Vec::<String>::new());
    for (line, problem) in [
        ("{% if body.rare == 'x' %}{{ body.name | uper }}{% endif %}", "\"uper\""),
        ("{% if body.rare is odditee %}{% endif %}", "\"odditee\""),
        ("{{ order_id | money }}", "amount"),
        ("{{ items[0].prodct }}", "prodct"),
        ("{% if body.rare == 'x' %}{% include 'footer.txt' %}{% endif %}", "footer.txt"),
        ("{{ parcel }}", "\"parcel\""),
        ("{{ body.name | safe }}", "\"safe\""),
        ("{% autoescape false %}{{ body.name }}{% endautoescape %}", "autoescape"),
        ("{{ total | money(1, 2) }}", "argument"),
    ] {
        let found = faults(&[("de/shipped.txt", &format!("Subject: x\n\n{line}\n"))]);
        assert!(
            found.iter().any(|fault| fault.starts_with("de/shipped.txt:3: ") && fault.contains(problem)),
            "{line}: {found:?}"
        );
    }
}

#[test]
fn a_wrong_filter_is_found_in_a_part_that_only_some_orders_reach() {
    for part in [
        "{% if total is none %}{{ order_id | money }}{% endif %}",
        "{% if not items %}{{ order_id | date }}{% endif %}",
        "{% if items %}{% else %}{{ event | money }}{% endif %}",
        "{% if customer_id is none and total %}{{ event | money }}{% endif %}",
        "{% if tax and not tax_included %}{{ event | money }}{% endif %}",
        "{% if reason %}{{ reason | time }}{% endif %}",
        "{% if event == 'processed' %}{{ 1 | nosuch }}{% endif %}",
        "{% for item in items if item.total is none %}{{ item.product | money }}{% endfor %}",
    ] {
        let found = faults(&[("en/cancelled.html", &format!("\n{part}")), ("en/cancelled.txt", "Subject: x\n\nx")]);
        assert!(found.iter().any(|fault| fault.starts_with("en/cancelled.html:2: ")), "{part}: {found:?}");
    }
}

/// What a reader sees of an HTML part: one line for each paragraph and each row.
fn seen(html: &str) -> Vec<String> {
    let mut text = String::new();
    for part in html[html.find("<body").unwrap()..].split('<').skip(1) {
        let (tag, rest) = part.split_once('>').unwrap();
        text.push_str(if matches!(tag, "/p" | "/tr" | "br") { "\n" } else { "" });
        text.push_str(&rest.replace('\n', ""));
    }
    let text = text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_text_and_the_html_of_an_e_mail_say_the_same_in_every_language_for_every_order() {
    for language in ["en", "de"] {
        for event in ["processed", "cancelled", "failed"] {
            for sample in samples(event) {
                let mut sample = sample;
                sample.recipient.locale = Some(language.to_owned());
                let mail = built_in().mail(&sample).unwrap();
                let plain = |text: &str| -> String {
                    text.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect::<String>().replace("×", "x")
                };
                let text: Vec<String> = mail.text.lines().map(plain).collect();
                let text = text.concat().replace("--", "");
                let html = seen(mail.html.as_deref().unwrap())[1..].concat().replace('×', "x");
                assert_eq!(plain(&html), text, "{language} {event}: {mail:?}");
                assert!(!mail.text.contains("\n\n\n") && !mail.text.contains("  "), "{:?}", mail.text);
                assert!(!mail.subject.is_empty() && !templates_short(&sample).contains('\u{a0}'));
            }
        }
    }
}

fn templates_short(sample: &Content) -> String {
    built_in().short(sample).unwrap()
}
