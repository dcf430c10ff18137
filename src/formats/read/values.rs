//! Reads single values, and keeps what is wrong with them and, for an explanation, what they are. Pure.

use rust_decimal::Decimal;

use super::super::fault::{Fault, MAX_FAULTS, ValueProblem};
use super::super::mapping::{AmountSlots, ValueSlot};
use super::super::money;
use super::super::pointer::Found;
use super::{FieldReading, Reader};
use crate::domain::value::{self, TypeMismatch};
use crate::domain::{AmountField, RuleError, TextField, sum_exactly};

/// The value, unless it counts as missing.
pub(super) fn raw<'a>(slot: &'a ValueSlot, found: &Found<'a>) -> Option<&'a str> {
    given(slot, found).filter(|raw| is_present(raw))
}

/// The value, also if it is null or empty.
pub(super) fn given<'a>(slot: &'a ValueSlot, found: &Found<'a>) -> Option<&'a str> {
    match slot {
        ValueSlot::At { number, .. } => found.one(*number),
        ValueSlot::Constant(json) => Some(json),
    }
}

/// What is wrong with a required value that counts as missing.
pub(super) fn absent(given: Option<&str>) -> ValueProblem {
    match given {
        None => ValueProblem::Missing,
        Some("null") => ValueProblem::Null,
        Some(_) => ValueProblem::Empty,
    }
}

/// The place that field names and pointers are relative to.
#[derive(Clone, Copy)]
pub(super) enum Scope<'s> {
    Document,
    Item { list: &'s ValueSlot, index: usize },
}

impl Scope<'_> {
    pub(super) fn field(self, name: &str) -> String {
        match self {
            Scope::Document => name.to_owned(),
            Scope::Item { index, .. } => format!("items[{index}].{name}"),
        }
    }

    pub(super) fn pointer(self, pointer: &impl ToString) -> String {
        match self {
            Scope::Item { list: ValueSlot::At { pointer: list, .. }, index } => {
                format!("{list}/{index}{}", pointer.to_string())
            }
            Scope::Item { list: ValueSlot::Constant(_), .. } | Scope::Document => pointer.to_string(),
        }
    }
}

impl Reader {
    /// The sum of all parts of an amount that are there.
    pub(super) fn amount(
        &mut self,
        scope: Scope<'_>,
        field: AmountField,
        name: &str,
        slots: &AmountSlots,
        found: &Found<'_>,
    ) -> Option<Decimal> {
        let (mut amounts, mut is_wrong) = (Vec::new(), false);
        for (pointer, number) in &slots.parts {
            for raw in found.all(*number).filter(|raw| is_present(raw)) {
                match money::read(raw, field, slots.unit, &mut self.currency) {
                    Ok(amount) => amounts.push(amount),
                    Err(problem) => {
                        let (field, pointer) = (scope.field(name), Some(scope.pointer(pointer)));
                        self.push(Fault { field, pointer, problem });
                        is_wrong = true;
                    }
                }
            }
        }
        if !matches!(field, AmountField::Price | AmountField::Total) {
            self.charges += amounts.len();
        }
        let sum = match amounts.as_slice() {
            _ if is_wrong => None,
            [] => None,
            [amount] => Some(*amount),
            several => sum_exactly(several.iter().copied()),
        };
        let pointers = || slots.parts.iter().map(|(pointer, _)| scope.pointer(pointer)).collect::<Vec<_>>().join(" + ");
        if !amounts.is_empty() && sum.is_none() && !is_wrong {
            self.push(Fault { field: scope.field(name), pointer: Some(pointers()), problem: RuleError::Total.into() });
        }
        if let Some(fields) = &mut self.fields {
            let value = sum.map(|sum| sum.to_string());
            fields.push(FieldReading { field: scope.field(name), pointer: Some(pointers()), value });
        }
        sum
    }

    /// An optional text. `Some` even if it is too long, so that it does not seem missing.
    pub(super) fn text(
        &mut self,
        scope: Scope<'_>,
        name: &str,
        (slot, none): &(ValueSlot, Option<String>),
        found: &Found<'_>,
        limit: Option<TextField>,
        read: fn(&str) -> Result<String, TypeMismatch>,
    ) -> Option<String> {
        let text = self.optional(scope, name, Some(slot), found, read)?;
        if none.as_ref() == Some(&text) {
            if let Some(last) = self.fields.as_mut().and_then(|fields| fields.last_mut()) {
                last.value = None;
            }
            return None;
        }
        if let Some(field) = limit.filter(|field| text.len() > field.max_bytes()) {
            let rule = RuleError::TooLong { field, length: text.len() };
            self.fault(scope, name, slot, rule.into());
        }
        Some(text)
    }

    pub(super) fn required<T: ToString>(
        &mut self,
        scope: Scope<'_>,
        name: &str,
        slot: &ValueSlot,
        found: &Found<'_>,
        read: impl Fn(&str) -> Result<T, ValueProblem>,
    ) -> Option<T> {
        let value = self.optional(scope, name, Some(slot), found, read);
        value.or_else(|| self.missing(scope, name, slot, found))
    }

    pub(super) fn optional<T: ToString, E: Into<ValueProblem>>(
        &mut self,
        scope: Scope<'_>,
        name: &str,
        slot: Option<&ValueSlot>,
        found: &Found<'_>,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let slot = slot?;
        let value = match raw(slot, found).map(read) {
            Some(Err(problem)) => {
                self.fault(scope, name, slot, problem.into());
                None
            }
            Some(Ok(value)) => Some(value),
            None => None,
        };
        if let Some(fields) = &mut self.fields {
            let pointer = match slot {
                ValueSlot::At { pointer, .. } => Some(scope.pointer(pointer)),
                ValueSlot::Constant(_) => None,
            };
            fields.push(FieldReading { field: scope.field(name), pointer, value: value.as_ref().map(T::to_string) });
        }
        value
    }

    /// Reports a required value as missing, unless it is there and wrong.
    pub(super) fn missing<T>(
        &mut self,
        scope: Scope<'_>,
        name: &str,
        slot: &ValueSlot,
        found: &Found<'_>,
    ) -> Option<T> {
        if raw(slot, found).is_none() {
            self.fault(scope, name, slot, absent(given(slot, found)));
        }
        None
    }

    pub(super) fn fault(&mut self, scope: Scope<'_>, name: &str, slot: &ValueSlot, problem: ValueProblem) {
        let pointer = match slot {
            ValueSlot::At { pointer, .. } => Some(scope.pointer(pointer)),
            ValueSlot::Constant(_) => None,
        };
        self.push(Fault { field: scope.field(name), pointer, problem });
    }

    pub(super) fn push(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }
}

pub(super) fn is_present(raw: &str) -> bool {
    !value::is_missing(raw)
}
