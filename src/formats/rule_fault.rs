//! The place in a document of a broken rule about the whole order. Pure.

use super::fault::Fault;
use super::mapping::{AmountSlots, Mapping};
use crate::domain::RuleError;

/// A rule about the whole order, with the pointer of the field that it concerns most.
pub(super) fn rule_fault(mapping: &Mapping, rule: RuleError) -> Fault {
    let slots = &mapping.document;
    let amount = |name: &str, slots: &Option<AmountSlots>| {
        let parts = slots.iter().flat_map(|slots| &slots.parts);
        let pointers: Vec<_> = parts.map(|(pointer, _)| pointer.to_string()).collect();
        (name.to_owned(), (!pointers.is_empty()).then(|| pointers.join(" + ")))
    };
    let (field, pointer) = match &rule {
        RuleError::TotalMismatch { .. } | RuleError::Total => amount("total", &slots.total),
        RuleError::NegativeTotal => amount("discount", &slots.discount),
        RuleError::Quantity(_)
        | RuleError::Negative(_)
        | RuleError::TooPrecise(_)
        | RuleError::TooLarge(_)
        | RuleError::Currency(_)
        | RuleError::Currencies
        | RuleError::Product
        | RuleError::Products { .. }
        | RuleError::TooLong { .. }
        | RuleError::TooManyFields
        | RuleError::Items(_)
        | RuleError::Item { .. } => (String::new(), None),
    };
    Fault { field, pointer, problem: rule.into() }
}
