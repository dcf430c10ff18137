//! `orderd dead-letters show`.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;

use super::Done;
use super::body::{decompressed, readable};
use super::list_text::replay_text;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::argument::number;
use crate::cli::ledger_source::LedgerSource;
use crate::cli::output::write_json;
use crate::cli::text::{counted, labelled, round_text, route};
use crate::cli::{Exit, Format};
use crate::dead_letters::WholeLetter;
use crate::escape::escaped;
use crate::ledger::{
    DeadLetter, LetterAttempt, LetterDelivery, LetterOrigin, LetterReplay, LetterRevision, LetterSource, LetterStep,
};
use crate::message::names::{ORIGIN_EXCHANGE, ORIGIN_ROUTING_KEY};

/// Arguments of `orderd dead-letters show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Number of the dead letter
    #[arg(value_name = "ID", value_parser = number)]
    id: i64,
    /// Show the content in this revision; 0 is the one as it came [default: the last one]
    #[arg(long, value_name = "N", value_parser = number)]
    revision: Option<i64>,
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
    match source.letter(args.id, args.revision).await {
        Ok(Some(letter)) => {
            match args.format {
                Format::Text => write_text(&letter, out)?,
                Format::Json => write_json(&letter, out)?,
            }
            Ok(Ok(Exit::Done))
        }
        Ok(None) => {
            match args.revision {
                None => writeln!(err, "orderd: there is no dead letter {}: orderd dead-letters list", args.id)?,
                Some(revision) => {
                    writeln!(err, "orderd: there is no dead letter {} with revision {revision}", args.id)?;
                }
            }
            Ok(Ok(Exit::Refused))
        }
        Err(error) => Ok(Err(error)),
    }
}

fn write_text(whole: &WholeLetter, out: &mut dyn Write) -> io::Result<()> {
    write_cause(&whole.letter, out)?;
    write_order(whole, out)?;
    write_edits(whole, out)?;
    write_table("properties", &whole.properties, out, |value| value)?;
    write_table("headers", &whole.headers, out, |value| value.get("value").unwrap_or(value))?;
    write_body(whole, out)?;
    write_replays(&whole.replays, out)?;
    write_attempts(&whole.attempts, out)?;
    write_deliveries(&whole.deliveries, out)?;
    write_steps(&whole.steps, out)
}

/// A label and what is known about it.
fn line(label: &str, text: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    match text {
        Some(text) => labelled(label, &escaped(text), out),
        None => Ok(()),
    }
}

/// What failed, where and why.
fn write_cause(letter: &DeadLetter, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |label: &str, text: Option<&str>| line(label, text, out);
    line("dead letter", Some(&format!("{} ({})", letter.id, letter.state.as_str())))?;
    line("taken from", Some(&format!("{}, put there by {}", letter.source.as_str(), letter.origin.as_str())))?;
    line("consumer", letter.consumer.as_deref())?;
    let code = if letter.code == letter.reason { String::new() } else { format!(", code {}", letter.code) };
    let retries = letter.consumer.as_ref().map(|_| format!(", after {}", counted(letter.retries, "delayed retry")));
    line("reason", Some(&format!("{}{code}{}", letter.reason, retries.unwrap_or_default())))?;
    line("broker's reason", letter.broker_reason.as_deref().filter(|reason| *reason != letter.reason))?;
    let original =
        letter.maybe_duplicate_of.map(|id| format!("of {id}, with the same content: its ack may have been lost"));
    line("maybe again", original.as_deref())?;
    line("body", letter.unparsed.then_some("never read by orderd: reading it has ended a process"))?;
    line("failure", letter.failure_reason.as_deref())?;
    match letter.source {
        LetterSource::DeadLetterQueue => {
            line("failed", Some(&format!("{:.0}, collected {:.0}", letter.failed_at, letter.collected_at)))?;
        }
        LetterSource::UnroutedQueue => line("collected", Some(&format!("{:.0}", letter.collected_at)))?,
    }
    Ok(())
}

/// The order that it is, and where it was published.
fn write_order(whole: &WholeLetter, out: &mut dyn Write) -> io::Result<()> {
    let WholeLetter { letter, product_names, .. } = whole;
    let mut line = |label: &str, text: Option<&str>| line(label, text, out);
    line("identity", letter.identity.as_deref())?;
    line("order", letter.order_id.as_deref())?;
    line("was order", letter.former_order_id.as_deref())?;
    line("customer", letter.customer_id.as_deref())?;
    line("products", Some(&*product_names.join(", ")).filter(|names| !names.is_empty()))?;
    let total = letter.total.zip(letter.currency.as_deref()).map(|(total, currency)| format!("{total} {currency}"));
    line("total", total.as_deref())?;
    line("queue", letter.origin_queue.as_deref())?;
    let (label, exchange, routing_key) = publication(whole);
    line(label, Some(&format!("{exchange:?} with routing key {routing_key:?}")))?;
    line("user_id", letter.user_id.as_deref())?;
    line("note", letter.note.as_deref())?;
    line("came back", letter.came_back_from.map(|id| format!("from dead letter {id}")).as_deref())
}

/// Its revisions, and which one is shown.
fn write_edits(whole: &WholeLetter, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |label: &str, text: Option<&str>| line(label, text, out);
    for LetterRevision { revision, at, by } in &whole.edits {
        let at = at.map_or_else(String::new, |at| format!(", {at:.0}"));
        let by = by.as_deref().map_or_else(String::new, |by| format!(", by {by}"));
        line("edited", Some(&format!("revision {revision}{at}{by}")))?;
    }
    let last = whole.edits.last().map_or(0, |edit| edit.revision);
    let shown = match whole.revision {
        0 if last > 0 => Some("revision 0: as it came".to_owned()),
        revision if revision < last => Some(format!("revision {revision}, not the last one")),
        revision if revision > 0 => Some(format!("revision {revision}; as it came: --revision 0")),
        _ => None,
    };
    line("shown", shown.as_deref())
}

/// The body, each line indented.
fn write_body(whole: &WholeLetter, out: &mut dyn Write) -> io::Result<()> {
    let (body, is_decompressed) = body_text(whole);
    let decompressed = if is_decompressed { ", shown decompressed" } else { "" };
    let bytes = counted(body_bytes(whole) as i64, "byte");
    writeln!(out, "\nbody, {bytes}, SHA-256 {}{decompressed}", escaped(&whole.body_sha256))?;
    for line in body.lines() {
        writeln!(out, "  {}", escaped(line))?;
    }
    Ok(())
}

/// The replays that have taken it.
fn write_replays(replays: &[LetterReplay], out: &mut dyn Write) -> io::Result<()> {
    if !replays.is_empty() {
        writeln!(out, "\nreplays")?;
    }
    for replay in replays {
        let outcome = replay_text(replay);
        writeln!(out, "  {:.0}  replay {} by {}: {outcome}", replay.at, replay.replay, escaped(&replay.by))?;
    }
    Ok(())
}

/// The attempts of its consumer.
fn write_attempts(attempts: &[LetterAttempt], out: &mut dyn Write) -> io::Result<()> {
    if !attempts.is_empty() {
        writeln!(out, "\nattempts")?;
    }
    for attempt in attempts {
        let then = attempt
            .delay
            .as_deref()
            .map_or_else(|| "dead-lettered".to_owned(), |delay| format!("retried after {delay}"));
        let after = attempt.replay.map_or_else(String::new, |replay| format!("after replay {replay}: "));
        let text = format!("  {:.0}  {after}{} {}: {}; {then}", attempt.at, attempt.kind, attempt.code, attempt.reason);
        writeln!(out, "{}", escaped(&text))?;
    }
    Ok(())
}

/// What servers did not accept of a notification.
fn write_deliveries(deliveries: &[LetterDelivery], out: &mut dyn Write) -> io::Result<()> {
    if !deliveries.is_empty() {
        writeln!(out, "\nfailed deliveries")?;
    }
    for LetterDelivery { at, channel, provider, recipient, kind, code, reason } in deliveries {
        let route = route(channel, Some(provider), recipient.as_deref());
        writeln!(out, "{}", escaped(&format!("  {at:.0}  {route}: {kind} {code}: {reason}")))?;
    }
    Ok(())
}

/// The steps of its consumer.
fn write_steps(steps: &[LetterStep], out: &mut dyn Write) -> io::Result<()> {
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
        let (calls, round) = (counted(step.attempts, "call"), round_text(step.round));
        let text = format!("  {:.0}  {}{undo} {}, {calls}{round}{what}", step.at, step.name, step.status);
        writeln!(out, "{}", escaped(&text))?;
    }
    Ok(())
}

/// Where the message was published, and with which routing key. What orderd has put into the dead letter queue is a copy, whose headers say
/// where the original was.
fn publication(whole: &WholeLetter) -> (&'static str, &str, &str) {
    let letter = &whole.letter;
    let header = |name: &str| whole.headers.get(name)?.get("value")?.as_str();
    let original = header(ORIGIN_EXCHANGE).zip(header(ORIGIN_ROUTING_KEY));
    match (letter.origin, letter.source, original) {
        (LetterOrigin::Orderd, LetterSource::DeadLetterQueue, Some((exchange, key))) => ("published to", exchange, key),
        (LetterOrigin::Orderd | LetterOrigin::Broker, LetterSource::DeadLetterQueue, _) => {
            ("dead-lettered to", &letter.exchange, &letter.routing_key)
        }
        (LetterOrigin::Others, LetterSource::DeadLetterQueue, _) | (_, LetterSource::UnroutedQueue, _) => {
            ("published to", &letter.exchange, &letter.routing_key)
        }
    }
}

/// The length of the body, as it is in the message.
fn body_bytes(whole: &WholeLetter) -> usize {
    match (&whole.body, &whole.body_base64) {
        (Some(text), _) => text.len(),
        (None, base64) => {
            let base64 = base64.as_deref().unwrap_or_default();
            base64.len() / 4 * 3 - base64.bytes().rev().take_while(|byte| *byte == b'=').count()
        }
    }
}

/// The body as lines of text, and whether it was decompressed for that.
fn body_text(whole: &WholeLetter) -> (String, bool) {
    let bytes = match (&whole.body, &whole.body_base64) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, base64) => STANDARD.decode(base64.as_deref().unwrap_or_default()).unwrap_or_default(),
    };
    match decompressed(&bytes, whole.properties["content_encoding"].as_str()) {
        Some(text) => (readable(text.as_bytes()), true),
        None => (readable(&bytes), false),
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

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::json;

    use super::*;
    use crate::ledger::conformance::{at, stored_letter};
    use crate::ledger::memory::MemoryLedger;
    use crate::ledger::{LedgerReader, LetterProgress, LetterWriter, NewStoredLetter};

    async fn whole(letter: NewStoredLetter) -> WholeLetter {
        let ledger = MemoryLedger::default();
        ledger.store_letter(letter).await.unwrap();
        ledger.dead_letter(1).await.unwrap().unwrap().into()
    }

    fn text(whole: &WholeLetter) -> String {
        let mut out = Vec::new();
        write_text(whole, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn a_letter_is_shown_with_the_publication_of_its_producer_and_not_of_the_copy() {
        let mut copy = whole(stored_letter("ord-1", 1)).await;
        assert!(text(&copy).contains("dead-lettered"), "the copy says nothing about the original");
        copy.headers = json!({
            ORIGIN_EXCHANGE: {"type": "string", "value": "shop"},
            ORIGIN_ROUTING_KEY: {"type": "string", "value": "order.normal.app"},
        });
        let shown = text(&copy);
        assert!(shown.contains("published to  \"shop\" with routing key \"order.normal.app\""), "{shown}");
        let forged = WholeLetter {
            letter: crate::ledger::DeadLetter { origin: LetterOrigin::Others, ..copy.letter.clone() },
            ..copy
        };
        assert!(text(&forged).contains("\"orders.dead_letter\""), "its headers are not believed");
    }

    #[tokio::test]
    async fn a_letter_is_shown_with_its_edits_its_replays_and_the_right_number_of_everything() {
        let mut letter = whole(NewStoredLetter { retries: 1, ..stored_letter("ord-1", 1) }).await;
        letter.letter.came_back_from = Some(39);
        letter.revision = 1;
        letter.edits = vec![LetterRevision { revision: 1, at: Some(at(1_000)), by: Some("ada".to_owned()) }];
        letter.replays = vec![LetterReplay {
            replay: 3,
            by: "bob".to_owned(),
            at: at(2_000),
            outcome: LetterProgress::FailedAgain,
            code: None,
            ended_at: None,
            came_back_as: Some(82),
        }];
        let failed = |replay| LetterAttempt {
            at: at(1_000),
            replay,
            retries: 0,
            kind: "transient".to_owned(),
            code: "http_503".to_owned(),
            reason: "busy".to_owned(),
            delay: Some("10s".to_owned()),
        };
        letter.attempts = vec![failed(None), failed(Some(3))];
        letter.deliveries = vec![LetterDelivery {
            at: at(1_000),
            channel: "email".to_owned(),
            provider: "backup".to_owned(),
            recipient: Some("a…@example.com".to_owned()),
            kind: "permanent".to_owned(),
            code: "smtp_550".to_owned(),
            reason: "no such \u{1b}[2J customer".to_owned(),
        }];
        let step = |round| LetterStep {
            at: at(1_000),
            name: "charge".to_owned(),
            action: "do".to_owned(),
            round,
            status: "done".to_owned(),
            attempts: 1,
            duration_ms: Some(12),
            result: None,
            code: None,
            reason: None,
        };
        letter.steps = vec![step(1), step(2)];
        let shown = text(&letter);
        for part in [
            "Z  charge done, 1 call\n",
            "Z  charge done, 1 call, round 2\n",
            "Z  transient http_503: busy; retried after 10s\n",
            "Z  after replay 3: transient http_503: busy; retried after 10s\n",
            "Z  channel email by its fallback backup (a…@example.com): permanent smtp_550: no such \\u{1b}[2J customer\n",
            "after 1 delayed retry\n",
            "from dead letter 39",
            "by ada",
            "--revision 0",
            "replay 3 by bob: failed again, now 82",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(br#"{"id": "ord-1"}"#).unwrap();
        let packed = NewStoredLetter { body: packed.finish().unwrap().into(), ..stored_letter("ord-1", 1) };
        let shown = text(&whole(packed).await);
        assert!(shown.contains(", shown decompressed\n  {\n    \"id\": \"ord-1\"\n  }\n"), "{shown}");

        let unrouted = NewStoredLetter {
            source: LetterSource::UnroutedQueue,
            consumer: String::new(),
            body: vec![0xff].into(),
            ..stored_letter("ord-1", 1)
        };
        let shown = text(&whole(unrouted).await);
        assert!(
            !shown.contains("retries") && !shown.contains("\nfailed ") && shown.contains("body, 1 byte, SHA-256 "),
            "{shown}"
        );
    }
}
