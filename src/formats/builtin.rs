//! The formats that come with orderd: its own, and those of two shop systems.
//!
//! The shop systems' follow their public API documentation: the order resource of Shopify's Admin REST API and webhooks, and
//! that of WooCommerce's REST API v3 and webhooks. Tests hold the documentation's TOML of these formats to this file.

use rust_decimal::Decimal;

use super::pointer::Pointer;
use super::spec::{
    AmountSource, CancelledIf, EventSource, ItemsSpec, LineSpec, PriceSpec, Source, Spec, TextSource, Unit,
};

/// The names of the formats that come with orderd.
pub const BUILT_IN: [&str; 3] = [OWN, SHOPIFY, WOOCOMMERCE];
/// orderd's own format.
pub const OWN: &str = "orderd";
const SHOPIFY: &str = "shopify";
const WOOCOMMERCE: &str = "woocommerce";

impl Spec {
    /// The values of the format with this name, if it comes with orderd.
    pub fn built_in(name: &str) -> Option<Self> {
        spec(name)
    }
}

/// The format with this name, if it comes with orderd.
pub(super) fn spec(name: &str) -> Option<Spec> {
    match name {
        OWN => Some(own()),
        SHOPIFY => Some(shopify()),
        WOOCOMMERCE => Some(woocommerce()),
        _ => None,
    }
}

fn pointer(text: &str) -> Pointer {
    text.parse().expect("the built-in pointers are valid")
}

fn at(text: &str) -> Source {
    Source::Pointer(pointer(text))
}

fn text(text: &str) -> TextSource {
    TextSource { source: at(text), none: None }
}

fn amount(parts: &[&str]) -> AmountSource {
    AmountSource { parts: parts.iter().map(|part| pointer(part)).collect(), unit: Unit::Major }
}

fn event(text: &str, cancelled: CancelledIf) -> Option<EventSource> {
    Some(EventSource { pointer: pointer(text), cancelled })
}

fn line(product: &str, quantity: &str, price: PriceSpec) -> LineSpec {
    LineSpec { product: at(product), quantity: at(quantity), price }
}

/// What a format has at least.
fn with_items(id: &str, list: &str, line: LineSpec) -> Spec {
    let items = Some(ItemsSpec { list: pointer(list), line });
    Spec { items, currency: Some(at("/currency")), ..Spec::of_id(text(id)) }
}

/// For explanations: messages in this format are read by a decoder of their own.
fn own() -> Spec {
    let its_line = || line("/product", "/quantity", PriceSpec::Each(amount(&["/price"])));
    Spec {
        event: event("/event", CancelledIf::Named),
        line: Some(its_line()),
        customer_id: Some(text("/customer_id")),
        email: Some(text("/email")),
        phone: Some(at("/phone")),
        locale: Some(at("/locale")),
        placed_at: Some(at("/placed_at")),
        notify: Some(at("/notify")),
        priority: Some(at("/priority")),
        total: Some(amount(&["/total"])),
        ..with_items("/id", "/items", its_line())
    }
}

/// All amounts are in the shop's currency. Discounts include those on shipping, and shipping is what it costs without them. A tip is
/// one of the lines (with a `tip_payment_gateway`), so `total_tip_received` is in their sum already. Additional fees are neither
/// duties nor taxes, and exist since the API's version 2023-04. `cancelled_at` is null until the order is cancelled.
fn shopify() -> Spec {
    Spec {
        event: event("/cancelled_at", CancelledIf::Present),
        customer_id: Some(text("/customer/id")),
        email: Some(text("/email")),
        phone: Some(at("/phone")),
        locale: Some(at("/customer_locale")),
        placed_at: Some(at("/created_at")),
        total: Some(amount(&["/total_price"])),
        shipping: Some(amount(&["/shipping_lines/*/price"])),
        fees: Some(amount(&[
            "/original_total_duties_set/shop_money/amount",
            "/original_total_additional_fees_set/shop_money/amount",
        ])),
        tax: Some(amount(&["/total_tax"])),
        tax_included: Some(at("/taxes_included")),
        discount: Some(amount(&["/total_discounts"])),
        ..with_items("/id", "/line_items", line("/name", "/quantity", PriceSpec::Each(amount(&["/price"]))))
    }
}

/// All amounts are without tax, whether prices are entered with it or not, and each is rounded by itself, to as many decimal places
/// as the shop has set: two, or none in a shop that sells in yen. The line's `price` is
/// the price after discounts, with the digits of a float; so the line's total before discounts is read instead. The status
/// `refunded` is no cancellation: it says that all was paid back, which also happens after the goods were delivered and returned.
fn woocommerce() -> Spec {
    Spec {
        event: event("/status", CancelledIf::OneOf(vec!["cancelled".to_owned()])),
        customer_id: Some(TextSource { none: Some("0".to_owned()), ..text("/customer_id") }),
        email: Some(text("/billing/email")),
        phone: Some(at("/billing/phone")),
        placed_at: Some(at("/date_created_gmt")),
        total: Some(amount(&["/total"])),
        shipping: Some(amount(&["/shipping_total"])),
        fees: Some(amount(&["/fee_lines/*/total"])),
        tax: Some(amount(&["/cart_tax", "/shipping_tax"])),
        discount: Some(amount(&["/discount_total"])),
        rounding: Decimal::new(1, 2),
        ..with_items("/id", "/line_items", line("/name", "/quantity", PriceSpec::Total(amount(&["/subtotal"]))))
    }
}
