//! Reads the sections `[formats.<name>]`: how an order is read from a producer's document.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use super::layers::Value;
use super::section::{Section, ValueParser};
use super::suggestion::{did_you_mean, listed};
use super::value_parser;
use crate::formats::spec::{
    AmountSource, CancelledIf, EventSource, ItemsSpec, LineSpec, MAX_PARTS, PriceSpec, Source, Spec, TextSource, Unit,
};
use crate::formats::{BUILT_IN, Format, MAX_POINTER_BYTES, Pointer};

/// Longest name of a format, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Longest prefix of an id, in bytes. An id with its prefix has at most 200.
const MAX_PREFIX_BYTES: usize = 64;
/// Longest constant, in bytes.
const MAX_CONSTANT_BYTES: usize = 1024;
/// Most values that say that an order was cancelled.
const MAX_VALUES: usize = 16;
/// Most formats of a configuration.
const MAX_FORMATS: usize = 64;
/// Names that `orderd check --format` takes for its output format.
const OUTPUT_FORMATS: [&str; 2] = ["text", "json"];

/// The formats of a configuration, by name.
pub(super) type Formats = BTreeMap<String, Format>;

/// Reads all formats. What is wrong is reported.
pub(super) fn formats(section: Option<Section<'_>>) -> Formats {
    let Some(section) = section else { return Formats::new() };
    let (report, path) = (section.report(), section.path().to_owned());
    let named = section.into_named_sections();
    if named.len() > MAX_FORMATS {
        report.problem(&path, format!("must have at most {MAX_FORMATS}, has {}", named.len()));
    }
    let read = |(name, section): (String, Section<'_>)| {
        let format = Format::new(&name, format(&name, section));
        (name, format)
    };
    named.into_iter().map(read).collect()
}

/// The format of a consumer of orders.
pub(super) fn of_consumer(section: &mut Section<'_>, formats: &Formats) -> Format {
    let Some(name) = section.optional("format", &value_parser::text(MAX_NAME_BYTES)) else { return Format::Own };
    if let Some(format) = formats.get(&name).cloned().or_else(|| Format::built_in(&name)) {
        return format;
    }
    let names: Vec<&str> = BUILT_IN.into_iter().chain(formats.keys().map(String::as_str)).collect();
    let hint = did_you_mean(&name, names.iter().copied());
    section.problem("format", format!("must be one of {}, is {name:?}{hint}", listed(&names)));
    Format::Own
}

fn format(name: &str, mut section: Section<'_>) -> Spec {
    if let Some(message) = value_parser::name_problem(name, MAX_NAME_BYTES) {
        section.section_problem(message);
    } else if BUILT_IN.contains(&name) {
        section.section_problem("must have another name: a format of this name comes with orderd");
    } else if OUTPUT_FORMATS.contains(&name) {
        section.section_problem("must have another name: \"text\" and \"json\" are output formats of `orderd check`");
    }
    let units = [("major", Unit::Major), ("minor", Unit::Minor)];
    let unit = section.optional("unit", &value_parser::one_of(&units));
    // The amounts of the base are in this unit, too: it is the unit of the whole document.
    let base = section.optional("base", &base_spec).map(|base| match unit {
        Some(unit) => base.in_unit(unit),
        None => base,
    });
    let unit = unit.unwrap_or_default();
    let hint = ": where the order's id is, such as \"/id\"";
    let id = if base.is_some() { section.optional("id", &id) } else { section.required("id", hint, &id) };
    let (source_of_id, prefix) = id.clone().unwrap_or_default();
    if base.is_none() && id.is_some() && source_of_id.is_none() {
        section.problem("id", "must have the key \"pointer\", unless the format has a base");
    }
    // A placeholder for one that is wrong, which is reported.
    let nothing = || Spec::of_id(TextSource { source: Source::Constant("null".to_owned()), none: None });
    let base = base.unwrap_or_else(nothing);
    let charge = amount(false, true, unit);
    let spec = Spec {
        id: source_of_id.unwrap_or(base.id),
        event: section.optional("event", &event).or(base.event),
        id_prefix: prefix.unwrap_or(base.id_prefix),
        line: only_line(&mut section, unit).or(base.line),
        items: section.optional_section("items").and_then(|section| items(section, unit)).or(base.items),
        customer_id: section.optional("customer_id", &text_source).or(base.customer_id),
        email: section.optional("email", &text_source).or(base.email),
        phone: section.optional("phone", &source(false)).or(base.phone),
        locale: section.optional("locale", &source(false)).or(base.locale),
        currency: section.optional("currency", &source(false)).or(base.currency),
        placed_at: section.optional("placed_at", &source(false)).or(base.placed_at),
        notify: section.optional("notify", &source(false)).or(base.notify),
        priority: section.optional("priority", &source(false)).or(base.priority),
        total: section.optional("total", &amount(false, false, unit)).or(base.total),
        shipping: section.optional("shipping", &charge).or(base.shipping),
        fees: section.optional("fees", &charge).or(base.fees),
        tax: section.optional("tax", &charge).or(base.tax),
        tax_included: section.optional("tax_included", &source(false)).or(base.tax_included),
        discount: section.optional("discount", &charge).or(base.discount),
        rounding: section.optional("rounding", &rounding).unwrap_or(base.rounding),
    };
    let report = section.report();
    let path = section.path().to_owned();
    if spec.line.is_none() && spec.items.is_none() && !report.has(&path) {
        report.problem(
            &path,
            "must say where the products are: in [formats.<name>.items], or with product, quantity and price",
        );
    }
    section.finish();
    spec
}

/// The only line, in the document itself: all of its keys or none.
fn only_line(section: &mut Section<'_>, unit: Unit) -> Option<LineSpec> {
    let product = section.optional("product", &source(false));
    let quantity = section.optional("quantity", &source(false));
    let price = section.optional("price", &amount(false, false, unit));
    match (product, quantity, price) {
        (Some(product), Some(quantity), Some(price)) => {
            Some(LineSpec { product, quantity, price: PriceSpec::Each(price) })
        }
        (None, None, None) => None,
        (product, quantity, price) => {
            let missing =
                [("product", product.is_none()), ("quantity", quantity.is_none()), ("price", price.is_none())];
            for (key, _) in missing.into_iter().filter(|(_, is_missing)| *is_missing) {
                section.problem(key, "is missing: product, quantity and price belong together");
            }
            None
        }
    }
}

fn items(mut section: Section<'_>, unit: Unit) -> Option<ItemsSpec> {
    let list = section.required("list", ": where the list of items is, such as \"/line_items\"", &one_pointer(false));
    let product = section.required("product", ", relative to an item, such as \"name\"", &source(true));
    let quantity = section.required("quantity", ", relative to an item", &source(true));
    let price = section.optional("price", &amount(true, false, unit));
    let total = section.optional("total", &amount(true, false, unit));
    let price = match (price, total) {
        (Some(price), None) => Some(PriceSpec::Each(price)),
        (None, Some(total)) => Some(PriceSpec::Total(total)),
        (Some(_), Some(_)) => {
            section.problem("total", "must not be given with price: an item has the price of one piece or its total");
            None
        }
        (None, None) => {
            section.problem("price", "is missing, relative to an item; or give total, that of the item");
            None
        }
    };
    section.finish();
    Some(ItemsSpec { list: list?, line: LineSpec { product: product?, quantity: quantity?, price: price? } })
}

fn pointer(relative: bool) -> impl Fn(&Value) -> Result<Pointer, String> {
    move |value| {
        let text = value_parser::text(MAX_POINTER_BYTES)(value)?;
        let pointer = if relative { Pointer::relative(&text) } else { text.parse() };
        pointer.map_err(|error| format!("{error}, is {value}"))
    }
}

fn one_pointer(relative: bool) -> impl Fn(&Value) -> Result<Pointer, String> {
    move |value| pointer(relative)(value)?.to_one().map_err(|error| format!("{error}, is {value}"))
}

/// The keys of an inline table, which must be among these.
fn keys<'v, const N: usize>(value: &'v Value, known: [&str; N]) -> Result<[Option<&'v Value>; N], String> {
    let Value::Table(table) = value else { return Err(format!("must be a pointer or a table, is {value}")) };
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("must have no key but {}, has {key:?}", listed(&known))),
        None => Ok(known.map(|key| table.get(key))),
    }
}

/// A pointer, or `{ value = … }`.
fn source(relative: bool) -> impl Fn(&Value) -> Result<Source, String> {
    move |value| match value {
        Value::Table(_) => match keys(value, ["value"])? {
            [Some(constant)] => constant_json(constant).map(Source::Constant),
            [None] => Err("must be a pointer or { value = … }".to_owned()),
        },
        _ => one_pointer(relative)(value).map(Source::Pointer),
    }
}

fn constant_json(value: &Value) -> Result<String, String> {
    let json = match value {
        Value::Text(text) | Value::Untyped(text) if text.len() <= MAX_CONSTANT_BYTES => {
            serde_json::Value::from(text.as_str())
        }
        Value::Boolean(boolean) => serde_json::Value::from(*boolean),
        Value::Integer(number) => return Ok(number.to_string()),
        Value::Text(_) | Value::Untyped(_) => return Err(format!("must have at most {MAX_CONSTANT_BYTES} bytes")),
        Value::Float(_) | Value::Time | Value::List(_) | Value::Table(_) => {
            return Err(format!("must be a text, a whole number or a boolean, is {value}"));
        }
    };
    Ok(json.to_string())
}

/// A pointer, or `{ pointer = …, none = … }`.
fn text_source(value: &Value) -> Result<TextSource, String> {
    let Value::Table(_) = value else { return source(false)(value).map(|source| TextSource { source, none: None }) };
    match keys(value, ["pointer", "none", "value"])? {
        [Some(pointer), none, None] => {
            let none = none.map(value_parser::text(MAX_CONSTANT_BYTES)).transpose()?;
            Ok(TextSource { source: Source::Pointer(one_pointer(false)(pointer)?), none })
        }
        [None, None, Some(constant)] => {
            Ok(TextSource { source: Source::Constant(constant_json(constant)?), none: None })
        }
        _ => Err("must be a pointer, { pointer = …, none = … } or { value = … }".to_owned()),
    }
}

/// A pointer to the name of an event, or `{ pointer = …, cancelled = … }`.
fn event(value: &Value) -> Result<EventSource, String> {
    let Value::Table(_) = value else {
        return Ok(EventSource { pointer: one_pointer(false)(value)?, cancelled: CancelledIf::Named });
    };
    let problem = "must be a pointer or { pointer = …, cancelled = … }, where cancelled is true or a list of texts";
    let [Some(at), Some(cancelled)] = keys(value, ["pointer", "cancelled"])? else { return Err(problem.to_owned()) };
    let cancelled = match cancelled {
        Value::Boolean(true) => CancelledIf::Present,
        Value::List(values) if (1..=MAX_VALUES).contains(&values.len()) => {
            let text = value_parser::text(MAX_CONSTANT_BYTES);
            CancelledIf::OneOf(values.iter().map(text).collect::<Result<_, _>>()?)
        }
        _ => return Err(format!("{problem} (1 to {MAX_VALUES})")),
    };
    Ok(EventSource { pointer: one_pointer(false)(at)?, cancelled })
}

/// Where the id is, and what precedes it: a text, or `{ pointer = …, prefix = … }`. With a base, `{ prefix = … }`.
type IdKeys = (Option<TextSource>, Option<String>);

fn id(value: &Value) -> Result<IdKeys, String> {
    let Value::Table(table) = value else { return text_source(value).map(|source| (Some(source), None)) };
    let mut rest = table.clone();
    let prefix = rest.remove("prefix").as_ref().map(value_parser::text(MAX_PREFIX_BYTES)).transpose();
    let prefix = prefix.map_err(|error| format!("prefix {error}"))?;
    let source = if rest.is_empty() && prefix.is_some() { None } else { Some(text_source(&Value::Table(rest))?) };
    Ok((source, prefix))
}

/// The format that comes with orderd under this name.
fn base_spec(value: &Value) -> Result<Spec, String> {
    let name = value_parser::text(MAX_NAME_BYTES)(value)?;
    Spec::built_in(&name).ok_or_else(|| format!("must be one of {}, is {value}", listed(&BUILT_IN)))
}

/// A pointer, a list of pointers whose amounts are added up, or `{ pointer = …, unit = … }`. `several`: more than one amount is
/// possible.
fn amount(relative: bool, several: bool, unit: Unit) -> impl Fn(&Value) -> Result<AmountSource, String> {
    move |value| {
        let (pointers, unit) = match value {
            Value::Table(_) => {
                let [pointers, own_unit] = keys(value, ["pointer", "unit"])?;
                let units = [("major", Unit::Major), ("minor", Unit::Minor)];
                let own_unit = own_unit.map(value_parser::one_of(&units)).transpose()?;
                (pointers.ok_or("must have the key \"pointer\"")?, own_unit.unwrap_or(unit))
            }
            pointers => (pointers, unit),
        };
        let one = |value: &Value| if several { pointer(relative)(value) } else { one_pointer(relative)(value) };
        let parts = match pointers {
            Value::List(_) if !several => {
                return Err("must be one pointer: only shipping, fees, tax and discount add up several".to_owned());
            }
            Value::List(list) if !(1..=MAX_PARTS).contains(&list.len()) => {
                return Err(format!("must have 1 to {MAX_PARTS} pointers, has {}", list.len()));
            }
            Value::List(list) => list.iter().map(one).collect::<Result<_, _>>()?,
            value => vec![one(value)?],
        };
        Ok(AmountSource { parts, unit })
    }
}

/// A decimal as text: TOML's numbers with a fraction are floats.
fn rounding(value: &Value) -> Result<Decimal, String> {
    let problem = || format!("must be a decimal in quotes from \"0\" to \"1\", such as \"0.01\", is {value}");
    let text = match value {
        Value::Text(text) | Value::Untyped(text) => text,
        _ => return Err(problem()),
    };
    let unit = Decimal::from_str_exact(text).map_err(|_| problem())?;
    if unit >= Decimal::ZERO && unit <= Decimal::ONE { Ok(unit) } else { Err(problem()) }
}

/// Checks that a parser has the type that [`Section`] expects.
const _: ValueParser<'_, TextSource> = &text_source;
