//! The schema of `[formats.<name>]`.

use schemars::JsonSchema;

use super::places::{EventPlace, IdPlace, Place, Places};

/// Where each value of an order is in a producer's document.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct Format {
    base: Option<BaseFormat>,
    id: Option<IdPlace>,
    event: Option<EventPlace>,
    customer_id: Option<Place>,
    email: Option<Place>,
    phone: Option<Place>,
    locale: Option<Place>,
    currency: Option<Place>,
    placed_at: Option<Place>,
    notify: Option<Place>,
    priority: Option<Place>,
    unit: Option<Unit>,
    total: Option<Place>,
    shipping: Option<Places>,
    fees: Option<Places>,
    tax: Option<Places>,
    tax_included: Option<Place>,
    discount: Option<Places>,
    /// A decimal in quotes.
    rounding: Option<String>,
    product: Option<Place>,
    quantity: Option<Place>,
    price: Option<Place>,
    items: Option<Items>,
}

/// Where each value of an item is.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Items {
    /// A JSON pointer.
    list: String,
    product: Place,
    quantity: Place,
    price: Option<Place>,
    total: Option<Place>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum BaseFormat {
    Orderd,
    Shopify,
    Woocommerce,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum Unit {
    Major,
    Minor,
}
