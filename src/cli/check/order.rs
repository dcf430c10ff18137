//! `orderd check --order`: what orderd reads from an order document, value by value, or everything that is wrong with it.
//!
//! It publishes and records nothing.

use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::IgnoredAny;

use crate::cli::output::write_json;
use crate::cli::text::{counted, shortened};
use crate::cli::{Exit, Format, recipient_check, table};
use crate::config::Config;
use crate::domain::{Amounts, Order, OrderDocument};
use crate::escape::escaped;
use crate::files::read_limited;
use crate::formats::{self, BUILT_IN, Explained, Explanation, Fault, OrderFaults};
use crate::message::Message;
use crate::notify::RecipientWarning;

/// Most characters shown of a value. The JSON output has all of them.
const MAX_VALUE_CHARS: usize = 60;

/// Why there is nothing to show. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("there is no format {0:?}; known are {1}")]
    UnknownFormat(String, String),
    #[error("cannot read {0}: {1}")]
    Unreadable(String, io::Error),
    #[error("{0} has more than {1} bytes, the value of broker.max_body")]
    TooLong(String, usize),
    #[error("{0} has more than one order: give a file with one, such as one of its lines")]
    Several(String),
}

/// What is printed. Its JSON is a contract: see `docs/reference/http-api.md`.
#[derive(Debug, Serialize)]
struct OrderReport<'a> {
    /// Whether orderd would accept the order or the cancellation.
    ok: bool,
    /// `placed` or `cancelled`; `None` if it would not.
    event: Option<&'static str>,
    /// The format's name.
    order_format: &'a str,
    /// Each value of the format.
    fields: Vec<FieldReport<'a>>,
    /// `None` if the order is cancelled or not accepted.
    amounts: Option<AmountsReport>,
    /// Everything that is wrong.
    problems: Vec<ProblemReport<'a>>,
    /// Why the customer may not be notified.
    warnings: Vec<WarningReport<'a>>,
}

#[derive(Debug, Serialize)]
struct FieldReport<'a> {
    field: &'a str,
    pointer: Option<&'a str>,
    value: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct AmountsReport {
    goods_total: String,
    shipping: Option<String>,
    fees: Option<String>,
    tax: Option<String>,
    tax_included: Option<bool>,
    discount: Option<String>,
    total: String,
    currency: String,
    quantity: i64,
}

#[derive(Debug, Serialize)]
struct ProblemReport<'a> {
    field: &'a str,
    pointer: Option<&'a str>,
    kind: &'static str,
    code: &'static str,
    message: String,
}

/// Reads the document and prints what orderd reads from it. The exit code is 0, or 1 if orderd would refuse the order.
pub(super) fn run(
    file: &Path,
    format: Option<&str>,
    output: Format,
    config: &Config,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let (format, document) = match find(format, config).and_then(|format| Ok((format, read(file, config)?))) {
        Ok(found) => found,
        Err(error) => {
            writeln!(err, "error: {}", escaped(&error.to_string()))?;
            return Ok(Exit::Usage);
        }
    };
    let message = Message { body: document.into(), ..Message::default() };
    let explanation = match message.document(config.broker.max_body) {
        Ok(text) => format.explain(&text, message.order_event(config.broker.max_body)),
        Err(error) => {
            Explanation { fields: Vec::new(), result: Err(OrderFaults::unreadable(error.code(), error.to_string())) }
        }
    };
    let order = message.document(config.broker.max_body).ok().filter(|_| explanation.result.is_ok()).and_then(|text| {
        match format.read(&text, message.order_event(config.broker.max_body)) {
            Ok(OrderDocument::Placed(order)) => Some(order),
            Ok(OrderDocument::Cancelled(_)) | Err(_) => None,
        }
    });
    let warnings = order.map(|order| recipient_check(config).warnings(&order)).unwrap_or_default();
    let report = OrderReport::new(format.name(), &explanation, &warnings);
    match output {
        Format::Json => write_json(&report, out)?,
        Format::Text => write_text(&report, out, err)?,
    }
    Ok(if report.ok { Exit::Done } else { Exit::Refused })
}

/// Reads and checks an order of a file, for another command.
///
/// # Errors
/// Why there is none, for people.
pub fn read_order(file: &Path, format: &str, config: &Config) -> Result<(Order, Amounts), String> {
    let format = find(Some(format), config).map_err(|error| error.to_string())?;
    let document = read(file, config).map_err(|error| error.to_string())?;
    let message = Message { body: document.into(), ..Message::default() };
    let text = message.document(config.broker.max_body).map_err(|error| error.to_string())?;
    let OrderDocument::Placed(order) = format.read(&text, None).map_err(|faults| faults.to_string())? else {
        return Err("a cancellation has no content: give the order as it was placed".to_owned());
    };
    let amounts = format.check(&order).map_err(|faults| faults.to_string())?;
    Ok((order, amounts))
}

fn find(name: Option<&str>, config: &Config) -> Result<formats::Format, OrderError> {
    let Some(name) = name else { return Ok(formats::Format::Own) };
    let known = config.formats.get(name).cloned().or_else(|| formats::Format::built_in(name));
    known.ok_or_else(|| {
        let names: Vec<_> = BUILT_IN.into_iter().chain(config.formats.keys().map(String::as_str)).collect();
        OrderError::UnknownFormat(name.to_owned(), names.join(", "))
    })
}

fn read(file: &Path, config: &Config) -> Result<Vec<u8>, OrderError> {
    let max = config.broker.max_body;
    let bytes = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        io::stdin().lock().take(limit).read_to_end(&mut bytes).map(|_| bytes)
    } else {
        read_limited(file, max)
    };
    let shown = file.display().to_string();
    match bytes {
        Ok(bytes) if bytes.len() > max => Err(OrderError::TooLong(shown, max)),
        Ok(bytes) if has_several(&bytes) => Err(OrderError::Several(shown)),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(OrderError::Unreadable(shown, error)),
    }
}

/// Whether it is a file for `orderd publish`, with an order in each line.
fn has_several(bytes: &[u8]) -> bool {
    let mut documents = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    matches!((documents.next(), documents.next()), (Some(Ok(_)), Some(Ok(_))))
}

impl<'a> OrderReport<'a> {
    fn new(format: &'a str, explanation: &'a Explanation, warnings: &'a [RecipientWarning]) -> Self {
        let fields = explanation.fields.iter().map(|reading| FieldReport {
            field: &reading.field,
            pointer: reading.pointer.as_deref(),
            value: reading.value.as_deref(),
        });
        let problem = |fault: &'a Fault| ProblemReport {
            field: &fault.field,
            pointer: fault.pointer.as_deref(),
            kind: if fault.problem.is_malformed() { "malformed" } else { "permanent" },
            code: fault.problem.code(),
            message: fault.problem.to_string(),
        };
        let (event, amounts, problems) = match &explanation.result {
            Ok(Explained::Placed(amounts)) => (Some("placed"), Some(AmountsReport::from(amounts)), Vec::new()),
            Ok(Explained::Cancelled(_)) => (Some("cancelled"), None, Vec::new()),
            Err(faults) => (None, None, faults.faults.iter().map(problem).collect()),
        };
        let (ok, fields) = (event.is_some(), fields.collect());
        let warning = |warning: &'a RecipientWarning| WarningReport {
            field: warning.field,
            code: warning.code,
            message: &warning.message,
        };
        let warnings = warnings.iter().map(warning).collect();
        OrderReport { ok, event, order_format: format, fields, amounts, problems, warnings }
    }
}

impl From<&Amounts> for AmountsReport {
    fn from(amounts: &Amounts) -> Self {
        let text = |amount: Option<rust_decimal::Decimal>| amount.map(|amount| amount.to_string());
        let charges = &amounts.charges;
        AmountsReport {
            goods_total: amounts.goods.to_string(),
            shipping: text(charges.shipping),
            fees: text(charges.fees),
            tax: text(charges.tax),
            tax_included: charges.stated_tax_included(),
            discount: text(charges.discount),
            total: amounts.total.to_string(),
            currency: amounts.currency.to_string(),
            quantity: amounts.quantity,
        }
    }
}

#[derive(Debug, Serialize)]
struct WarningReport<'a> {
    field: &'a str,
    code: &'static str,
    message: &'a str,
}

fn write_text(report: &OrderReport<'_>, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "order in format {}", report.order_format)?;
    if !report.fields.is_empty() {
        writeln!(out)?;
        let row = |field: &FieldReport<'_>| {
            let value = field.value.map_or_else(|| "-".to_owned(), |value| shortened(&escaped(value), MAX_VALUE_CHARS));
            [escaped(field.field), escaped(field.pointer.unwrap_or("(constant)")), value]
        };
        table::write_rows(out, ["FIELD", "POINTER", "VALUE"], report.fields.iter().map(row))?;
    }
    if report.event == Some("cancelled") {
        writeln!(out, "\na cancellation: the order with this id is cancelled")?;
    }
    if let Some(amounts) = &report.amounts {
        write!(out, "\n{}, goods {}", counted(amounts.quantity, "piece"), amounts.goods_total)?;
        let tax = if amounts.tax_included == Some(true) { "included tax" } else { "tax" };
        let charges = [
            ("shipping", &amounts.shipping),
            ("fees", &amounts.fees),
            (tax, &amounts.tax),
            ("discount", &amounts.discount),
        ];
        for (name, amount) in charges {
            if let Some(amount) = amount {
                write!(out, ", {name} {amount}")?;
            }
        }
        writeln!(out, ": total {} {}", amounts.total, escaped(&amounts.currency))?;
    }
    for problem in &report.problems {
        let place = match (problem.field, problem.pointer) {
            ("", None) => "the document".to_owned(),
            ("", Some(pointer)) => pointer.to_owned(),
            (field, Some(pointer)) => format!("{field} ({pointer})"),
            (field, None) => field.to_owned(),
        };
        writeln!(err, "error: {}: {}: {}", escaped(&place), problem.code, escaped(&problem.message))?;
    }
    for WarningReport { field, code, message } in &report.warnings {
        writeln!(err, "warning: {field}: {code}: {}", escaped(message))?;
    }
    Ok(())
}
