//! What a format says: where each value of an order is in a document.
//!
//! Plain values. Config makes them from `[formats.<name>]`, `builtin` has those that come with orderd.

use rust_decimal::Decimal;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::pointer::Pointer;

/// Most pointers of one amount, which are added up.
pub const MAX_PARTS: usize = 16;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From the document.
    Pointer(Pointer),
    /// The same in every order, as JSON.
    Constant(String),
}

/// Where a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSource {
    /// Where it is.
    pub source: Source,
    /// The text that stands for none, such as the customer id `0` of guests.
    pub none: Option<String>,
}

/// The unit of an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Euros, dollars, yen.
    #[default]
    Major,
    /// Cents: as many decimal places as the currency has.
    Minor,
}

/// Where an amount comes from. Several are added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmountSource {
    /// At least one.
    pub parts: Vec<Pointer>,
    /// Their unit.
    pub unit: Unit,
}

/// Where the values of a line are. In a list's elements, pointers are relative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineSpec {
    /// The product's name.
    pub product: Source,
    /// The number of pieces.
    pub quantity: Source,
    /// The price of one piece, or the total of all.
    pub price: PriceSpec,
}

/// Which amount of a line the document has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PriceSpec {
    /// The price of one piece.
    Each(AmountSource),
    /// The total of the line. Divided by the quantity, it is the price.
    Total(AmountSource),
}

/// Where a list of lines is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemsSpec {
    /// The list.
    pub list: Pointer,
    /// What each of its elements has.
    pub line: LineSpec,
}

/// Which values say that an order was cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelledIf {
    /// The value is the name of an event, such as `placed` or `cancelled`.
    Named,
    /// It is any but null, false, and a text that is empty or blank.
    Present,
    /// It is one of these texts. Any other says that the order was placed.
    OneOf(Vec<String>),
}

/// Where it is said what happened to the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSource {
    /// Where.
    pub pointer: Pointer,
    /// How to read it.
    pub cancelled: CancelledIf,
}

/// Where each value of an order is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The order's id.
    pub id: TextSource,
    /// What happened to the order. `None`: it was placed, unless the message says otherwise.
    pub event: Option<EventSource>,
    /// What precedes the ids of all orders in this format, so that they differ from those of other shops; empty for nothing.
    pub id_prefix: String,
    /// The only line, in the document itself.
    pub line: Option<LineSpec>,
    /// A list of lines. If there is also a `line`, a document has one of both.
    pub items: Option<ItemsSpec>,
    /// The customer's id.
    pub customer_id: Option<TextSource>,
    /// The customer's email address.
    pub email: Option<TextSource>,
    /// The customer's telephone number.
    pub phone: Option<Source>,
    /// The customer's language.
    pub locale: Option<Source>,
    /// The currency.
    pub currency: Option<Source>,
    /// When the order was placed.
    pub placed_at: Option<Source>,
    /// The notification channel.
    pub notify: Option<Source>,
    /// Whether it is marked as priority.
    pub priority: Option<Source>,
    /// The total.
    pub total: Option<AmountSource>,
    /// Charged for shipping.
    pub shipping: Option<AmountSource>,
    /// Charged for other things.
    pub fees: Option<AmountSource>,
    /// The tax.
    pub tax: Option<AmountSource>,
    /// Whether prices include the tax.
    pub tax_included: Option<Source>,
    /// Deducted.
    pub discount: Option<AmountSource>,
    /// The unit that the shop rounds each amount to, which the total may differ by; zero if all are exact. If the stated total has
    /// fewer decimal places, those are the unit.
    pub rounding: Decimal,
}

impl Spec {
    /// Only the id.
    pub fn of_id(id: TextSource) -> Self {
        Spec {
            id,
            event: None,
            id_prefix: String::new(),
            line: None,
            items: None,
            customer_id: None,
            email: None,
            phone: None,
            locale: None,
            currency: None,
            placed_at: None,
            notify: None,
            priority: None,
            total: None,
            shipping: None,
            fees: None,
            tax: None,
            tax_included: None,
            discount: None,
            rounding: Decimal::ZERO,
        }
    }

    /// With all amounts in this unit.
    pub fn in_unit(mut self, unit: Unit) -> Self {
        let lines = [self.line.as_mut(), self.items.as_mut().map(|items| &mut items.line)];
        let prices = lines.into_iter().flatten().map(|line| match &mut line.price {
            PriceSpec::Each(amount) | PriceSpec::Total(amount) => amount,
        });
        let amounts = [&mut self.total, &mut self.shipping, &mut self.fees, &mut self.tax, &mut self.discount]
            .into_iter()
            .flatten();
        prices.chain(amounts).for_each(|amount| amount.unit = unit);
        self
    }
}

/// Serialized as the keys of `[formats.<name>]`, with pointers where the section has them.
impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut keys = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                keys.insert(key.to_owned(), value);
            }
        };
        set("id", Some(id(&self.id, &self.id_prefix)));
        set("event", self.event.as_ref().map(event));
        set("customer_id", self.customer_id.as_ref().map(text));
        set("email", self.email.as_ref().map(text));
        let sources = [
            ("phone", &self.phone),
            ("locale", &self.locale),
            ("currency", &self.currency),
            ("placed_at", &self.placed_at),
            ("notify", &self.notify),
            ("priority", &self.priority),
            ("tax_included", &self.tax_included),
        ];
        sources.iter().for_each(|(key, value)| set(key, value.as_ref().map(|value| source(value, false))));
        let amounts = [
            ("total", &self.total),
            ("shipping", &self.shipping),
            ("fees", &self.fees),
            ("tax", &self.tax),
            ("discount", &self.discount),
        ];
        amounts.iter().for_each(|(key, value)| set(key, value.as_ref().map(|value| amount(value, false))));
        set("rounding", (!self.rounding.is_zero()).then(|| self.rounding.to_string().into()));
        for (key, value) in self.line.iter().flat_map(|spec| line(spec, false)) {
            set(key, Some(value));
        }
        set(
            "items",
            self.items.as_ref().map(|items| {
                let keys = line(&items.line, true).into_iter().map(|(key, value)| (key.to_owned(), value));
                Value::Object([("list".to_owned(), items.list.to_string().into())].into_iter().chain(keys).collect())
            }),
        );
        keys.serialize(serializer)
    }
}

fn place(pointer: &Pointer, relative: bool) -> Value {
    let text = pointer.to_string();
    if relative { text.trim_start_matches('/').into() } else { text.into() }
}

fn source(source: &Source, relative: bool) -> Value {
    match source {
        Source::Pointer(pointer) => place(pointer, relative),
        Source::Constant(json) => json!({"value": serde_json::from_str::<Value>(json).unwrap_or_default()}),
    }
}

fn text(text: &TextSource) -> Value {
    match &text.none {
        Some(none) => json!({"pointer": source(&text.source, false), "none": none}),
        None => source(&text.source, false),
    }
}

fn event(event: &EventSource) -> Value {
    let pointer = place(&event.pointer, false);
    match &event.cancelled {
        CancelledIf::Named => pointer,
        CancelledIf::Present => json!({"pointer": pointer, "cancelled": true}),
        CancelledIf::OneOf(values) => json!({"pointer": pointer, "cancelled": values}),
    }
}

fn id(source: &TextSource, prefix: &str) -> Value {
    match text(source) {
        id if prefix.is_empty() => id,
        Value::Object(mut keys) => {
            keys.insert("prefix".to_owned(), prefix.into());
            keys.into()
        }
        pointer => json!({"pointer": pointer, "prefix": prefix}),
    }
}

fn amount(amount: &AmountSource, relative: bool) -> Value {
    let pointers = match amount.parts.as_slice() {
        [pointer] => place(pointer, relative),
        parts => parts.iter().map(|pointer| place(pointer, relative)).collect(),
    };
    match amount.unit {
        Unit::Major => pointers,
        Unit::Minor => json!({"pointer": pointers, "unit": "minor"}),
    }
}

fn line(line: &LineSpec, relative: bool) -> [(&'static str, Value); 3] {
    let price = match &line.price {
        PriceSpec::Each(price) => ("price", amount(price, relative)),
        PriceSpec::Total(total) => ("total", amount(total, relative)),
    };
    [("product", source(&line.product, relative)), ("quantity", source(&line.quantity, relative)), price]
}
