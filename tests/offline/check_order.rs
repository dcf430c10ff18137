//! `orderd check --order`: what orderd reads from a document, and everything that is wrong with it.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
const DOCUMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/offline/documents");

/// The output and exit code of the command with this document on its standard input.
fn check(document: &[u8], arguments: &[&str]) -> (i32, String, String) {
    let mut command = crate::orderd();
    command.args(["check", "--config", CONFIG, "--order", "-"]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses its arguments ends without reading.
    let _ = child.stdin.take().unwrap().write_all(document);
    output(child.wait_with_output().unwrap())
}

fn output(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(document: &str, arguments: &[&str]) -> (i32, Value) {
    let (code, out, err) = check(document.as_bytes(), &[arguments, &["--format", "json"]].concat());
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

#[test]
fn each_value_of_a_shop_systems_order_is_shown_with_its_pointer() {
    let mut command = crate::orderd();
    command.args(["check", "--config", CONFIG, "--format", "shopify", "--order", &format!("{DOCUMENTS}/shopify.json")]);
    let (code, out, _) = output(command.output().unwrap());
    assert_eq!(code, 0, "{out}");
    let rows: Vec<_> = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for row in ["id /id 5920047712345", "items[0].price /line_items/0/price 14.50", "discount /total_discounts 5.00"] {
        assert!(rows.iter().any(|shown| shown == row), "{row}: {out}");
    }
    assert!(out.contains("4 pieces, goods 70.00, shipping 9.90, tax 7.29, discount 5.00: total 82.19 CAD"), "{out}");
    let document = std::fs::read_to_string(format!("{DOCUMENTS}/woocommerce.json")).unwrap();
    let (code, report) = json(&document, &["--format", "woocommerce"]);
    assert_eq!((code, &report["ok"], &report["order_format"]), (0, &true.into(), &"woocommerce".into()));
    assert_eq!((&report["amounts"]["total"], &report["amounts"]["shipping"]), (&"62.01".into(), &"4.12".into()));
    let customer = report["fields"].as_array().unwrap().iter().find(|field| field["field"] == "customer_id").unwrap();
    assert_eq!((&customer["pointer"], &customer["value"]), (&"/customer_id".into(), &Value::Null));
}

#[test]
fn everything_that_is_wrong_with_an_order_is_shown_at_once() {
    let (code, report) = json(r#"{"id": null, "product": "Pen", "quantity": 0, "price": "1,5", "total": 3}"#, &[]);
    let problems = report["problems"].as_array().unwrap().iter();
    let problems: Vec<_> = problems
        .map(|problem| {
            ["field", "pointer", "kind", "code"].map(|key| problem[key].as_str().unwrap().to_owned()).join(" ")
        })
        .collect();
    assert_eq!(
        problems,
        [
            "id /id malformed invalid_order",
            "quantity /quantity permanent invalid_quantity",
            "price /price malformed invalid_order"
        ]
    );
    assert_eq!((code, &report["ok"], &report["amounts"]), (1, &false.into(), &Value::Null));
    let (code, out, err) = check(b"{\"id\": 1, \"product\": \"\\u001b[2J\"}", &[]);
    assert!(code == 1 && err.contains("error: quantity (/quantity): invalid_order: is missing"), "{err}");
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'));
    // No fault hides another one.
    let document = br#"{"id": "", "event": "edited", "product": null, "quantity": 0, "price": " ", "items":
        [{"product": "", "quantity": 1}, {"product": "Pen", "quantity": "x", "price": null}]}"#;
    let (_, _, err) = check(document, &[]);
    for fault in [
        "error: id (/id): invalid_order: is empty\n",
        "error: event (/event): unsupported_event: ",
        "error: items (/items): ambiguous_items: ",
        "error: items[0].product (/items/0/product): invalid_order: is empty\n",
        "error: items[0].price (/items/0/price): invalid_order: is missing\n",
        "error: items[1].quantity (/items/1/quantity): invalid_order: ",
        "error: items[1].price (/items/1/price): invalid_order: is null\n",
    ] {
        assert!(err.contains(fault), "no {fault:?}:\n{err}");
    }
    for (document, code) in
        [(&b"[1]"[..], "invalid_order"), (b"", "invalid_order"), (b"\xff\xfe{\0", "unsupported_encoding")]
    {
        let (exit, out, _) = check(document, &["--format", "json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((exit, &report["problems"][0]["code"]), (1, &code.into()));
    }
}

#[test]
fn a_wrong_argument_is_a_usage_error() {
    assert_eq!(check(b"{}", &["--format", "shopfy"]).0, 64);
    let (code, _, err) = check(b"{}", &["--format", "nothing"]);
    assert!(code == 64 && err.contains("known are orderd, shopify, woocommerce"), "{err}");
    let arguments = |arguments: &[&str]| {
        output(crate::orderd().args(["check", "--config", CONFIG]).args(arguments).output().unwrap())
    };
    assert_eq!(arguments(&["--format", "shopify"]).0, 64);
    assert_eq!(arguments(&["--order", "/nowhere/order.json"]).0, 64);
    assert_eq!(arguments(&["--order", "-", "--connect"]).0, 64);
    let custom = [
        "--set",
        "formats.mine.id=/no",
        "--set",
        "formats.mine.product=/p",
        "--set",
        "formats.mine.quantity=/q",
        "--set",
        "formats.mine.price=/x",
    ];
    let (code, report) =
        json(r#"{"no": "A-1", "p": "Pen", "q": 2, "x": "1.20"}"#, &[&custom[..], &["--format", "mine"]].concat());
    assert_eq!((code, &report["amounts"]["total"]), (0, &"2.40".into()), "{report}");
}

/// Runs `orderd notify --preview processed` with this document.
fn notify(document: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = crate::orderd();
    command.args(["notify", "--config", CONFIG, "--preview", "processed", "--order", "-"]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(document.as_bytes());
    output(child.wait_with_output().unwrap())
}

const ORDER: &str =
    r#"{"id": 1, "product": "Pen", "quantity": 1, "price": 1, "notify": "sms", "phone": "call me", "locale": "?"}"#;
const CHANNELS: [&str; 10] = [
    "--set",
    "notify.email.type=smtp",
    "--set",
    "notify.email.address=127.0.0.1:1",
    "--set",
    "notify.email.from=a@example.com",
    "--set",
    "notify.email.tls=none",
    "--set",
    "notify.email.shop=Lamps",
];

#[test]
fn a_customer_who_cannot_be_notified_is_a_warning_and_the_order_is_accepted() {
    let (code, report) = json(ORDER, &CHANNELS);
    let codes: Vec<_> =
        report["warnings"].as_array().unwrap().iter().map(|warning| warning["code"].as_str().unwrap()).collect();
    assert_eq!((code, codes), (0, vec!["invalid_phone", "invalid_locale", "unknown_channel"]));
    let (code, report) = json(r#"{"id": 1, "product": "Pen", "quantity": 1, "price": 1}"#, &CHANNELS);
    assert_eq!((code, &report["warnings"][0]["code"]), (0, &"no_address".into()));
    assert_eq!(json(r#"{"id": 1, "event": "cancelled"}"#, &CHANNELS).1["warnings"], serde_json::json!([]));
}

#[test]
fn a_trial_needs_one_order_and_an_address_that_can_be_used() {
    let orders = format!("{ORDER}\n{ORDER}\n");
    let (code, _, err) = notify(&orders, &[]);
    assert!(code == 1 && err.contains("more than one order"), "{code} {err}");
    let (code, _, err) = check(orders.as_bytes(), &[]);
    assert!(code == 64 && err.contains("more than one order"), "{code} {err}");
    for address in ["foo", "foo@localhost", "a@example.com, b@example.com"] {
        let arguments = [&["--channel", "email", "--send-to", address][..], &CHANNELS].concat();
        let (code, out, err) = notify(ORDER, &arguments);
        assert!(code == 64 && out.is_empty() && err.contains("--send-to"), "{code} {out} {err}");
    }
}
