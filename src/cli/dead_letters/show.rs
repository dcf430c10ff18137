//! `orderd dead-letters show`.

use std::io::{self, Write};

use clap::Args;
use serde_json::Value;

use super::Done;
use super::body::readable;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::ledger_source::LedgerSource;
use crate::cli::output::write_json;
use crate::cli::text::labelled;
use crate::cli::{Exit, Format};
use crate::dead_letters::WholeLetter;
use crate::escape::escaped;

/// Arguments of `orderd dead-letters show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Number of the dead letter
    #[arg(value_name = "ID")]
    id: i64,
    #[command(flatten)]
    pub daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &ShowArgs,
    source: &LedgerSource,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Done> {
    match source.letter(args.id).await {
        Ok(Some(letter)) => {
            match args.format {
                Format::Text => write_text(&letter, out)?,
                Format::Json => write_json(&letter, out)?,
            }
            Ok(Ok(Exit::Done))
        }
        Ok(None) => {
            writeln!(err, "orderd: there is no dead letter {}: orderd dead-letters list", args.id)?;
            Ok(Ok(Exit::Refused))
        }
        Err(error) => Ok(Err(error)),
    }
}

fn write_text(whole: &WholeLetter, out: &mut dyn Write) -> io::Result<()> {
    let WholeLetter { letter, product_names, attempts, steps, .. } = whole;
    let mut line = |label: &str, text: Option<&str>| match text {
        Some(text) => labelled(label, &escaped(text), out),
        None => Ok(()),
    };
    line("dead letter", Some(&format!("{} ({})", letter.id, letter.state.as_str())))?;
    line("taken from", Some(&format!("{}, put there by {}", letter.source.as_str(), letter.origin.as_str())))?;
    line("consumer", letter.consumer.as_deref())?;
    let code = if letter.code == letter.reason { String::new() } else { format!(", code {}", letter.code) };
    line("reason", Some(&format!("{}{code}, after {} delayed retries", letter.reason, letter.retries)))?;
    line("broker's reason", letter.broker_reason.as_deref().filter(|reason| *reason != letter.reason))?;
    let original =
        letter.maybe_duplicate_of.map(|id| format!("of {id}, with the same content: its ack may have been lost"));
    line("maybe again", original.as_deref())?;
    line("body", letter.unread.then_some("never read by orderd: reading it has ended a process"))?;
    line("failure", letter.failure_reason.as_deref())?;
    line("failed", Some(&format!("{:.0}, collected {:.0}", letter.failed_at, letter.collected_at)))?;
    line("identity", letter.identity.as_deref())?;
    line("order", letter.order_id.as_deref())?;
    line("customer", letter.customer_id.as_deref())?;
    line("products", Some(&*product_names.join(", ")).filter(|names| !names.is_empty()))?;
    let total = letter.total.zip(letter.currency.as_deref()).map(|(total, currency)| format!("{total} {currency}"));
    line("total", total.as_deref())?;
    line("queue", letter.origin_queue.as_deref())?;
    line("published to", Some(&format!("{:?} with routing key {:?}", letter.exchange, letter.routing_key)))?;
    line("user_id", letter.user_id.as_deref())?;
    line("note", letter.note.as_deref())?;
    write_table("properties", &whole.properties, out, |value| value)?;
    write_table("headers", &whole.headers, out, |value| value.get("value").unwrap_or(value))?;
    writeln!(out, "\nbody, {} bytes", letter.bytes)?;
    for line in text_of(whole).lines() {
        writeln!(out, "  {}", escaped(line))?;
    }
    if !attempts.is_empty() {
        writeln!(out, "\nattempts")?;
    }
    for attempt in attempts {
        let then = attempt
            .delay
            .as_deref()
            .map_or_else(|| "dead-lettered".to_owned(), |delay| format!("retried after {delay}"));
        let text = format!("  {:.0}  {} {}: {}; {then}", attempt.at, attempt.kind, attempt.code, attempt.reason);
        writeln!(out, "{}", escaped(&text))?;
    }
    if !steps.is_empty() {
        writeln!(out, "\nsteps")?;
    }
    for step in steps {
        let undo = if step.action == "do" { "" } else { " (undo)" };
        let what = match (&step.result, &step.code, &step.reason) {
            (_, Some(code), Some(reason)) => format!(" {code}: {reason}"),
            (Some(result), ..) => format!(" {result}"),
            _ => String::new(),
        };
        let text = format!("  {:.0}  {}{undo} {}, {} calls{what}", step.at, step.name, step.status, step.attempts);
        writeln!(out, "{}", escaped(&text))?;
    }
    Ok(())
}

/// The body as lines of text.
fn text_of(whole: &WholeLetter) -> String {
    match (&whole.body, &whole.body_base64) {
        (Some(text), _) => readable(text.as_bytes()),
        (None, base64) => format!("(Base64) {}", base64.as_deref().unwrap_or_default()),
    }
}

/// Names and values, one on a line.
fn write_table(
    heading: &str,
    values: &Value,
    out: &mut dyn Write,
    shown: for<'v> fn(&'v Value) -> &'v Value,
) -> io::Result<()> {
    let Some(values) = values.as_object().filter(|values| !values.is_empty()) else { return Ok(()) };
    writeln!(out, "\n{heading}")?;
    for (name, value) in values {
        let value = match shown(value) {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        writeln!(out, "  {}: {}", escaped(name), escaped(&value))?;
    }
    Ok(())
}
