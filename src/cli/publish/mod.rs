//! `orderd publish`: sends orders from a file or from standard input, one JSON object a line, and waits for
//! the broker's confirm of each.
//!
//! A thread reads and checks lines, one task publishes them; what is on its way between them is bounded, so
//! the input may be endless. It never publishes a line that it has refused.

mod lines;
mod parse;
mod send;

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use self::lines::Lines;
use self::parse::{Refusal, Shape};
use self::send::{End, Feed, Sender, Summary};
use super::{Exit, Format};
use crate::amqp::{Connector, DeclareError, DeniedPermission};
use crate::chain::chain;
use crate::config::{Config, duration};
use crate::message::Publication;
use crate::topology::{Declaration, RequiredPermission};

/// Lines that wait between the reader and the publisher.
const READ_AHEAD: usize = 32;

/// The arguments of `orderd publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// NDJSON: one order a line, such as {"id": 2, "product": "Laptop", "quantity": 1, "price": "400.00"};
    /// "-" is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Routing key of every message; by default order.priority.created or order.normal.created, by the
    /// order's own "priority"
    #[arg(long, value_name = "KEY", value_parser = routing_key)]
    routing_key: Option<String>,
    /// Publish any JSON object, such as a notification, under the given routing key; the message id is taken
    /// from its "message_id" or "id"
    #[arg(long, requires = "routing_key")]
    raw: bool,
    /// Give up when the broker cannot be reached for this long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    connect_timeout: Duration,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn routing_key(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        length => Err(format!("a routing key has 1 to 255 bytes, this one {length}")),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(timeout) }
}

/// Publishes everything, prints a summary on stdout and what was refused on stderr.
///
/// Exits with 0 if all was published, with 1 if a line was refused or Ctrl-C left some unread, with 69 if the
/// broker could not be reached for as long as `--connect-timeout`.
pub async fn run(arguments: PublishArgs, mut config: Config) -> Exit {
    let (input, length): (Box<dyn Read + Send>, _) = match open(&arguments.file) {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("orderd: cannot read {:?}: {error}", arguments.file);
            return Exit::Usage;
        }
    };
    config.broker.connect_timeout = arguments.connect_timeout;
    let shape = Shape {
        exchange: Arc::clone(&config.names().orders),
        routing_key: arguments.routing_key.clone(),
        raw: arguments.raw,
    };
    let link = Connector::new(config.broker.clone());
    if let Err(exit) = check_broker(&link, &config, shape.routing_key.as_deref()).await {
        return exit;
    }
    let bar = progress_bar(length);
    let publisher = link.publisher();
    let state = publisher.clone();
    let sender = Sender {
        publisher: &publisher,
        is_connected: &move || state.state().connected,
        patience: arguments.connect_timeout,
        bar: &bar,
    };
    let summary = sender.send_all(read(input, shape), send::interrupts()).await;
    // Nothing is left to wait for: every line is answered, or there is no broker.
    let _ = publisher.close(Duration::from_secs(1)).await;
    bar.finish_and_clear();
    report(&summary, arguments.format)
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
    // A pipe has no length that would mean anything.
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Whether the broker is there, has the exchange and lets us publish to it. Publishing to one that is missing would only
/// wait.
async fn check_broker(link: &Connector, config: &Config, routing_key: Option<&str>) -> Result<(), Exit> {
    let exchange = config.names().orders;
    let topology = config.topology();
    let question = topology.exchanges().filter(|known| *known.name == *exchange).cloned().map(Declaration::Exchange);
    match link.missing_objects(&question.collect::<Vec<_>>()).await {
        Ok(missing) if missing.is_empty() => check_permission(link, config, routing_key).await,
        Ok(_) => {
            eprintln!("orderd: the broker has no exchange {exchange:?}; orderd run declares it");
            Err(Exit::Config)
        }
        Err(DeclareError::Connect(error)) => {
            eprintln!("orderd: {}", chain(&error));
            Err(if error.is_permanent() { Exit::Config } else { Exit::Unavailable })
        }
        // RabbitMQ 4.3 does not let everybody look.
        Err(DeclareError::AccessRefused { .. }) => check_permission(link, config, routing_key).await,
        Err(error) => {
            eprintln!("orderd: {}", chain(&error));
            Err(Exit::Config)
        }
    }
}

/// Whether the user may publish with any of the keys that lines may get. Where only some are allowed, each line is told.
async fn check_permission(link: &Connector, config: &Config, routing_key: Option<&str>) -> Result<(), Exit> {
    let exchange = config.names().orders;
    let keys = routing_key.map_or_else(|| vec![parse::NORMAL_KEY, parse::PRIORITY_KEY], |key| vec![key]);
    let need =
        |key: &&str| RequiredPermission::Publish { exchange: exchange.to_string(), routing_key: (*key).to_owned() };
    match link.denied_permissions(&keys.iter().map(need).collect::<Vec<_>>()).await {
        Ok(denied) if denied.len() == keys.len() => {
            let DeniedPermission { permission, reply } = &denied[0];
            eprintln!("orderd: the broker does not let the user {:?} {permission}: {reply}", config.broker.username);
            Err(Exit::Config)
        }
        // A broker that does not answer now may do so for as long as we are patient.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Reads in a thread of its own, which nobody waits for: a read of a terminal or a pipe may never end.
fn read(input: Box<dyn Read + Send>, shape: Shape) -> mpsc::Receiver<Feed> {
    let (feed, fed) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut lines = Lines::new(BufReader::with_capacity(64 * 1024, input));
        loop {
            let step = match lines.next() {
                Ok(None) => return,
                Ok(Some(line)) => Feed::Line {
                    number: line.number,
                    bytes: lines.bytes,
                    publication: shape.publication(line.text).map(Box::new),
                },
                Err(error) => Feed::Unreadable(error),
            };
            let is_last = matches!(step, Feed::Unreadable(_));
            // Without a receiver the reading has been interrupted.
            if feed.blocking_send(step).is_err() || is_last {
                return;
            }
        }
    });
    fed
}

/// On a terminal only.
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

fn report(summary: &Summary, format: Format) -> Exit {
    match format {
        Format::Text => println!("{summary}"),
        Format::Json => println!("{}", serde_json::json!(summary)),
    }
    let trouble = match &summary.end {
        End::Input if summary.refused == 0 => return Exit::Done,
        End::Input | End::Interrupted => return Exit::Refused,
        End::Unreadable(error) => format!("cannot read on: {error}"),
        End::Aborted => format!("stopped with {} messages unconfirmed", summary.unconfirmed),
        End::NoBroker => format!(
            "the broker could not be reached any more; {} messages are unconfirmed, the first of them from line {}",
            summary.unconfirmed, summary.first_unconfirmed
        ),
    };
    eprintln!("orderd: {trouble}");
    match summary.end {
        End::NoBroker => Exit::Unavailable,
        End::Input | End::Interrupted | End::Aborted => Exit::Refused,
        End::Unreadable(_) => Exit::Internal,
    }
}
