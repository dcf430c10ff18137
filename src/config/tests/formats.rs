//! Formats of orders, and the consumers that use them.

use super::*;
use crate::domain::OrderDocument;
use crate::formats::spec::Spec;

/// The default file with this section.
fn with_format(section: &str) -> String {
    format!("{DEFAULT_FILE}\n[formats.shop]\n{section}\n")
}

const ITEMS: &str = "[formats.shop.items]\nlist = \"/lines\"\nproduct = \"name\"\nquantity = \"n\"\nprice = \"p\"";

#[test]
fn everything_that_is_wrong_with_a_format_is_reported() {
    let file = with_format(&format!(
        "id = \"id\"\ncustomer_id = {{ pointer = \"/c\", nil = \"0\" }}\ncurrency = {{ value = 1.5 }}\ntotal = [\"/a\", \"/b\"]\n\
         shipping = []\ntax = \"/a/*\"\nemail = \"/a/*\"\nrounding = 0.01\nunit = \"cents\"\nprice = \"/p\"\nidd = \"/x\"\n{}",
        ITEMS.replace("\"p\"", "\"/p\"").replace("quantity", "qantity")
    ));
    let problems = problems(&file);
    let expected = [
        "formats.shop.id: must begin with \"/\", such as \"/order/id\", is \"id\"",
        "formats.shop.customer_id: must have no key but \"pointer\", \"none\" and \"value\", has \"nil\"",
        "formats.shop.currency: must be a text, a whole number or a boolean, is 1.5",
        "formats.shop.total: must be one pointer",
        "formats.shop.shipping: must have 1 to 16 pointers, has 0",
        "formats.shop.email: must not contain \"*\" here",
        "formats.shop.rounding: must be a decimal in quotes",
        "formats.shop.unit: must be one of \"major\" and \"minor\"",
        "formats.shop.product: is missing",
        "formats.shop.quantity: is missing",
        "formats.shop.idd: unknown key",
        "formats.shop.items.price: must not begin with \"/\"",
        "formats.shop.items.quantity: is missing",
        "formats.shop.items.qantity: unknown key",
    ];
    for expected in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn a_format_of_another_shop_is_a_built_in_one_with_a_prefix() {
    let spec = |keys: &str| valid(&with_format(keys)).formats["shop"].spec().unwrap().clone();
    let woocommerce = Spec::built_in("woocommerce").unwrap();
    assert_eq!(spec("base = \"woocommerce\""), woocommerce);
    let id_prefix = "shop-b-".to_owned();
    assert_eq!(
        spec("base = \"woocommerce\"\nid = { prefix = \"shop-b-\" }"),
        Spec { id_prefix: id_prefix.clone(), ..woocommerce.clone() }
    );
    let numbered =
        spec("base = \"woocommerce\"\nid = { pointer = \"/number\", prefix = \"shop-b-\" }\nemail = \"/mail\"");
    assert_eq!((numbered.id_prefix, numbered.total), (id_prefix, woocommerce.total));
    assert_ne!((numbered.id, numbered.email), (woocommerce.id, woocommerce.email));
    let problem = |keys: &str| problems(&with_format(&format!("{keys}\n{ITEMS}")));
    assert!(problem("base = \"magento\"\nid = \"/id\"")[0].starts_with("formats.shop.base: must be one of"));
    let without = problem("id = { prefix = \"b\" }");
    assert!(without[0].starts_with("formats.shop.id: must have the key \"pointer\""), "{without:?}");
    let long = format!("id = {{ pointer = \"/id\", prefix = \"{}\" }}", "x".repeat(65));
    assert!(problem(&long)[0].starts_with("formats.shop.id: prefix must"), "{:?}", problem(&long));
}

#[test]
fn cents_in_a_format_with_a_base_are_not_read_as_euros() {
    let format = |keys: &str| valid(&with_format(keys)).formats["shop"].clone();
    let order = r#"{"id": 1, "currency": "EUR", "total_price": 2480, "shipping_lines": [{"price": 490}],
        "line_items": [{"name": "Lamp", "quantity": 1, "price": 1990}]}"#;
    let total = |keys: &str| {
        let OrderDocument::Placed(order) = format(keys).read(order, None).unwrap() else { panic!("{keys}") };
        order.check().unwrap().total.to_string()
    };
    assert_eq!(total("base = \"shopify\"\nunit = \"minor\""), "24.80");
    assert_eq!(total("base = \"shopify\"\nunit = \"minor\"\nshipping = \"/shipping_lines/*/price\""), "24.80");
    assert_eq!(total("base = \"shopify\"\nunit = \"major\""), total("base = \"shopify\""));
    for base in ["orderd", "shopify", "woocommerce"] {
        let spec = serde_json::to_value(format(&format!("base = {base:?}\nunit = \"minor\"")).spec()).unwrap();
        let amounts = [&spec["price"], &spec["items"]["price"], &spec["items"]["total"]]
            .into_iter()
            .chain(["total", "shipping", "fees", "tax", "discount"].map(|key| &spec[key]));
        for amount in amounts.filter(|amount| !amount.is_null()) {
            assert_eq!(amount["unit"], "minor", "{base}: {spec}");
        }
    }
}

#[test]
fn consumers_of_different_formats_whose_order_ids_may_be_the_same_cause_a_warning() {
    let file =
        |format: &str, keys: &str| with_format(keys).replacen("format = \"orderd\"", &format!("format = {format}"), 1);
    let base = "base = \"woocommerce\"";
    let found = warnings(&file("\"shop\"", base));
    assert!(
        found.len() == 1 && found[0].starts_with("consumers.priority.format: has the format \"orderd\""),
        "{found:?}"
    );
    assert_eq!(warnings(&file("\"shop\"", &format!("{base}\nid = {{ prefix = \"b-\" }}"))), [""; 0]);
    assert_eq!(warnings(&file("\"orderd\"", base)), [""; 0]);
}

#[test]
fn a_consumer_of_orders_has_a_format_and_others_have_none() {
    let file = |section: &str, format: &str| {
        with_format(section).replacen("format = \"orderd\"", &format!("format = {format}"), 1)
    };
    let shop = format!("id = \"/id\"\n{ITEMS}");
    let named = |format: &str| valid(&file(&shop, format)).consumers["order"].format.clone().unwrap();
    assert_eq!((named("\"shop\"").name(), named("\"woocommerce\"").name()), ("shop", "woocommerce"));
    let unknown = problems(&file(&shop, "\"shopfy\""));
    assert!(unknown[0].contains("did you mean \"shopify\"?"), "{unknown:?}");
    assert_eq!(
        problems(&file("id = \"/id\"", "\"shop\"")).len(),
        1,
        "a consumer of a wrong format is not a second problem"
    );
    let analytics =
        DEFAULT_FILE.replacen("queue = \"analytics_queue\"", "queue = \"analytics_queue\"\nformat = \"orderd\"", 1);
    assert_eq!(problems(&analytics), ["consumers.analytics.format: unknown key"]);
    for name in ["shopify", "json"] {
        let named = with_format(&shop).replace("formats.shop", &format!("formats.{name}"));
        assert!(problems(&named)[0].contains("must have another name"), "{name}");
    }
}
