//! A format, compiled: its pointers as trees, and for each value the number of its pointer.
//!
//! Compiled once for each configuration, so that a message costs one pass over its document and one over each of its lines.

use super::pointer::{Pointer, PointerTree};
use super::spec::{AmountSource, CancelledIf, LineSpec, PriceSpec, Source, Spec, TextSource, Unit};

/// A format.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Its name.
    pub(super) name: String,
    pub(super) spec: Spec,
    pub(super) document: DocumentSlots,
    pub(super) tree: PointerTree,
    /// The list of lines, and what each has.
    pub(super) items: Option<(ValueSlot, LineSlots, PointerTree)>,
    /// The id alone.
    pub(super) id: (ValueSlot, PointerTree),
    /// The customer's id alone.
    pub(super) customer_id: Option<((ValueSlot, Option<String>), PointerTree)>,
}

impl PartialEq for Mapping {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.spec == other.spec
    }
}

/// A value's pointer and its number, or a constant.
#[derive(Debug, Clone)]
pub(super) enum ValueSlot {
    At { pointer: Pointer, number: usize },
    Constant(String),
}

/// An amount's pointers and their numbers.
#[derive(Debug, Clone)]
pub(super) struct AmountSlots {
    pub parts: Vec<(Pointer, usize)>,
    pub unit: Unit,
}

/// The values of a line.
#[derive(Debug, Clone)]
pub(super) struct LineSlots {
    pub product: ValueSlot,
    pub quantity: ValueSlot,
    pub price: AmountSlots,
    /// `price` is the total of the line.
    pub is_total: bool,
}

/// The values of an order.
#[derive(Debug, Clone)]
pub(super) struct DocumentSlots {
    pub id: (ValueSlot, Option<String>),
    pub event: Option<(ValueSlot, CancelledIf)>,
    pub line: Option<LineSlots>,
    pub customer_id: Option<(ValueSlot, Option<String>)>,
    pub email: Option<(ValueSlot, Option<String>)>,
    pub phone: Option<ValueSlot>,
    pub locale: Option<ValueSlot>,
    pub currency: Option<ValueSlot>,
    pub placed_at: Option<ValueSlot>,
    pub notify: Option<ValueSlot>,
    pub priority: Option<ValueSlot>,
    pub total: Option<AmountSlots>,
    pub shipping: Option<AmountSlots>,
    pub fees: Option<AmountSlots>,
    pub tax: Option<AmountSlots>,
    pub tax_included: Option<ValueSlot>,
    pub discount: Option<AmountSlots>,
}

impl Mapping {
    /// Compiles a format.
    pub fn new(name: impl Into<String>, spec: Spec) -> Self {
        let mut tree = PointerTree::default();
        let slots = &mut tree;
        let document = DocumentSlots {
            id: text(&spec.id, slots),
            event: spec.event.as_ref().map(|event| {
                let pointer = Source::Pointer(event.pointer.clone());
                (slot(&pointer, slots), event.cancelled.clone())
            }),
            line: spec.line.as_ref().map(|spec| line(spec, slots)),
            customer_id: spec.customer_id.as_ref().map(|source| text(source, slots)),
            email: spec.email.as_ref().map(|source| text(source, slots)),
            phone: spec.phone.as_ref().map(|source| slot(source, slots)),
            locale: spec.locale.as_ref().map(|source| slot(source, slots)),
            currency: spec.currency.as_ref().map(|source| slot(source, slots)),
            placed_at: spec.placed_at.as_ref().map(|source| slot(source, slots)),
            notify: spec.notify.as_ref().map(|source| slot(source, slots)),
            priority: spec.priority.as_ref().map(|source| slot(source, slots)),
            total: spec.total.as_ref().map(|source| amount(source, slots)),
            shipping: spec.shipping.as_ref().map(|source| amount(source, slots)),
            fees: spec.fees.as_ref().map(|source| amount(source, slots)),
            tax: spec.tax.as_ref().map(|source| amount(source, slots)),
            tax_included: spec.tax_included.as_ref().map(|source| slot(source, slots)),
            discount: spec.discount.as_ref().map(|source| amount(source, slots)),
        };
        let items = spec.items.as_ref().map(|items| {
            let list = slot(&Source::Pointer(items.list.clone()), slots);
            let mut tree = PointerTree::default();
            let line = line(&items.line, &mut tree);
            (list, line, tree)
        });
        let mut id = PointerTree::default();
        let id_slot = slot(&spec.id.source, &mut id);
        let customer_id = spec.customer_id.as_ref().map(|source| {
            let mut tree = PointerTree::default();
            (text(source, &mut tree), tree)
        });
        Mapping { name: name.into(), document, tree, items, id: (id_slot, id), customer_id, spec }
    }

    /// Where the values are.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The format's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn slot(source: &Source, tree: &mut PointerTree) -> ValueSlot {
    match source {
        Source::Pointer(pointer) => ValueSlot::At { number: tree.add(pointer), pointer: pointer.clone() },
        Source::Constant(json) => ValueSlot::Constant(json.clone()),
    }
}

fn text(text: &TextSource, tree: &mut PointerTree) -> (ValueSlot, Option<String>) {
    (slot(&text.source, tree), text.none.clone())
}

fn amount(amount: &AmountSource, tree: &mut PointerTree) -> AmountSlots {
    let parts = amount.parts.iter().map(|pointer| (pointer.clone(), tree.add(pointer)));
    AmountSlots { parts: parts.collect(), unit: amount.unit }
}

fn line(spec: &LineSpec, tree: &mut PointerTree) -> LineSlots {
    let (product, quantity) = (slot(&spec.product, tree), slot(&spec.quantity, tree));
    let (price, is_total) = match &spec.price {
        PriceSpec::Each(source) => (amount(source, tree), false),
        PriceSpec::Total(source) => (amount(source, tree), true),
    };
    LineSlots { product, quantity, price, is_total }
}
