//! The schema of an order in orderd's own format, and of its cancellation.
//!
//! It allows all notations that the decoder reads; a test compares the two.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// An order, or the cancellation of one.
#[derive(JsonSchema)]
#[schemars(title = "order")]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum OrderMessage {
    Placed(OrderDocument),
    Cancelled(CancellationDocument),
}

/// The cancellation of an order: nothing but the id is read of its other fields.
#[derive(JsonSchema)]
#[schemars(title = "cancellation")]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct CancellationDocument {
    /// The order's id.
    #[schemars(schema_with = "id")]
    id: (),
    /// That it was cancelled. It may be missing if the message's type says so.
    #[schemars(schema_with = "cancelled")]
    event: (),
}

/// An order that was placed. Fields that are not listed are kept and passed on in the analytics event.
#[derive(JsonSchema)]
#[schemars(title = "placed order", transform = one_notation)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct OrderDocument {
    /// The order's id. A number and its decimal text are the same id. Two orders with one id are the same order.
    #[schemars(schema_with = "id")]
    id: (),
    /// What was ordered, if it is one product.
    #[serde(default)]
    #[schemars(schema_with = "optional_product")]
    product: (),
    /// Number of pieces.
    #[serde(default)]
    #[schemars(schema_with = "optional_quantity")]
    quantity: (),
    /// Price of one piece.
    #[serde(default)]
    #[schemars(schema_with = "optional_amount")]
    price: (),
    /// The lines of an order for several products, instead of product, quantity and price.
    #[serde(default)]
    #[schemars(schema_with = "optional_items")]
    items: (),
    /// The sum of price × quantity of all lines.
    #[serde(default)]
    #[schemars(schema_with = "optional_amount")]
    total: (),
    /// Whether it is marked as priority. The queue decides what overtakes.
    #[serde(default)]
    #[schemars(schema_with = "boolean")]
    priority: (),
    /// The customer's id.
    #[serde(default)]
    #[schemars(schema_with = "optional_id")]
    customer_id: (),
    /// The customer's email address.
    #[serde(default)]
    #[schemars(schema_with = "email")]
    email: (),
    /// The customer's telephone number: 1 to 32 digits, spaces and "+", "-", ".", "/", "(", ")"; any other counts as none.
    #[serde(default)]
    #[schemars(schema_with = "text")]
    phone: (),
    /// The customer's language, such as "de" or "de-AT"; any other text counts as none.
    #[serde(default)]
    #[schemars(schema_with = "text")]
    locale: (),
    /// ISO 4217.
    #[serde(default)]
    #[schemars(schema_with = "currency")]
    currency: (),
    /// RFC 3339. Without an offset it is UTC.
    #[serde(default)]
    #[schemars(schema_with = "text")]
    placed_at: (),
    /// What happened to the order.
    #[serde(default)]
    #[schemars(schema_with = "event")]
    event: (),
    /// The notification channel: one word of 1 to 32 letters, digits, "_" and "-"; any other counts as "email".
    #[serde(default)]
    #[schemars(schema_with = "text")]
    notify: (),
}

/// A line of an order.
#[derive(JsonSchema)]
#[schemars(title = "item")]
#[expect(dead_code, reason = "only its schema is used")]
struct ItemDocument {
    /// What was ordered.
    #[schemars(schema_with = "product")]
    product: (),
    /// Number of pieces.
    #[schemars(schema_with = "quantity")]
    quantity: (),
    /// Price of one piece.
    #[schemars(schema_with = "amount")]
    price: (),
}

/// Digits of a decimal, with an exponent; a minus only before zero.
const DECIMAL: &str = r"^[ \t\r\n\f]*(\+?([0-9]+\.?[0-9]*|\.[0-9]+)|-(0+\.?0*|\.0+))([eE][+-]?[0-9]+)?[ \t\r\n\f]*$";

/// An order has either one product or a list of lines; null and a blank text count as missing.
fn one_notation(schema: &mut Schema) {
    let missing = json_schema!({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^ *$"}]});
    schema.insert(
        "oneOf".to_owned(),
        serde_json::json!([
            {"required": ["product", "quantity", "price"],
             "properties": {"product": product_schema(), "quantity": quantity_schema(), "price": amount_schema(), "items": missing}},
            {"required": ["items"],
             "properties": {"items": {"type": "array"}, "product": missing, "quantity": missing, "price": missing}}
        ]),
    );
}

fn id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": 200}]})
}

fn optional_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"type": ["integer", "null"]}, {"type": "string", "maxLength": 200}, {"type": "string", "pattern": "^ *$"}]})
}

fn product_schema() -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 1024})
}

fn product(_: &mut SchemaGenerator) -> Schema {
    product_schema()
}

fn optional_product(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "null"], "maxLength": 1024})
}

fn quantity_schema() -> Schema {
    json_schema!({"anyOf": [
        {"type": "number", "multipleOf": 1, "minimum": 1, "maximum": 1_000_000_000_000_i64},
        {"type": "string", "pattern": DECIMAL}
    ]})
}

fn quantity(_: &mut SchemaGenerator) -> Schema {
    quantity_schema()
}

fn optional_quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["number", "string", "null"]})
}

fn amount_schema() -> Schema {
    json_schema!({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": DECIMAL}]})
}

fn amount(_: &mut SchemaGenerator) -> Schema {
    amount_schema()
}

fn optional_amount(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [
        {"type": "null"}, {"type": "number", "minimum": 0}, {"type": "string", "pattern": DECIMAL}, {"type": "string", "pattern": "^ *$"}
    ]})
}

fn optional_items(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<ItemDocument>();
    json_schema!({"anyOf": [
        {"type": "null"}, {"type": "string", "pattern": "^ *$"}, {"type": "array", "minItems": 1, "maxItems": 1000, "items": item}
    ]})
}

fn boolean(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [
        {"type": ["boolean", "null"]}, {"enum": [0, 1]},
        {"type": "string", "pattern": "^[ \\t\\r\\n\\f]*([tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|0|1)?[ \\t\\r\\n\\f]*$"}
    ]})
}

fn email(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "null"], "maxLength": 320})
}

fn currency(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [
        {"type": "null"}, {"type": "string", "pattern": "^[ \\t\\r\\n\\f]*[A-Za-z]{3}[ \\t\\r\\n\\f]*$"}, {"type": "string", "pattern": "^ *$"}
    ]})
}

fn event(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [
        {"type": "null"}, {"type": "string", "pattern": "^ *$"},
        {"type": "string", "pattern": "^[ \\t\\r\\n\\f]*([pP][lL][aA][cC][eE][dD]|[cC][rR][eE][aA][tT][eE][dD])[ \\t\\r\\n\\f]*$"}
    ]})
}

fn cancelled(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[ \\t\\r\\n\\f]*[cC][aA][nN][cC][eE][lL][lL]?[eE][dD][ \\t\\r\\n\\f]*$"})
}

fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "null"]})
}
