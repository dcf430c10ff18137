//! Reads an order from a document as its format says, and finds all faults at once.
//!
//! Pure. Values are shown only in an explanation, which a person asks for; no fault contains one.

mod values;

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use self::values::{Scope, absent, is_present, raw};
use super::fault::{Fault, OrderFaults, ValueProblem};
use super::mapping::{AmountSlots, LineSlots, Mapping};
use super::pointer::{FindError, Found, MAX_VALUES};
use super::rule_fault::rule_fault;
use super::spec::CancelledIf;
use crate::domain::value::{self, TypeMismatch};
use crate::domain::{
    AmountField, Amounts, Charges, Currency, Item, MAX_ITEMS, MAX_QUANTITY, Order, OrderDocument, OrderEvent, OrderId,
    RuleError, StatedTotal, TextField, UnsupportedEvent, list_items,
};

/// Decimal places of a price that is a line's total divided by its quantity, if it is not exact.
const PRICE_PLACES: u32 = 6;

/// One value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldReading {
    /// The order's field, such as `items[2].price`.
    pub field: String,
    /// Where it is; `None` for a constant.
    pub pointer: Option<String>,
    /// What orderd reads; `None` if it is missing or wrong.
    pub value: Option<String>,
}

/// What orderd reads from a document.
#[derive(Debug)]
pub struct Explanation {
    /// Each value, in the order of the format.
    pub fields: Vec<FieldReading>,
    /// What the document is about, or everything that is wrong.
    pub result: Result<Explained, OrderFaults>,
}

/// What a document is about.
#[derive(Debug, PartialEq)]
pub enum Explained {
    /// An order that was placed, with these amounts.
    Placed(Amounts),
    /// The cancellation of the order with this id.
    Cancelled(OrderId),
}

/// Reads an order or a cancellation. `stated` is what the message says besides.
pub(super) fn document(
    mapping: &Mapping,
    document: &str,
    stated: Option<OrderEvent>,
) -> Result<OrderDocument, OrderFaults> {
    Reader::default().read(mapping, document, stated)
}

/// Reads an order or a cancellation and reports each value.
pub(super) fn explain(mapping: &Mapping, document: &str, stated: Option<OrderEvent>) -> Explanation {
    let mut reader = Reader { fields: Some(Vec::new()), ..Reader::default() };
    let checked = |order: Order| order.check().map_err(|rule| OrderFaults::of_order(&order, rule_fault(mapping, rule)));
    let result = reader.read(mapping, document, stated).and_then(|document| match document {
        OrderDocument::Placed(order) => checked(order).map(Explained::Placed),
        OrderDocument::Cancelled(id) => Ok(Explained::Cancelled(id)),
    });
    Explanation { fields: reader.fields.unwrap_or_default(), result }
}

/// The order's id, even if the rest of the document is invalid.
pub(super) fn order_id(mapping: &Mapping, document: &str) -> Option<OrderId> {
    let (slot, tree) = &mapping.id;
    let found = tree.find(document).ok()?;
    let id = value::as_id(raw(slot, &found)?).ok()?;
    OrderId::new([&mapping.spec.id_prefix, &*id].concat())
}

/// The customer's id, even if the rest of the document is invalid.
pub(super) fn customer_id(mapping: &Mapping, document: &str) -> Option<String> {
    let ((slot, none), tree) = mapping.customer_id.as_ref()?;
    let found = tree.find(document).ok()?;
    let id = value::as_id(raw(slot, &found)?).ok()?;
    Some(id).filter(|id| none.as_ref() != Some(id) && id.len() <= TextField::CustomerId.max_bytes())
}

#[derive(Default)]
struct Reader {
    order_id: Option<OrderId>,
    /// How many amounts the charges were added up from.
    charges: usize,
    /// The currency that the order or one of its amounts has.
    currency: Option<Currency>,
    /// `None`: nobody asks.
    fields: Option<Vec<FieldReading>>,
    faults: Vec<Fault>,
}

impl Reader {
    fn read(
        &mut self,
        mapping: &Mapping,
        document: &str,
        stated: Option<OrderEvent>,
    ) -> Result<OrderDocument, OrderFaults> {
        let found = match mapping.tree.find(document) {
            Ok(found) => found,
            Err(FindError::Json(error)) => return Err(OrderFaults::whole(error)),
            Err(FindError::TooMany(pointer)) => {
                return Err(OrderFaults::of(vec![Fault {
                    field: String::new(),
                    pointer: Some(pointer),
                    problem: ValueProblem::TooMany(MAX_VALUES),
                }]));
            }
        };
        self.order_id = self.id(mapping, &found);
        let event = self.event(mapping, &found);
        let read = match OrderEvent::of_all([stated, event]).unwrap_or(OrderEvent::Placed) {
            OrderEvent::Placed => self.order(mapping, &found).map(OrderDocument::Placed),
            OrderEvent::Cancelled => self.order_id.clone().map(OrderDocument::Cancelled),
            OrderEvent::Other => {
                match mapping.document.event.as_ref().filter(|_| event == Some(OrderEvent::Other)) {
                    Some((slot, _)) => self.fault(Scope::Document, "event", slot, UnsupportedEvent.into()),
                    None => {
                        let problem = UnsupportedEvent.into();
                        self.push(Fault { field: String::new(), pointer: None, problem });
                    }
                }
                // A document of another kind may lack everything else, so that is reported only by `orderd check --order`.
                if self.fields.is_some() {
                    self.order(mapping, &found);
                }
                None
            }
        };
        match (read, self.faults.is_empty()) {
            (Some(document), true) => Ok(document),
            (Some(_) | None, _) => {
                Err(OrderFaults { order_id: self.order_id.take(), faults: std::mem::take(&mut self.faults) })
            }
        }
    }

    /// What the document says happened to the order; `None` if it says nothing.
    fn event(&mut self, mapping: &Mapping, found: &Found<'_>) -> Option<OrderEvent> {
        let (slot, cancelled) = mapping.document.event.as_ref()?;
        let read = |raw: &str| -> Result<Named, TypeMismatch> {
            Ok(Named(match cancelled {
                CancelledIf::Named => OrderEvent::of_word(&value::as_text(raw)?),
                CancelledIf::Present if value::as_boolean(raw) == Ok(false) => OrderEvent::Placed,
                CancelledIf::Present => OrderEvent::Cancelled,
                CancelledIf::OneOf(values) if values.contains(&value::as_text(raw)?) => OrderEvent::Cancelled,
                CancelledIf::OneOf(_) => OrderEvent::Placed,
            }))
        };
        self.optional(Scope::Document, "event", Some(slot), found, read).map(|Named(event)| event)
    }

    /// `None` if a required value is missing or wrong.
    fn order(&mut self, mapping: &Mapping, found: &Found<'_>) -> Option<Order> {
        let (slots, scope) = (&mapping.document, Scope::Document);
        // Before the amounts: it determines their minor units.
        let currency = self.optional(scope, "currency", slots.currency.as_ref(), found, currency);
        self.currency = currency.clone().and_then(|code| code.parse().ok());
        let items = self.items(mapping, found);
        let customer_id = slots.customer_id.as_ref();
        let customer_id = customer_id
            .and_then(|slot| self.text(scope, "customer_id", slot, found, Some(TextField::CustomerId), value::as_id));
        let email = slots.email.as_ref();
        let email =
            email.and_then(|slot| self.text(scope, "email", slot, found, Some(TextField::Email), value::as_text));
        let phone = self.optional(scope, "phone", slots.phone.as_ref(), found, value::as_phone);
        let locale = self.optional(scope, "locale", slots.locale.as_ref(), found, value::as_locale);
        let placed_at = self.optional(scope, "placed_at", slots.placed_at.as_ref(), found, value::as_time);
        let notify = self.optional(scope, "notify", slots.notify.as_ref(), found, value::as_text);
        let priority = self.optional(scope, "priority", slots.priority.as_ref(), found, value::as_boolean);
        let mut charge = |field, slots: &Option<AmountSlots>| {
            slots.as_ref().and_then(|slots| self.amount(scope, field, field.name(), slots, found))
        };
        let (shipping, fees) = (charge(AmountField::Shipping, &slots.shipping), charge(AmountField::Fees, &slots.fees));
        let (tax, discount) = (charge(AmountField::Tax, &slots.tax), charge(AmountField::Discount, &slots.discount));
        let amount = charge(AmountField::Total, &slots.total);
        let tax_included = self.optional(scope, "tax_included", slots.tax_included.as_ref(), found, value::as_boolean);
        let tax_included = tax_included.unwrap_or(false);
        let mut order = Order::new(self.order_id.clone()?, items?);
        order.charges = Charges { shipping, fees, tax, discount, tax_included };
        order.stated_total = StatedTotal { amount, rounding: mapping.spec.rounding, charges: self.charges };
        order.priority = priority.unwrap_or(false);
        order.currency = currency.or_else(|| self.currency.map(|currency| currency.to_string()));
        (order.customer_id, order.email, order.placed_at, order.notify) = (customer_id, email, placed_at, notify);
        (order.phone, order.locale) = (phone, locale);
        Some(order)
    }

    fn id(&mut self, mapping: &Mapping, found: &Found<'_>) -> Option<OrderId> {
        let (slot, scope) = (&mapping.document.id, Scope::Document);
        let id = self.text(scope, "id", slot, found, None, value::as_id);
        let id = id.or_else(|| self.missing(scope, "id", &slot.0, found))?;
        let id = [&mapping.spec.id_prefix, &*id].concat();
        if let Some(last) = self.fields.as_mut().and_then(|fields| fields.last_mut()) {
            last.value = Some(id.clone());
        }
        let (field, length) = (TextField::Id, id.len());
        if length > field.max_bytes() {
            self.fault(scope, "id", &slot.0, RuleError::TooLong { field, length }.into());
        }
        OrderId::new(id)
    }

    fn items(&mut self, mapping: &Mapping, found: &Found<'_>) -> Option<Vec<Item>> {
        let line = mapping.document.line.as_ref();
        let Some((list, slots, tree)) = &mapping.items else { return self.only_line(line?, found) };
        let Some(raw_list) = raw(list, found) else {
            return match line {
                Some(line) => self.only_line(line, found),
                None => self.missing(Scope::Document, "items", list, found),
            };
        };
        let is_given = |line: &LineSlots| {
            let price = line.price.parts.iter().any(|(_, number)| found.one(*number).is_some_and(is_present));
            raw(&line.product, found).is_some() || raw(&line.quantity, found).is_some() || price
        };
        if line.is_some_and(is_given) {
            self.fault(Scope::Document, "items", list, ValueProblem::Ambiguous);
        }
        let Some(values) = list_items(raw_list, MAX_ITEMS) else {
            let mismatch = value::mismatch(raw_list, "a list");
            self.fault(Scope::Document, "items", list, mismatch.into());
            return None;
        };
        if !(1..=MAX_ITEMS).contains(&values.count) {
            self.fault(Scope::Document, "items", list, RuleError::Items(values.count).into());
            return None;
        }
        let items = values.items.into_iter().enumerate().map(|(index, item)| {
            let scope = Scope::Item { list, index };
            self.item(scope, item, slots, tree)
        });
        // All of them, whatever is wrong with the first.
        items.collect::<Vec<_>>().into_iter().collect()
    }

    fn item(
        &mut self,
        scope: Scope<'_>,
        item: &RawValue,
        slots: &LineSlots,
        tree: &super::pointer::PointerTree,
    ) -> Option<Item> {
        match tree.find(item.get()) {
            Ok(found) => self.line(scope, slots, &found),
            Err(error) => {
                let problem = match error {
                    FindError::Json(error) => error.into(),
                    FindError::TooMany(_) => ValueProblem::TooMany(MAX_VALUES),
                };
                let (field, pointer) = (scope.field(""), Some(scope.pointer(&"")));
                self.push(Fault { field: field.trim_end_matches('.').to_owned(), pointer, problem });
                None
            }
        }
    }

    fn only_line(&mut self, slots: &LineSlots, found: &Found<'_>) -> Option<Vec<Item>> {
        self.line(Scope::Document, slots, found).map(|item| vec![item])
    }

    fn line(&mut self, scope: Scope<'_>, slots: &LineSlots, found: &Found<'_>) -> Option<Item> {
        let product = self.required(scope, "product", &slots.product, found, product);
        let quantity = self.required(scope, "quantity", &slots.quantity, found, quantity);
        let name = if slots.is_total { "total" } else { "price" };
        let known = self.faults.len();
        let amount = self.amount(scope, AmountField::Price, name, &slots.price, found);
        if amount.is_none() && self.faults.len() == known {
            let pointer = slots.price.parts.first().map(|(pointer, _)| scope.pointer(pointer));
            let given = slots.price.parts.iter().find_map(|(_, number)| found.one(*number));
            self.push(Fault { field: scope.field(name), pointer, problem: absent(given) });
        }
        let (product, quantity, amount) = (product?, quantity?, amount?);
        if !slots.is_total {
            return Some(Item::new(product, quantity, amount));
        }
        let price = amount.checked_div(Decimal::from(quantity)).unwrap_or_default();
        let price = price.round_dp(PRICE_PLACES).normalize();
        Some(Item { product, quantity, price, total: amount })
    }
}

/// An event, for an explanation.
struct Named(OrderEvent);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            OrderEvent::Placed => "placed",
            OrderEvent::Cancelled => "cancelled",
            OrderEvent::Other => "not supported",
        })
    }
}

fn currency(raw: &str) -> Result<String, ValueProblem> {
    let text = value::as_text(raw)?;
    Ok(text.parse::<Currency>()?.to_string())
}

fn product(raw: &str) -> Result<String, ValueProblem> {
    let text = value::as_text(raw)?;
    if text.is_empty() {
        return Err(RuleError::Product.into());
    }
    let (field, length) = (TextField::Product, text.len());
    if length > field.max_bytes() { Err(RuleError::TooLong { field, length }.into()) } else { Ok(text) }
}

fn quantity(raw: &str) -> Result<i64, ValueProblem> {
    let quantity = value::as_quantity(raw)?.unwrap_or(i64::MAX);
    let is_valid = (1..=MAX_QUANTITY).contains(&quantity);
    if is_valid { Ok(quantity) } else { Err(RuleError::quantity(quantity).into()) }
}
