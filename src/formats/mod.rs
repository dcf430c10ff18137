//! Formats: how an order is read from a producer's JSON document.
//!
//! ```text
//! spec      where each value of an order is: plain values, from the configuration or built in
//! mapping   a spec, compiled          pointer   JSON pointers, and finding all of them in one pass
//! read      reads an order            money     amounts in major and minor units
//! fault     what is wrong with a document            rule_fault the place of a broken rule
//! ```
//! Pure: a document in, an order or all of its faults out. It never decides what happens to an order.

mod builtin;
mod fault;
mod mapping;
mod money;
mod pointer;
mod read;
mod rule_fault;
pub mod spec;

use std::sync::Arc;

pub use builtin::{BUILT_IN, OWN};
pub use fault::{Fault, OrderFaults, ValueProblem};
pub use mapping::Mapping;
pub use pointer::{MAX_POINTER_BYTES, Pointer, PointerError};
pub use read::{Explained, Explanation, FieldReading};

use crate::domain::{
    Amounts, Order, OrderDocument, OrderEvent, OrderId, OtherFields, TextField, UnsupportedEvent, object_fields, value,
};

/// A format. A clone shares it.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Format {
    /// orderd's own, which has a decoder that is faster than a mapping.
    #[default]
    Own,
    /// One that maps the fields of a document.
    Mapped(Arc<Mapping>),
}

impl Format {
    /// The format with this name, if it comes with orderd.
    pub fn built_in(name: &str) -> Option<Self> {
        if name == OWN { Some(Format::Own) } else { builtin::spec(name).map(|spec| Self::new(name, spec)) }
    }

    /// A format of the configuration.
    pub fn new(name: &str, spec: spec::Spec) -> Self {
        Format::Mapped(Arc::new(Mapping::new(name, spec)))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Format::Own => OWN,
            Format::Mapped(mapping) => mapping.name(),
        }
    }

    /// Where the values are; `None` for orderd's own.
    pub fn spec(&self) -> Option<&spec::Spec> {
        match self {
            Format::Own => None,
            Format::Mapped(mapping) => Some(mapping.spec()),
        }
    }

    /// Reads an order, which may still break a rule ([`Format::check`]), or a cancellation, of which only the id is read. `stated` is
    /// what the message says besides: its type.
    ///
    /// # Errors
    /// All faults of a document in a mapped format; the first of one in orderd's own.
    pub fn read(&self, document: &str, stated: Option<OrderEvent>) -> Result<OrderDocument, OrderFaults> {
        match self {
            Format::Own => OrderDocument::from_json(document, stated).map_err(OrderFaults::whole),
            Format::Mapped(mapping) => read::document(mapping, document, stated),
        }
    }

    /// Reads an order that was placed.
    ///
    /// # Errors
    /// As [`Format::read`]; and that the order was cancelled.
    pub fn decode(&self, document: &str) -> Result<Order, OrderFaults> {
        match self.read(document, None)? {
            OrderDocument::Placed(order) => Ok(order),
            OrderDocument::Cancelled(_) => Err(OrderFaults::whole(UnsupportedEvent)),
        }
    }

    /// Checks the shop's rules for an order in this format. Returns the order's amounts.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, order: &Order) -> Result<Amounts, OrderFaults> {
        order.check().map_err(|rule| {
            let fault = match self {
                Format::Own => Fault { field: String::new(), pointer: None, problem: rule.into() },
                Format::Mapped(mapping) => rule_fault::rule_fault(mapping, rule),
            };
            OrderFaults::of_order(order, fault)
        })
    }

    /// Whether the ids of its orders are those of their documents, which another shop's may be too.
    pub fn has_plain_ids(&self) -> bool {
        self.spec().is_none_or(|spec| spec.id_prefix.is_empty())
    }

    /// The order's id if the document has a readable one, even if the rest is invalid.
    pub fn order_id(&self, document: &str) -> Option<OrderId> {
        match self {
            Format::Own => {
                let [id] = object_fields(document, &["id"], OtherFields::NONE).ok()?.named;
                serde_json::from_str(id?.get()).ok()
            }
            Format::Mapped(mapping) => read::order_id(mapping, document),
        }
    }

    /// The customer's id if the document has a readable one, even if the rest is invalid.
    pub fn customer_id(&self, document: &str) -> Option<String> {
        match self {
            Format::Own => {
                let [id] = object_fields(document, &["customer_id"], OtherFields::NONE).ok()?.named;
                let id = value::as_id(id?.get()).ok()?;
                Some(id).filter(|id| id.len() <= TextField::CustomerId.max_bytes())
            }
            Format::Mapped(mapping) => read::customer_id(mapping, document),
        }
    }

    /// What orderd reads from a document, value by value, and everything that is wrong with it.
    pub fn explain(&self, document: &str, stated: Option<OrderEvent>) -> Explanation {
        match self {
            Format::Own => {
                let mapping = Mapping::new(OWN, builtin::spec(OWN).expect("it is built in"));
                let mut explanation = read::explain(&mapping, document, stated);
                // The decoder that messages pass has the last word.
                if explanation.result.is_ok() {
                    explanation.result = self.read(document, stated).and_then(|document| match document {
                        OrderDocument::Placed(order) => self.check(&order).map(Explained::Placed),
                        OrderDocument::Cancelled(id) => Ok(Explained::Cancelled(id)),
                    });
                }
                explanation
            }
            Format::Mapped(mapping) => read::explain(mapping, document, stated),
        }
    }
}

#[cfg(test)]
mod tests;
