//! `orderd publish`: publishes orders from a file or standard input, one JSON object per line, and waits for the broker's
//! confirm of each.
//!
//! A thread reads and checks lines; a task publishes them. The queue between the two is limited, so the input may be
//! endless. A line that was refused is never published.

mod input_lines;
mod line_parser;
mod publish_loop;
mod summary;

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use self::input_lines::InputLines;
use self::line_parser::LineParser;
use self::publish_loop::{Input, PublishLoop};
use self::summary::{EndReason, PublishSummary};
use super::output::write_json_line;
use super::{Exit, Format, print_error};
use crate::amqp::{Connector, DeclareError, DeniedPermission};
use crate::chain::chain;
use crate::config::{Config, duration};
use crate::topology::{Declaration, RequiredPermission};

/// Maximum number of lines queued between the reader and the publish loop.
const READ_AHEAD: usize = 32;

/// Arguments of `orderd publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// NDJSON file, one order per line, such as {"id": 2, "product": "Laptop", "quantity": 1, "price": "400.00"};
    /// "-" is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Routing key of every message [default: order.priority.created or order.normal.created, by the order's
    /// "priority"]
    #[arg(long, value_name = "KEY", value_parser = routing_key)]
    routing_key: Option<String>,
    /// Accept any JSON object, such as a notification, and publish it with --routing-key; its "message_id" or "id"
    /// becomes the message id
    #[arg(long, requires = "routing_key")]
    raw: bool,
    /// Give up if the broker is unreachable for this long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    connect_timeout: Duration,
    /// Output format of the summary
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn routing_key(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        length => Err(format!("must have 1 to 255 bytes, has {length}")),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() { Err("must be greater than 0".to_owned()) } else { Ok(timeout) }
}

/// Publishes the input. Prints a summary to `out` and refused lines to standard error.
///
/// Returns the exit code: 0 if every line was published, 1 if a line was refused or the command was interrupted, 64 if the
/// file cannot be opened, 69 if the broker was unreachable for longer than `--connect-timeout`, 70 if the input cannot be
/// read further, 78 if the exchange does not exist or the user may not publish to it.
///
/// # Errors
/// When `out` cannot be written.
pub async fn run(arguments: PublishArgs, mut config: Config, out: &mut dyn Write) -> io::Result<Exit> {
    let (input, length): (Box<dyn Read + Send>, _) = match open(&arguments.file) {
        Ok(opened) => opened,
        Err(error) => {
            print_error(&format!("cannot read {:?}: {error}", arguments.file));
            return Ok(Exit::Usage);
        }
    };
    config.broker.connect_timeout = arguments.connect_timeout;
    let parser = LineParser {
        exchange: Arc::clone(&config.names().orders),
        routing_key: arguments.routing_key.clone(),
        raw: arguments.raw,
    };
    let connector = Connector::new(config.broker.clone());
    if let Err(exit) = check_broker(&connector, &config, parser.routing_key.as_deref()).await {
        return Ok(exit);
    }
    let bar = progress_bar(length);
    let publisher = connector.publisher();
    let connection = publisher.clone();
    let publish_loop = PublishLoop {
        publisher: &publisher,
        is_connected: &move || connection.state().connected,
        connect_timeout: arguments.connect_timeout,
        bar: &bar,
    };
    let summary = publish_loop.run(read(input, parser), publish_loop::interrupts()).await;
    // Every line is answered, or the broker is unreachable: a failure to close loses nothing.
    let _ = publisher.close(Duration::from_secs(1)).await;
    bar.finish_and_clear();
    print_summary(&summary, arguments.format, out)
}

fn open(file: &PathBuf) -> io::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(file)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // Only a regular file has a meaningful length.
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Checks that the broker is reachable, that the exchange exists and that the user may publish to it. If not, publishing
/// would wait in vain.
async fn check_broker(connector: &Connector, config: &Config, routing_key: Option<&str>) -> Result<(), Exit> {
    let exchange = config.names().orders;
    let topology = config.topology();
    let declaration = topology.exchanges().filter(|known| *known.name == *exchange).cloned().map(Declaration::Exchange);
    match connector.missing_objects(&declaration.collect::<Vec<_>>()).await {
        Ok(missing) if missing.is_empty() => check_permission(connector, config, routing_key).await,
        Ok(_) => {
            print_error(&format!("exchange {exchange:?} does not exist; `orderd run` declares it"));
            Err(Exit::Config)
        }
        Err(DeclareError::Connect(error)) => {
            print_error(&chain(&error));
            Err(if error.is_permanent() { Exit::Config } else { Exit::Unavailable })
        }
        // RabbitMQ 4.3 requires a permission even for a passive declaration.
        Err(DeclareError::AccessRefused { .. }) => check_permission(connector, config, routing_key).await,
        Err(error) => {
            print_error(&chain(&error));
            Err(Exit::Config)
        }
    }
}

/// Checks that the user may publish with at least one of the routing keys that lines can get. If only some are allowed,
/// the broker refuses the other lines one by one.
async fn check_permission(connector: &Connector, config: &Config, routing_key: Option<&str>) -> Result<(), Exit> {
    let exchange = config.names().orders;
    let keys = routing_key.map_or_else(|| vec![line_parser::NORMAL_KEY, line_parser::PRIORITY_KEY], |key| vec![key]);
    let permission =
        |key: &&str| RequiredPermission::Publish { exchange: exchange.to_string(), routing_key: (*key).to_owned() };
    match connector.denied_permissions(&keys.iter().map(permission).collect::<Vec<_>>()).await {
        Ok(denied) if denied.len() == keys.len() => {
            let DeniedPermission { permission, reply } = &denied[0];
            print_error(&format!("user {:?} may not {permission}: {reply}", config.broker.username));
            Err(Exit::Config)
        }
        // A broker that does not answer now may do so before the connect timeout.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Reads lines on a thread of its own. The thread is not joined, since a read from a terminal or a pipe may never end.
fn read(input: Box<dyn Read + Send>, parser: LineParser) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut lines = InputLines::new(BufReader::with_capacity(64 * 1024, input));
        loop {
            let next = match lines.next() {
                Ok(None) => return,
                Ok(Some(line)) => Input::Line {
                    number: line.number,
                    bytes: lines.bytes,
                    publication: parser.parse(line.text).map(Box::new),
                },
                Err(error) => Input::Unreadable(error),
            };
            let is_last = matches!(next, Input::Unreadable(_));
            // The receiver is dropped when publishing was interrupted.
            if sender.blocking_send(next).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// A progress bar; hidden unless standard error is a terminal.
fn progress_bar(length: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match length {
        Some(_) => "{bar:30} {percent:>3} %  {msg}  {elapsed}, {eta} left",
        None => "{spinner} {msg}  {elapsed}",
    };
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn print_summary(summary: &PublishSummary, format: Format, out: &mut dyn Write) -> io::Result<Exit> {
    match format {
        Format::Text => writeln!(out, "{summary}")?,
        Format::Json => write_json_line(summary, out)?,
    }
    let problem = match &summary.end {
        EndReason::Input if summary.refused == 0 => return Ok(Exit::Done),
        EndReason::Input | EndReason::Interrupted => return Ok(Exit::Refused),
        EndReason::Unreadable(error) => format!("cannot read the input further: {error}"),
        EndReason::Aborted => format!("aborted with {} messages unconfirmed", summary.unconfirmed),
        EndReason::NoBroker => format!(
            "broker unreachable; {} messages unconfirmed, the first from line {}",
            summary.unconfirmed, summary.first_unconfirmed
        ),
    };
    print_error(&problem);
    Ok(match summary.end {
        EndReason::NoBroker => Exit::Unavailable,
        EndReason::Input | EndReason::Interrupted | EndReason::Aborted => Exit::Refused,
        EndReason::Unreadable(_) => Exit::Internal,
    })
}
