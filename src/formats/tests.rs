//! Documents in, orders or faults out: the formats that come with orderd, and those of a configuration.

use proptest::prelude::*;
use rust_decimal::Decimal;

use super::spec::{
    AmountSource, CancelledIf, EventSource, ItemsSpec, LineSpec, PriceSpec, Source, Spec, TextSource, Unit,
};
use super::*;
use crate::domain::{Amounts, MAX_ITEMS};

const SHOPIFY: &str = include_str!("../../tests/offline/documents/shopify.json");
const WOOCOMMERCE: &str = include_str!("../../tests/offline/documents/woocommerce.json");

fn built_in(name: &str) -> Format {
    Format::built_in(name).unwrap()
}

fn checked(format: &Format, document: &str) -> Result<Amounts, OrderFaults> {
    format.decode(document).and_then(|order| format.check(&order))
}

fn amounts(format: &Format, document: &str) -> Amounts {
    checked(format, document).unwrap_or_else(|faults| panic!("{faults}"))
}

fn shown(amounts: &Amounts) -> String {
    let charges = amounts.charges;
    let charge = |charge: Option<Decimal>| charge.map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let charges = [charges.shipping, charges.fees, charges.tax, charges.discount].map(charge).join(" ");
    format!("{} {charges} {} {}", amounts.goods, amounts.total, amounts.currency)
}

#[test]
fn an_order_of_shopify_is_read_whole() {
    let order = built_in("shopify").decode(SHOPIFY).unwrap();
    let lines: Vec<_> =
        order.items.iter().map(|item| (item.product.as_str(), item.quantity, item.price.to_string())).collect();
    let expected = [("Trail Mug - Green", 2, "14.50"), ("Canvas Bag", 1, "39.00"), ("Tip", 1, "2.00")];
    assert_eq!(lines, expected.map(|(product, quantity, price)| (product, quantity, price.to_owned())));
    assert_eq!(shown(&order.check().unwrap()), "70.00 9.90 - 7.29 5.00 82.19 CAD");
    assert_eq!((order.id.as_str(), order.customer_id.as_deref()), ("5920047712345", Some("7301122445566")));
    assert_eq!(order.email.as_deref(), Some("ines.duarte@example.com"));
    assert_eq!(order.placed_at, Some("2026-11-20T19:03:51Z".parse().unwrap()));
    assert!(order.extra.is_empty(), "addresses and notes are not passed on");
    let included = SHOPIFY.replace(r#""taxes_included": false"#, r#""taxes_included": true"#).replace("82.19", "74.90");
    assert_eq!(shown(&amounts(&built_in("shopify"), &included)), "70.00 9.90 - 7.29 5.00 74.90 CAD");
}

#[test]
fn an_order_of_shopify_with_duties_and_additional_fees_has_them_in_its_total() {
    let money = |amount: &str| {
        format!(
            r#"{{"shop_money": {{"amount": "{amount}", "currency_code": "CAD"}},
                "presentment_money": {{"amount": "1.00", "currency_code": "USD"}}}}"#
        )
    };
    let field = |name: &str, amount: &str| (format!("\"{name}\": null"), format!("\"{name}\": {}", money(amount)));
    let [duties, fees] =
        [field("original_total_duties_set", "6.00"), field("original_total_additional_fees_set", "3.50")];
    assert!(SHOPIFY.contains(&duties.0) && SHOPIFY.contains(&fees.0));
    let document = SHOPIFY.replace(&duties.0, &duties.1).replace(&fees.0, &fees.1);
    let document = document.replace(r#""total_price": "82.19""#, r#""total_price": "91.69""#);
    assert_eq!(shown(&amounts(&built_in("shopify"), &document)), "70.00 9.90 9.50 7.29 5.00 91.69 CAD");
}

#[test]
fn an_order_of_woocommerce_is_read_whole_although_its_amounts_are_rounded_one_by_one() {
    let order = built_in("woocommerce").decode(WOOCOMMERCE).unwrap();
    let lines: Vec<_> =
        order.items.iter().map(|item| (item.quantity, item.price.to_string(), item.total.to_string())).collect();
    let expected = [(3, "15.043333", "45.13"), (2, "2.935", "5.87")];
    assert_eq!(lines, expected.map(|(quantity, price, total)| (quantity, price.to_owned(), total.to_owned())));
    assert_eq!(shown(&order.check().unwrap()), "51.00 4.12 2.10 9.90 5.10 62.01 EUR");
    assert_eq!((order.id.as_str(), order.customer_id), ("8127", None), "a guest is no customer");
    assert_eq!(order.placed_at, Some("2026-11-21T09:15:42Z".parse().unwrap()));
    let wrong = WOOCOMMERCE.replace("62.01", "62.07");
    assert_eq!(checked(&built_in("woocommerce"), &wrong).unwrap_err().code(), "total_mismatch");
}

/// Three pieces at 1,500 yen each and two for 980, with 10 % of tax included, as WooCommerce states them without decimals.
const YEN: &str = r#"{"id": 9, "currency": "JPY", "prices_include_tax": true, "discount_total": "0", "shipping_total": "455",
    "shipping_tax": "45", "cart_tax": "587", "total": "6960", "total_tax": "632",
    "line_items": [{"name": "Bowl", "quantity": 1, "subtotal": "1364"}, {"name": "Plate", "quantity": 1, "subtotal": "1364"},
                   {"name": "Cup", "quantity": 1, "subtotal": "1364"}, {"name": "Lid", "quantity": 2, "subtotal": "1782"}],
    "fee_lines": []}"#;

#[test]
fn an_order_of_woocommerce_in_a_currency_without_decimals_is_accepted() {
    assert_eq!(shown(&amounts(&built_in("woocommerce"), YEN)), "5874 455 - 632 0 6960 JPY");
    let stated = |total: &str| checked(&built_in("woocommerce"), &YEN.replace("\"6960\"", &format!("\"{total}\"")));
    // The sum is 6961; four lines, shipping, two taxes, the discount and the total itself may each differ by half a yen.
    assert!(stated("6957").is_ok() && stated("6965").is_ok());
    assert_eq!(stated("6956").unwrap_err().code(), "total_mismatch");
    assert_eq!(stated("6960.00").unwrap_err().code(), "total_mismatch", "the shop has decimals");
    let fees = YEN.replace("\"fee_lines\": []", r#""fee_lines": [{"total": "0"}, {"total": "0"}]"#);
    let stated = fees.replace("\"6960\"", "\"6956\"");
    assert!(checked(&built_in("woocommerce"), &stated).is_ok(), "each fee is rounded by itself");
}

#[test]
fn orders_of_two_shops_with_the_same_id_are_different_orders_if_their_formats_have_a_prefix() {
    let spec = Spec { id_prefix: "shop-b-".to_owned(), ..built_in("woocommerce").spec().unwrap().clone() };
    let format = Format::new("shop_b", spec.clone());
    assert_eq!(format.decode(WOOCOMMERCE).unwrap().id.as_str(), "shop-b-8127");
    assert_eq!(format.order_id(WOOCOMMERCE).unwrap().as_str(), "shop-b-8127");
    let explanation = format.explain(WOOCOMMERCE, None);
    assert_eq!(explanation.fields[0].value.as_deref(), Some("shop-b-8127"));
    let long = WOOCOMMERCE.replace("\"id\": 8127,", &format!("\"id\": \"{}\",", "8".repeat(194)));
    assert_eq!(format.decode(&long).unwrap_err().code(), "invalid_id", "with its prefix it is too long");
    assert!(built_in("woocommerce").decode(&long).is_ok());
    assert_eq!(serde_json::to_value(&spec).unwrap()["id"], serde_json::json!({"pointer": "/id", "prefix": "shop-b-"}));
}

#[test]
fn a_cancellation_is_read_from_the_documents_of_shop_systems() {
    let read = |format: &Format, document: &str, stated| match format.read(document, stated) {
        Ok(OrderDocument::Placed(order)) => format!("placed {}", order.id),
        Ok(OrderDocument::Cancelled(id)) => format!("cancelled {id}"),
        Err(faults) => faults.code().to_owned(),
    };
    let (shopify, woocommerce) = (built_in("shopify"), built_in("woocommerce"));
    let at = SHOPIFY.replace("\"cancelled_at\": null", "\"cancelled_at\": \"2026-11-22T08:00:00-05:00\"");
    assert_ne!(at, SHOPIFY);
    let status = |status: &str| {
        let document = WOOCOMMERCE.replace("\"status\": \"processing\"", &format!("\"status\": \"{status}\""));
        assert!(status == "processing" || document != WOOCOMMERCE);
        document
    };
    let id = "5920047712345";
    for (format, document, stated, expected) in [
        (&shopify, SHOPIFY.to_owned(), None, format!("placed {id}")),
        (&shopify, at.clone(), None, format!("cancelled {id}")),
        (&shopify, SHOPIFY.to_owned(), Some(OrderEvent::Cancelled), format!("cancelled {id}")),
        (&shopify, at, Some(OrderEvent::Other), format!("cancelled {id}")),
        (&shopify, SHOPIFY.to_owned(), Some(OrderEvent::Other), "unsupported_event".to_owned()),
        (&shopify, format!("{{\"id\": {id}, \"cancelled_at\": \"now\"}}"), None, format!("cancelled {id}")),
        (&shopify, "{\"cancelled_at\": \"now\"}".to_owned(), None, "invalid_order".to_owned()),
        (&woocommerce, status("processing"), None, "placed 8127".to_owned()),
        (&woocommerce, status("cancelled"), None, "cancelled 8127".to_owned()),
        (&woocommerce, status("refunded"), None, "placed 8127".to_owned()),
        (&woocommerce, "{\"id\": 8127}".to_owned(), Some(OrderEvent::Cancelled), "cancelled 8127".to_owned()),
    ] {
        assert_eq!(read(format, &document, stated), expected, "{} {stated:?} {document}", format.name());
    }
    let named = EventSource { pointer: "/what".parse().unwrap(), cancelled: CancelledIf::Named };
    let spec = Spec { event: Some(named), ..shopify.spec().unwrap().clone() };
    let format = Format::new("named", spec);
    for (event, expected) in
        [("null", "invalid_order"), ("\"CANCELLED\"", "cancelled 7"), ("\"edited\"", "unsupported_event")]
    {
        assert_eq!(read(&format, &format!("{{\"id\": 7, \"what\": {event}}}"), None), expected);
    }
}

#[test]
fn the_faults_of_a_document_name_its_order() {
    for wrong in [WOOCOMMERCE.replace("62.01", "63.01"), WOOCOMMERCE.replace("\"quantity\": 3", "\"quantity\": 0")] {
        assert_eq!(checked(&built_in("woocommerce"), &wrong).unwrap_err().order_id.unwrap().as_str(), "8127");
    }
    let without = WOOCOMMERCE.replace("\"id\": 8127,", "");
    assert_eq!(built_in("woocommerce").decode(&without).unwrap_err().order_id, None);
}

#[test]
fn the_id_of_an_order_is_read_even_if_the_rest_is_invalid() {
    let document = SHOPIFY.replace("\"quantity\": 2", "\"quantity\": \"two\"");
    assert!(built_in("shopify").decode(&document).is_err());
    assert_eq!(built_in("shopify").order_id(&document).unwrap().as_str(), "5920047712345");
    assert_eq!(Format::Own.order_id(r#"{"id": 7}"#).unwrap().as_str(), "7");
    assert_eq!(built_in("shopify").order_id("{\"id\": null}"), None);
    let customer = |format: &Format, document: &str| format.customer_id(document);
    assert_eq!(customer(&built_in("shopify"), r#"{"customer":{"id":7},"line_items":1}"#).as_deref(), Some("7"));
    assert_eq!(customer(&built_in("woocommerce"), r#"{"customer_id":0}"#), None, "a guest");
    assert_eq!(customer(&Format::Own, &format!(r#"{{"customer_id":"{}"}}"#, "x".repeat(201))), None);
}

fn pointer(text: &str) -> Pointer {
    text.parse().unwrap()
}

fn at(text: &str) -> Source {
    Source::Pointer(pointer(text))
}

fn money(text: &str, unit: Unit) -> AmountSource {
    AmountSource { parts: vec![pointer(text)], unit }
}

/// A format with cents, a constant currency and several places of charges.
fn cents() -> Format {
    let line = LineSpec {
        product: at("/sku"),
        quantity: at("/qty"),
        price: PriceSpec::Each(money("/unit/cents", Unit::Minor)),
    };
    Format::new(
        "cents",
        Spec {
            items: Some(ItemsSpec { list: pointer("/order/lines"), line }),
            email: Some(TextSource { source: at("/buyer/mail"), none: None }),
            currency: Some(Source::Constant("\"EUR\"".to_owned())),
            notify: Some(Source::Constant("\"sms\"".to_owned())),
            priority: Some(at("/order/express")),
            total: Some(money("/order/sum", Unit::Minor)),
            shipping: Some(AmountSource {
                parts: vec![pointer("/post"), pointer("/extras/*/cents")],
                unit: Unit::Minor,
            }),
            ..Spec::of_id(TextSource { source: at("/order/no"), none: None })
        },
    )
}

const CENTS: &str = r#"{"order": {"no": "A-1", "express": 1, "sum": 2640, "lines": [
    {"sku": "pen", "qty": "2", "unit": {"cents": 1045}}, {"sku": "ink", "qty": 1, "unit": {"cents": "50"}}]},
    "buyer": {"mail": ""}, "post": 450, "extras": [{"cents": 25}, {"cents": null}, {"cents": 25}]}"#;

#[test]
fn minor_units_constants_and_charges_in_several_places_are_read() {
    let order = cents().decode(CENTS).unwrap();
    assert_eq!(shown(&order.check().unwrap()), "21.40 5.00 - - - 26.40 EUR");
    assert_eq!((order.priority, order.email.as_deref(), order.notification_channel()), (true, None, "sms"));
}

#[test]
fn every_fault_of_a_document_is_reported_with_its_pointer() {
    let document = CENTS
        .replace(r#""no": "A-1""#, r#""no": null"#)
        .replace(r#""express": 1"#, r#""express": "soon""#)
        .replace(r#""qty": "2""#, r#""qty": 0"#)
        .replace(r#"{"cents": "50"}"#, r#"{"cents": "4111 1111"}"#)
        .replace("\"post\": 450", "\"post\": -1");
    let faults = cents().decode(&document).unwrap_err();
    let found: Vec<_> = faults
        .faults
        .iter()
        .map(|fault| (fault.field.as_str(), fault.pointer.as_deref().unwrap(), fault.problem.code()))
        .collect();
    assert_eq!(
        found,
        [
            ("id", "/order/no", "invalid_order"),
            ("items[0].quantity", "/order/lines/0/qty", "invalid_quantity"),
            ("items[1].price", "/order/lines/1/unit/cents", "invalid_order"),
            ("priority", "/order/express", "invalid_order"),
            ("shipping", "/post", "invalid_shipping"),
        ]
    );
    assert!(faults.is_malformed() && faults.code() == "invalid_order");
    let text = faults.to_string();
    assert!(text.contains("id (/order/no) is null") && !text.contains("4111"), "{text}");
    let broken = checked(&cents(), &CENTS.replace("2640", "2641")).unwrap_err();
    assert_eq!((broken.is_malformed(), broken.code()), (false, "total_mismatch"));
    assert_eq!(broken.faults[0].pointer.as_deref(), Some("/order/sum"));
}

#[test]
fn hostile_documents_are_refused_within_limits() {
    let lines = |count: usize| vec![r#"{"sku": "x", "qty": "many", "unit": 5}"#; count].join(",");
    let with = |lines: &str| format!(r#"{{"order": {{"no": 1, "lines": [{lines}]}}}}"#);
    let faults = cents().decode(&with(&lines(MAX_ITEMS))).unwrap_err();
    assert_eq!(faults.faults.len(), 100);
    assert!(faults.to_string().len() < 4096);
    assert_eq!(cents().decode(&with(&lines(MAX_ITEMS + 1))).unwrap_err().code(), "invalid_items");
    assert_eq!(cents().decode(&with("")).unwrap_err().code(), "invalid_items");
    for document in ["", "[]", "7", "{\"order\":", "{\"order\": []}", "{\"order\": 5}", &with("5, null, [], \"x\"")] {
        assert!(cents().decode(document).unwrap_err().is_malformed(), "{document}");
    }
    let twice = CENTS.replace(r#""no": "A-1""#, r#""no": "A-1", "no": "A-2""#);
    assert!(cents().decode(&twice).unwrap_err().to_string().contains("given twice"));
    let deep = with(&format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)));
    assert!(cents().decode(&deep).unwrap_err().is_malformed());
    let mixed = r#"{"id": "1", "currency": "EUR", "line_items": [{"name": "a", "quantity": 1, "price": {"amount": "1", "currency": "USD"}}]}"#;
    assert_eq!(built_in("shopify").decode(mixed).unwrap_err().code(), "invalid_currency");
}

#[test]
fn an_explanation_shows_each_value_with_its_pointer() {
    let explanation = built_in("shopify").explain(SHOPIFY, None);
    let field = |name: &str| {
        let reading = explanation.fields.iter().find(|reading| reading.field == name).unwrap();
        (reading.pointer.as_deref(), reading.value.as_deref())
    };
    assert_eq!(field("id"), (Some("/id"), Some("5920047712345")));
    assert_eq!(field("items[1].product"), (Some("/line_items/1/name"), Some("Canvas Bag")));
    assert_eq!(field("shipping"), (Some("/shipping_lines/*/price"), Some("9.90")));
    let Explained::Placed(amounts) = explanation.result.unwrap() else { panic!("it was placed") };
    assert_eq!(amounts.total.to_string(), "82.19");
    let explanation = cents().explain(CENTS, None);
    assert!(explanation.fields.iter().any(|reading| reading.field == "currency" && reading.pointer.is_none()));
    let own = Format::Own.explain(r#"{"id": 1, "product": "p", "quantity": 0, "price": "x"}"#, None);
    assert_eq!(own.result.unwrap_err().faults.len(), 2);
}

/// JSON of a field in orderd's own format: mostly valid.
fn any_value() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "1",
        "\"3\"",
        "\"10.50\"",
        "0.1",
        "\"Pen\"",
        "\"\"",
        "null",
        "true",
        "\"EUR\"",
        "-1",
        "1e400",
        "[]",
        "{}",
        "\"x\\u0000\"",
        "\"2026-11-22T08:00:00Z\"",
        "99999999999999999999",
    ])
}

fn any_document() -> impl Strategy<Value = String> {
    let names = [
        "id",
        "product",
        "quantity",
        "price",
        "total",
        "customer_id",
        "email",
        "phone",
        "locale",
        "currency",
        "placed_at",
        "priority",
        "notify",
    ];
    let fields = prop::collection::vec((prop::sample::select(names.to_vec()), any_value()), 0..7);
    let items = prop::option::of(prop::collection::vec(
        prop::collection::vec((prop::sample::select(vec!["product", "quantity", "price"]), any_value()), 0..4),
        0..3,
    ));
    let object = |fields: Vec<(&str, &str)>| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        fields.join(",")
    };
    (any::<bool>(), fields, items).prop_map(move |(valid, fields, items)| {
        let mut parts = vec![object(fields)];
        if valid {
            parts.push(r#""id":"o","product":"p","quantity":2,"price":"1.50""#.to_owned());
        }
        if let Some(items) = items {
            let items: Vec<_> = items.into_iter().map(|fields| format!("{{{}}}", object(fields))).collect();
            parts.push(format!("\"items\":[{}]", items.join(",")));
        }
        parts.retain(|part| !part.is_empty());
        format!("{{{}}}", parts.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn an_explanation_of_orderds_own_format_agrees_with_its_decoder(document in any_document()) {
        let decoded = checked(&Format::Own, &document);
        let mapping = Mapping::new(OWN, super::builtin::spec(OWN).unwrap());
        let explained = super::read::explain(&mapping, &document, None).result;
        prop_assert_eq!(explained.is_ok(), decoded.is_ok(), "{} {:?} {:?}", document, explained, decoded);
        if let (Ok(explained), Ok(decoded)) = (explained, decoded) {
            prop_assert_eq!(explained, Explained::Placed(decoded));
        }
    }
}
