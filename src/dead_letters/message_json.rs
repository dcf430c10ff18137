//! Properties and headers of a message as JSON, and back. Nothing is lost: each header has its type. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::message::{HeaderValue, Headers, Properties};

/// The properties that the message has.
pub(super) fn properties_json(properties: &Properties) -> Value {
    let texts = properties.short_strings().map(|(name, text)| (name.to_owned(), Value::from(text)));
    let mut all: Map<String, Value> = texts.collect();
    if let Some(priority) = properties.priority {
        all.insert("priority".to_owned(), priority.into());
    }
    if let Some(timestamp) = properties.timestamp {
        all.insert("timestamp".to_owned(), timestamp.into());
    }
    Value::Object(all)
}

/// Each header as `{"type": …, "value": …}`. Binary values are in Base64.
pub(super) fn headers_json(headers: &Headers) -> Value {
    Value::Object(headers.iter().map(|(name, value)| (name.clone(), value_json(value))).collect())
}

fn value_json(value: &HeaderValue) -> Value {
    let typed = |name: &str, value: Value| json!({"type": name, "value": value});
    match value {
        HeaderValue::Bool(value) => typed("bool", (*value).into()),
        HeaderValue::I8(value) => typed("byte", (*value).into()),
        HeaderValue::U8(value) => typed("unsigned_byte", (*value).into()),
        HeaderValue::I16(value) => typed("short", (*value).into()),
        HeaderValue::U16(value) => typed("unsigned_short", (*value).into()),
        HeaderValue::I32(value) => typed("int", (*value).into()),
        HeaderValue::U32(value) => typed("unsigned_int", (*value).into()),
        HeaderValue::I64(value) => typed("long", (*value).into()),
        // JSON has no number for what is not finite.
        HeaderValue::F32(value) if value.is_finite() => typed("float", f64::from(*value).into()),
        HeaderValue::F32(value) => json!({"type": "float", "bits": value.to_bits()}),
        HeaderValue::F64(value) if value.is_finite() => typed("double", (*value).into()),
        HeaderValue::F64(value) => json!({"type": "double", "bits": value.to_bits()}),
        HeaderValue::Decimal { scale, digits } => json!({"type": "decimal", "scale": scale, "digits": digits}),
        HeaderValue::Text(text) => typed("string", text.as_str().into()),
        HeaderValue::Bytes(bytes) => typed("binary", STANDARD.encode(bytes).into()),
        HeaderValue::List(values) => typed("array", values.iter().map(value_json).collect()),
        HeaderValue::Table(headers) => typed("table", headers_json(headers)),
        HeaderValue::Timestamp(seconds) => typed("timestamp", (*seconds).into()),
        HeaderValue::Void => json!({"type": "void"}),
    }
}

/// The properties that [`properties_json`] has written.
pub(super) fn properties_from(json: &Value) -> Option<Properties> {
    let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
    json.as_object()?;
    Some(Properties {
        content_type: text("content_type"),
        content_encoding: text("content_encoding"),
        priority: json.get("priority").and_then(Value::as_u64).and_then(|priority| u8::try_from(priority).ok()),
        correlation_id: text("correlation_id"),
        reply_to: text("reply_to"),
        expiration: text("expiration"),
        message_id: text("message_id"),
        timestamp: json.get("timestamp").and_then(Value::as_u64),
        message_type: text("type"),
        user_id: text("user_id"),
        app_id: text("app_id"),
    })
}

/// The headers that [`headers_json`] has written; `None` if they are not complete.
pub(super) fn headers_from(json: &Value) -> Option<Headers> {
    json.as_object()?.iter().map(|(name, value)| Some((name.clone(), value_from(value)?))).collect()
}

fn value_from(json: &Value) -> Option<HeaderValue> {
    let value = json.get("value");
    let signed = || value.and_then(Value::as_i64);
    let unsigned = || value.and_then(Value::as_u64);
    let text = || value.and_then(Value::as_str);
    let bits = json.get("bits").and_then(Value::as_u64);
    Some(match json.get("type")?.as_str()? {
        "bool" => HeaderValue::Bool(value?.as_bool()?),
        "byte" => HeaderValue::I8(signed()?.try_into().ok()?),
        "unsigned_byte" => HeaderValue::U8(unsigned()?.try_into().ok()?),
        "short" => HeaderValue::I16(signed()?.try_into().ok()?),
        "unsigned_short" => HeaderValue::U16(unsigned()?.try_into().ok()?),
        "int" => HeaderValue::I32(signed()?.try_into().ok()?),
        "unsigned_int" => HeaderValue::U32(unsigned()?.try_into().ok()?),
        "long" => HeaderValue::I64(signed()?),
        "float" => HeaderValue::F32(match bits {
            Some(bits) => f32::from_bits(bits.try_into().ok()?),
            #[expect(clippy::cast_possible_truncation, reason = "it was an f32")]
            None => value?.as_f64()? as f32,
        }),
        "double" => HeaderValue::F64(match bits {
            Some(bits) => f64::from_bits(bits),
            None => value?.as_f64()?,
        }),
        "decimal" => HeaderValue::Decimal {
            scale: json.get("scale")?.as_u64()?.try_into().ok()?,
            digits: json.get("digits")?.as_i64()?.try_into().ok()?,
        },
        "string" => HeaderValue::Text(text()?.to_owned()),
        "binary" => HeaderValue::Bytes(STANDARD.decode(text()?).ok()?.into()),
        "array" => HeaderValue::List(value?.as_array()?.iter().map(value_from).collect::<Option<_>>()?),
        "table" => HeaderValue::Table(headers_from(value?)?),
        "timestamp" => HeaderValue::Timestamp(unsigned()?),
        "void" => HeaderValue::Void,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn every_header_keeps_its_type_and_its_value() {
        let table = Headers::from([("inner".to_owned(), HeaderValue::I8(-1))]);
        for (value, expected) in [
            (HeaderValue::Bool(true), json!({"type": "bool", "value": true})),
            (HeaderValue::U16(7), json!({"type": "unsigned_short", "value": 7})),
            (HeaderValue::I64(i64::MIN), json!({"type": "long", "value": i64::MIN})),
            (HeaderValue::Timestamp(u64::MAX), json!({"type": "timestamp", "value": u64::MAX})),
            (HeaderValue::F64(0.1), json!({"type": "double", "value": 0.1})),
            (HeaderValue::F64(f64::INFINITY), json!({"type": "double", "bits": f64::INFINITY.to_bits()})),
            (HeaderValue::F32(f32::NAN), json!({"type": "float", "bits": f32::NAN.to_bits()})),
            (HeaderValue::Decimal { scale: 2, digits: 1234 }, json!({"type": "decimal", "scale": 2, "digits": 1234})),
            (HeaderValue::Text("ü".to_owned()), json!({"type": "string", "value": "ü"})),
            (HeaderValue::Bytes(Bytes::from_static(b"\xff\0")), json!({"type": "binary", "value": "/wA="})),
            (HeaderValue::List(vec![HeaderValue::Void]), json!({"type": "array", "value": [{"type": "void"}]})),
            (HeaderValue::Table(table), json!({"type": "table", "value": {"inner": {"type": "byte", "value": -1}}})),
        ] {
            let headers = Headers::from([("h".to_owned(), value)]);
            assert_eq!(headers_json(&headers)["h"], expected);
            let text = headers_json(&headers).to_string();
            let read: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read["h"], expected, "{text}");
            // NaN differs from itself.
            assert_eq!(headers_json(&headers_from(&read).unwrap())["h"], expected, "{text}");
        }
    }

    #[test]
    fn headers_that_are_nested_as_deeply_as_a_message_can_have_them_can_be_read_back() {
        let deepest = (0..33).fold(HeaderValue::Bytes(Bytes::from_static(b"rest")), |value, _| {
            HeaderValue::Table([("t".to_owned(), value)].into())
        });
        let text = headers_json(&Headers::from([("h".to_owned(), deepest)])).to_string();
        serde_json::from_str::<Value>(&text).unwrap();
    }

    #[test]
    fn only_properties_that_the_message_has_are_listed() {
        let properties = Properties {
            message_id: Some("m".to_owned()),
            priority: Some(3),
            timestamp: Some(7),
            ..Properties::default()
        };
        assert_eq!(properties_json(&properties), json!({"message_id": "m", "priority": 3, "timestamp": 7}));
    }
}
