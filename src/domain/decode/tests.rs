//! What producers send, and what the decoder makes of it.

use rust_decimal::Decimal;

use super::*;

/// An order in which one field has this JSON.
fn with(field: &str, json: &str) -> Result<Order, DecodeError> {
    let mut fields = vec![("id", "1"), ("product", "\"p\""), ("quantity", "3"), ("price", "400")];
    match fields.iter_mut().find(|(name, _)| *name == field) {
        Some(known) => known.1 = json,
        None => fields.push((field, json)),
    }
    let fields: Vec<String> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
    Order::decode(format!("{{{}}}", fields.join(",")).as_bytes())
}

#[test]
fn every_optional_field_may_be_null_or_empty() {
    for field in ["priority", "customer_id", "email", "currency", "placed_at", "notify"] {
        for json in ["null", "\"\""] {
            with(field, json).unwrap().check().unwrap();
        }
    }
}

#[test]
fn a_quantity_is_read_as_a_number_or_as_text() {
    for json in ["3", "\"3\"", "\" 3 \"", "\"+3\"", "\"3.0\"", "3.0", "3e0", "0.3e1", "\"\\u0033\""] {
        assert_eq!(with("quantity", json).unwrap().items[0].quantity, 3, "{json}");
    }
    for json in ["\"3.5\"", "3.5", "\"three\"", "\"\"", "null", "true", "[3]", "{}", "\"0x3\"", "\"1_000\"", "3e-1"] {
        let error = with("quantity", json).unwrap_err();
        assert!(matches!(error, DecodeError::Field { field: "quantity", .. }), "{json}: {error}");
        assert_eq!(error.code(), "invalid_order");
    }
    for json in ["0", "\"-4\"", "1000000000001", "99999999999999999999", "-99999999999999999999", "1e400"] {
        assert_eq!(with("quantity", json).unwrap().check().unwrap_err().code(), "invalid_quantity", "{json}");
    }
}

#[test]
fn a_price_is_read_in_every_notation_that_json_allows() {
    let zeros = format!("\"67.2{}\"", "0".repeat(40));
    for (json, expected) in [
        ("4e2", "400"),
        ("\"4E+2\"", "400"),
        ("\" 400.00 \"", "400"),
        ("400.000", "400"),
        ("0e400", "0"),
        (zeros.as_str(), "67.2"),
        (zeros.trim_matches('"'), "67.2"),
    ] {
        assert_eq!(with("price", json).unwrap().items[0].price, expected.parse().unwrap(), "{json}");
    }
    for json in ["1e400", "1e-400", "0.00000000000000000000000000001", "\"79228162514264337593543950336\"", "-0.01"] {
        assert_eq!(with("price", json).unwrap().check().unwrap_err().code(), "invalid_price", "{json}");
    }
    for json in ["\"cheap\"", "\"NaN\"", "\"Infinity\"", "\"1,5\"", "\"1_0\"", "\"$5\"", "null", "true", "{\"a\":[1]}"]
    {
        let error = with("price", json).unwrap_err();
        assert!(matches!(error, DecodeError::Field { field: "price", .. }), "{json}: {error}");
    }
}

#[test]
fn a_cancellation_is_never_taken_for_an_order() {
    const ORDER: &str = r#"{"id": 1, "product": "p", "quantity": 1, "price": 1, "event": "EVENT"}"#;
    let read = |body: &str, stated| match OrderDocument::from_json(body, stated) {
        Ok(OrderDocument::Placed(order)) => format!("placed {}", order.id),
        Ok(OrderDocument::Cancelled(id)) => format!("cancelled {id}"),
        Err(error) => error.code().to_owned(),
    };
    let with_event = |event: &str, stated| read(&ORDER.replace("EVENT", event), stated);
    for (event, stated, expected) in [
        ("placed", None, "placed 1"),
        ("created", Some(OrderEvent::Placed), "placed 1"),
        ("", None, "placed 1"),
        ("cancelled", None, "cancelled 1"),
        ("Canceled", Some(OrderEvent::Placed), "cancelled 1"),
        ("placed", Some(OrderEvent::Cancelled), "cancelled 1"),
        ("updated", None, "unsupported_event"),
        ("", Some(OrderEvent::Other), "unsupported_event"),
        ("cancelled", Some(OrderEvent::Other), "cancelled 1"),
    ] {
        assert_eq!(with_event(event, stated), expected, "{event} {stated:?}");
    }
    let long = format!(r#"{{"id": "{}", "event": "cancelled"}}"#, "x".repeat(201));
    for (body, stated, expected) in [
        (r#"{"id": "7", "event": "cancelled"}"#, None, "cancelled 7"),
        (r#"{"id": 7, "product": null, "price": "?", "event": "cancelled"}"#, None, "cancelled 7"),
        (r#"{"id": 7}"#, Some(OrderEvent::Cancelled), "cancelled 7"),
        (r#"{"event": "cancelled"}"#, None, "invalid_order"),
        (r#"{"id": 7, "event": 7}"#, None, "invalid_order"),
        (&long, None, "invalid_id"),
        ("7", Some(OrderEvent::Cancelled), "invalid_order"),
    ] {
        assert_eq!(read(body, stated), expected, "{body}");
    }
    assert_eq!(Order::decode(br#"{"id": 1, "event": "cancelled"}"#).unwrap_err().code(), "unsupported_event");
}

#[test]
fn a_currency_may_be_in_lower_case() {
    assert_eq!(with("currency", "\"eur\"").unwrap().check().unwrap().currency.as_str(), "EUR");
    assert_eq!(with("currency", "\" Usd \"").unwrap().check().unwrap().currency.as_str(), "USD");
    for json in ["\"euro\"", "\"€\"", "\"e1r\""] {
        assert_eq!(with("currency", json).unwrap().check().unwrap_err().code(), "invalid_currency", "{json}");
    }
}

#[test]
fn a_time_without_an_offset_is_utc() {
    for (text, expected) in [
        ("2026-11-22T08:00:00Z", "2026-11-22T08:00:00Z"),
        ("2026-11-22T08:00:00", "2026-11-22T08:00:00Z"),
        ("2026-11-22 08:00:00", "2026-11-22T08:00:00Z"),
        ("2026-11-22t08:00:00z", "2026-11-22T08:00:00Z"),
        ("2026-11-22 08:00:00.5", "2026-11-22T08:00:00.5Z"),
        ("2026-11-22 10:00:00+02:00", "2026-11-22T08:00:00Z"),
        ("2026-11-22T08:00:00.123456789Z", "2026-11-22T08:00:00.123456789Z"),
    ] {
        let order = with("placed_at", &format!("\"{text}\"")).unwrap();
        assert_eq!(order.placed_at, Some(expected.parse().unwrap()), "{text}");
    }
    for json in
        ["\"yesterday\"", "1763798400", "\"22.11.2026\"", "\"2026-13-01T00:00:00\"", "\"2026-11-22T08:00[Mars]\""]
    {
        let error = with("placed_at", json).unwrap_err();
        assert!(matches!(error, DecodeError::Field { field: "placed_at", .. }), "{json}: {error}");
    }
}

#[test]
fn a_body_that_is_not_an_order_is_refused_in_plain_words() {
    let decode = |body: &str| Order::decode(body.as_bytes()).unwrap_err().to_string();
    for (body, expected) in [
        ("", "the text is empty, it must be a JSON object"),
        (" \n", "the text is empty, it must be a JSON object"),
        ("null", "must be a JSON object, is null"),
        ("[]", "must be a JSON object, is a list"),
        ("{\"id\":1", "not JSON: the text ends too early at column 7"),
        ("{\"id\":1}\n{\"id\":2}", "not JSON: more text after the object at line 2, column 1"),
        ("{\"id\":1}]", "not JSON: more text after the object at column 9"),
        ("{}", "id is missing"),
        ("{\"id\":1,\"id\":1}", "id is given twice"),
    ] {
        assert_eq!(decode(body), expected);
    }
    assert!(decode("{\"price\": NaN}").contains("NaN is not a number"));
    assert!(decode("{\"price\": -Infinity}").contains("Infinity is not a number"));
}

#[test]
fn a_rejected_value_is_described_and_not_shown() {
    let card = "4111111111111111";
    for field in ["quantity", "price", "priority", "email", "currency", "placed_at", "product"] {
        for json in
            [card.to_owned(), format!("\"{card}\""), format!("\"x{card}\""), format!("[{card}]"), format!("-{card}")]
        {
            let error = match with(field, &json) {
                Err(error) => error.to_string(),
                Ok(order) => order.check().err().map(|error| error.to_string()).unwrap_or_default(),
            };
            assert!(!error.contains("4111"), "{field}: {error}");
        }
    }
}

/// What producers really send, and what becomes of it: the total, or what the reason must say.
#[test]
fn orders_as_real_shops_write_them_are_read_or_refused_with_the_cause() {
    use Expected::{Refused, Total};
    enum Expected {
        Total(&'static str),
        Refused(&'static str),
    }
    let zeros = format!("\"67.20{}\"", "0".repeat(40));
    let decimals = format!("\"67.{}1\"", "0".repeat(40));
    let nines = "\"2026-11-22T08:00:00.123456789012Z\"";
    for (field, json, expected) in [
        ("priority", "null", Total("1200")),
        ("priority", "\"true\"", Total("1200")),
        ("priority", "\"False\"", Total("1200")),
        ("priority", "1", Total("1200")),
        ("priority", "\"0\"", Total("1200")),
        ("priority", "\"high\"", Refused("priority must be true or false")),
        ("priority", "2", Refused("priority must be true or false")),
        ("customer_id", "null", Total("1200")),
        ("customer_id", "4711", Total("1200")),
        ("customer_id", "\"  \"", Total("1200")),
        ("customer_id", "1.5", Refused("customer_id must be a text")),
        ("email", "null", Total("1200")),
        ("email", "\"\"", Total("1200")),
        ("email", "7", Refused("email must be a text")),
        ("notify", "null", Total("1200")),
        ("currency", "null", Total("1200")),
        ("currency", "\"eur\"", Total("1200")),
        ("currency", "\" EUR \"", Total("1200")),
        ("currency", "\"€\"", Refused("currency must be three letters")),
        ("currency", "978", Refused("currency must be a text")),
        ("quantity", "\"3\"", Total("1200")),
        ("quantity", "\"3.000\"", Total("1200")),
        ("quantity", "0.3e1", Total("1200")),
        ("quantity", "1e2", Total("40000")),
        ("quantity", "\"3 pcs\"", Refused("quantity must be a whole number")),
        ("quantity", "\"1,000\"", Refused("quantity must be a whole number")),
        ("quantity", "null", Refused("quantity must be a whole number, is null")),
        ("quantity", "-1", Refused("quantity must be 1 to")),
        ("price", "\"400.00\"", Total("1200.00")),
        ("price", "\"+400\"", Total("1200")),
        ("price", "4e2", Total("1200")),
        ("price", "\"4E+2\"", Total("1200")),
        ("price", "-0.00", Total("0.00")),
        ("price", "\"-0\"", Total("0")),
        ("price", zeros.as_str(), Total("201.60")),
        ("price", zeros.trim_matches('"'), Total("201.60")),
        ("price", decimals.as_str(), Refused("price has too many digits")),
        ("price", "\"67,20\"", Refused("price must be a decimal number such as 67.20")),
        ("price", "\"1.067,20\"", Refused("price must be a decimal number such as 67.20")),
        ("price", "\"67.20 EUR\"", Refused("price must be a decimal number such as 67.20")),
        ("price", "\"€67.20\"", Refused("price must be a decimal number such as 67.20")),
        ("price", "\"\"", Refused("price must be a decimal number such as 67.20, is an empty text")),
        ("price", "[67.20]", Refused("is a list")),
        ("placed_at", "null", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00:00Z\"", Total("1200")),
        ("placed_at", "\"2026-11-22t08:00:00z\"", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00:00+0000\"", Total("1200")),
        ("placed_at", "\"2026-11-22T09:00:00+01:00\"", Total("1200")),
        ("placed_at", "\"2026-11-22T09:00:00+01\"", Total("1200")),
        ("placed_at", "\"2026-11-22 09:00:00 +0100\"", Total("1200")),
        ("placed_at", "\"2026-11-22 04:00:00 -0400\"", Total("1200")),
        ("placed_at", "\"2026-11-22 08:00:00 UTC\"", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00:00\"", Total("1200")),
        ("placed_at", "\" 2026-11-22 08:00:00 \"", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00Z\"", Total("1200")),
        ("placed_at", "\"2026-11-22T09:00:00+01:00[Europe/Berlin]\"", Total("1200")),
        ("placed_at", "\"2026-11-22\"", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00:00.1Z\"", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00:00,123\"", Total("1200")),
        ("placed_at", "\"2026-11-22T08:00:00.1234567Z\"", Total("1200")),
        ("placed_at", nines, Total("1200")),
        ("placed_at", "\"2026-12-31T23:59:60Z\"", Total("1200")),
        ("placed_at", "\"2026-11-22T25:00:00Z\"", Refused("placed_at must be a time such as")),
        ("placed_at", "\"22/11/2026 08:00\"", Refused("placed_at must be a time such as")),
        ("placed_at", "1795334400", Refused("placed_at must be a time such as")),
        ("shipping", "{\"a\":[1,null]}", Total("1200")),
        ("id", "null", Refused("id must be a text of 1 to 200 bytes or a whole number, is null")),
        ("id", "1.5", Refused("id must be a text of 1 to 200 bytes or a whole number")),
        ("product", "null", Refused("product must be a text, is null")),
        ("product", "\"\"", Refused("product must not be empty")),
    ] {
        let result = match with(field, json) {
            Ok(order) => order.check().map(|amounts| amounts.total.to_string()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match (&result, expected) {
            (Ok(total), Total(expected)) => assert_eq!(total.parse(), expected.parse::<Decimal>(), "{json}"),
            (Err(reason), Refused(expected)) => assert!(reason.contains(expected), "{field} {json}: {reason}"),
            _ => panic!("{field} {json}: {result:?}"),
        }
        assert!(!result.is_ok_and(|total| total.starts_with('-')), "{field} {json}: minus zero");
    }
}

#[test]
fn no_reason_names_the_internals_of_a_library() {
    const INTERNALS: [&str; 13] = [
        "serde",
        "i64",
        "u64",
        "f64",
        "expected `",
        "expected value",
        "invalid type",
        "component",
        "jiff",
        "Decimal",
        "EOF",
        "utf-8",
        "RawValue",
    ];
    for field in ["id", "product", "quantity", "price", "priority", "customer_id", "email", "currency", "placed_at"] {
        for json in ["\"x\"", "[]", "{}", "true", "-1.5", "1e999", "\"\\ud800\"", "\"2026-99-99\"", "nul", "'x'", "\"x"]
        {
            let reason = match with(field, json) {
                Ok(order) => order.check().err().map(|error| error.to_string()).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(!INTERNALS.iter().any(|internal| reason.contains(internal)), "{field} {json}: {reason}");
        }
    }
}
