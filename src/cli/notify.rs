//! `orderd notify`: shows the notification that an event about an order would cause, and sends it to an address for a trial; and
//! sends a trial alert to the operators.
//!
//! It records nothing, and never uses the address in the order.

use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::Value;

use super::{Exit, check, customer_channels, default_channel};
use crate::alerts::{self, AlertSettings};
use crate::config::Config;
use crate::domain::{Notification, is_locale};
use crate::escape::escaped;
use crate::formats;
use crate::instance;
use crate::notify::{self, NotifySettings};

/// Arguments of `orderd notify`.
#[derive(Debug, Clone, clap::Args)]
pub struct NotifyArgs {
    /// The event to show: processed, failed, cancelled, operator, or one with a template of your own
    #[arg(long, value_name = "EVENT", required_unless_present = "alert")]
    pub preview: Option<String>,
    /// A file with the order; - is standard input. Not for operator, which shows examples of alerts
    #[arg(long, value_name = "FILE", requires = "preview")]
    pub order: Option<PathBuf>,
    /// The name of the order's format
    #[arg(long, value_name = "FORMAT", default_value = formats::OWN)]
    pub format: String,
    /// The language, instead of the order's
    #[arg(long, value_name = "LANGUAGE", value_parser = locale)]
    pub language: Option<String>,
    /// The channel [default: the order's, else email]
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<String>,
    /// Also send it to this address, or number, instead of the order's
    #[arg(long, value_name = "ADDRESS")]
    pub send_to: Option<String>,
    /// Show a test of the alerts instead, and send it to the operators of [alerts]
    #[arg(long, conflicts_with_all = ["preview", "language", "channel", "send_to"])]
    pub alert: bool,
}

fn locale(text: &str) -> Result<String, String> {
    is_locale(text).then(|| text.to_owned()).ok_or_else(|| "must be a language such as de or de-AT".to_owned())
}

/// Prints what would be sent, and sends it if that is asked for. The exit code is 0, 1 if it cannot be made of this order, 64 if it cannot
/// be sent to this address, or 69 if it was not sent.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: &NotifyArgs, config: &Config, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    if args.alert {
        return alert(config, out, err).await;
    }
    // Alerts go to operators, through a channel that customers cannot have.
    let is_operator = args.preview.as_deref() == Some("operator");
    let settings = &match is_operator {
        true => config.notify.constructor().cloned().unwrap_or_default(),
        false => customer_channels(config),
    };
    let (channel, body) = match if is_operator { Ok(operator_event(args, config)) } else { event(args, config) } {
        Ok(event) => event,
        Err(problem) => {
            writeln!(err, "error: {}", escaped(&problem))?;
            return Ok(Exit::Refused);
        }
    };
    if let Some(address) = &args.send_to
        && let Err(problem) = notify::check_recipient(settings, &channel, address)
    {
        writeln!(err, "error: --send-to: {}", escaped(&problem))?;
        return Ok(Exit::Usage);
    }
    match notify::preview(settings, &channel, &body) {
        Ok(text) => out.write_all(text.as_bytes())?,
        Err(problem) => {
            writeln!(err, "error: {}", escaped(&problem))?;
            return Ok(Exit::Refused);
        }
    }
    let Some(address) = &args.send_to else { return Ok(Exit::Done) };
    match notify::send(settings, &channel, &body).await {
        Ok(()) => {
            writeln!(err, "sent to {}", escaped(address))?;
            Ok(Exit::Done)
        }
        Err(problem) => {
            writeln!(err, "error: not sent: {}", escaped(&problem))?;
            Ok(Exit::Unavailable)
        }
    }
}

/// Where an alert about the broker is, as the daemon names it.
fn scope(config: &Config) -> String {
    format!("virtual host {}", config.broker.virtual_host)
}

/// Shows a test of the alerts, and sends it.
async fn alert(config: &Config, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let (Some(alerts), Some(channels)) =
        (config.alerts.constructor::<AlertSettings>(), config.notify.constructor::<NotifySettings>())
    else {
        writeln!(err, "error: no alerts are configured: add [alerts]")?;
        return Ok(Exit::Refused);
    };
    let body = alerts::test_message(&scope(config), instance::name(), Timestamp::now());
    let mut shown = body.clone();
    if let Some(to) = alerts.channel.to.first() {
        let mut fields: Value = serde_json::from_str(&body).expect("a message is JSON");
        fields["email"] = Value::from(to.as_str());
        shown = fields.to_string();
    }
    match notify::preview(channels, &alerts.channel.name, &shown) {
        Ok(text) => out.write_all(text.as_bytes())?,
        Err(problem) => {
            writeln!(err, "error: {}", escaped(&problem))?;
            return Ok(Exit::Refused);
        }
    }
    let outcome = notify::send_to_operators(&alerts.channel, &body).await;
    match outcome {
        Ok(recipients) => {
            writeln!(err, "sent to {}", escaped(&recipients))?;
            Ok(Exit::Done)
        }
        Err(problem) => {
            writeln!(err, "error: not sent: {}", escaped(&problem))?;
            Ok(Exit::Unavailable)
        }
    }
}

/// The channel, and the body of the event about the order.
fn event(args: &NotifyArgs, config: &Config) -> Result<(String, String), String> {
    let (Some(preview), Some(file)) = (&args.preview, &args.order) else {
        return Err("--preview needs --order, a file with an order; only --preview operator has none".to_owned());
    };
    let (order, amounts) = check::read_order(file, &args.format, config)?;
    let channel = args.channel.as_deref().or(order.wanted_channel());
    let channel = channel.unwrap_or_else(|| default_channel(config)).to_owned();
    let notification = Notification { channel: &channel, ..Notification::processed(&order, &amounts) };
    let mut body = serde_json::to_value(notification).expect("an event consists of text and numbers");
    body["event"] = Value::from(preview.as_str());
    if let Some(language) = &args.language {
        body["locale"] = Value::from(language.as_str());
    }
    if let Some(address) = &args.send_to {
        body["email"] = Value::from(address.as_str());
        body["phone"] = Value::from(address.as_str());
    }
    Ok((channel, body.to_string()))
}

/// The channel of the alerts, and a message with examples of them.
fn operator_event(args: &NotifyArgs, config: &Config) -> (String, String) {
    let alerts = config.alerts.constructor::<AlertSettings>();
    let channel = args.channel.as_deref().or(alerts.map(|alerts| alerts.channel.name.as_str()));
    let channel = channel.unwrap_or_else(|| default_channel(config)).to_owned();
    let body = alerts::sample_message(&scope(config), instance::name(), Timestamp::now());
    let mut body: Value = serde_json::from_str(&body).expect("a message is JSON");
    let to = args.send_to.as_deref().or(alerts.and_then(|alerts| alerts.channel.to.first()).map(String::as_str));
    for (key, value) in [("email", to), ("locale", args.language.as_deref())] {
        if let Some(value) = value {
            body[key] = Value::from(value);
        }
    }
    (channel, body.to_string())
}
