//! `orderd publish`: publishes orders from a file or standard input, one JSON object per line, and waits for the broker's
//! confirm of each.
//!
//! A thread reads and checks lines; a task publishes them. The queue between the two is limited, so the input may be
//! endless. A line that was refused is never published.

mod broker_check;
mod input_form;
mod input_lines;
mod line_parser;
mod publish_loop;
mod summary;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Cursor, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use self::input_form::InputProblem;
use self::input_lines::InputLines;
use self::line_parser::LineParser;
use self::publish_loop::{ConnectionState, Input, PublishLoop};
use self::summary::{EndReason, PublishSummary};
use super::output::write_json_line;
use super::{Exit, Format, print_error, recipient_check};
use crate::amqp::Connector;
use crate::config::{Config, duration};
use crate::topology::pattern;

/// Maximum number of lines queued between the reader and the publish loop.
const READ_AHEAD: usize = 32;
/// Bytes read at a time. Whether the input is one object per line is judged by the first ones.
const READ_BUFFER: usize = 64 * 1024;

/// Arguments of `orderd publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// NDJSON file, one order or cancellation per line, such as {"id": 2, "product": "Laptop", "quantity": 1, "price":
    /// "400.00"} or {"id": 2, "event": "cancelled"}; "-" is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Routing key of every message [default: order.priority.created or order.normal.created, by the order's
    /// "priority"; order.normal.cancelled for a cancellation]
    #[arg(long, value_name = "KEY", value_parser = routing_key)]
    routing_key: Option<String>,
    /// Accept any JSON object, such as a notification, and publish it with --routing-key; its "message_id" or "id"
    /// becomes the message id
    #[arg(long, requires = "routing_key")]
    raw: bool,
    /// Try for this long to reach the broker, at the start and after a lost connection, then give up
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
/// Returns the exit code: 0 if every line was published, 1 if the input or a line was refused or the command was interrupted, 64
/// if the file cannot be opened, 69 if the broker was unreachable for longer than `--connect-timeout`, 70 if the input cannot be
/// read further, 78 if the exchange does not exist or the user may not publish to it.
///
/// # Errors
/// When `out` cannot be written.
pub async fn run(arguments: PublishArgs, mut config: Config, out: &mut dyn Write) -> io::Result<Exit> {
    let (mut input, length) = match open(&arguments.file) {
        Ok(opened) => opened,
        Err(error) => {
            print_error(&format!("cannot read {:?}: {error}", arguments.file));
            return Ok(Exit::Usage);
        }
    };
    // What a file contains is known before anything is connected; a pipe may be filled later.
    if length.is_some() {
        let (problem, examined) = examine(input);
        if let Some(problem) = problem {
            print_error(&problem.to_string());
            let summary = PublishSummary { refused: 1, ..PublishSummary::of_nothing(EndReason::Input) };
            return print_summary(&summary, arguments.format, out);
        }
        input = examined;
    }
    config.broker.connect_timeout = arguments.connect_timeout;
    let parser = LineParser {
        exchange: Arc::clone(&config.names().orders),
        routing_key: arguments.routing_key.clone(),
        raw: arguments.raw,
        recipients: recipient_check(&config),
    };
    let mut interrupts = Box::pin(publish_loop::interrupts());
    // A check that is dropped has changed nothing.
    tokio::select! {
        checked = broker_check::check(&config, parser.routing_key.as_deref()) => if let Err(exit) = checked {
            return Ok(exit);
        },
        Some(()) = interrupts.next() => {
            return print_summary(&PublishSummary::of_nothing(EndReason::Interrupted), arguments.format, out);
        }
    }
    let unbound = unbound_keys(&config, parser.routing_key.as_deref());
    let bar = progress_bar(length);
    let publisher = Connector::new(config.broker.clone()).publisher();
    let connection = publisher.clone();
    let publish_loop = PublishLoop {
        publisher: &publisher,
        connection: &move || {
            let state = connection.state();
            ConnectionState {
                connected: state.connected,
                error: connection.last_connect_error(),
                blocked: connection.blocked(),
                waiting: state.waiting,
            }
        },
        notify: &|text| bar.suspend(|| print_error(text)),
        unbound: &unbound,
        connect_timeout: arguments.connect_timeout,
        bar: &bar,
    };
    let summary = publish_loop.run(read(input, parser), interrupts).await;
    // Every line is answered, or the broker is unreachable: a failure to close loses nothing.
    let _ = publisher.close(Duration::from_secs(1)).await;
    bar.finish_and_clear();
    print_summary(&summary, arguments.format, out)
}

/// The routing keys that lines can get.
fn routing_keys(given: Option<&str>) -> Vec<&str> {
    given.map_or_else(|| vec![line_parser::NORMAL_KEY, line_parser::PRIORITY_KEY], |key| vec![key])
}

/// The routing keys of lines that match no binding of the configuration. The broker confirms such messages too, since its
/// alternate exchange keeps them, so only the configuration shows it.
fn unbound_keys(config: &Config, given: Option<&str>) -> BTreeSet<String> {
    let (topology, exchange) = (config.topology(), config.names().orders);
    let is_bound = |key: &str| {
        let mut bindings = topology.bindings().filter(|binding| *binding.exchange == *exchange);
        bindings.any(|binding| pattern::matches(&binding.routing_key, key))
    };
    routing_keys(given).into_iter().filter(|key| !is_bound(key)).map(str::to_owned).collect()
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

/// Reads until it is known whether the input is one object per line, at most [`READ_BUFFER`] bytes. Returns its problem, and an
/// input that begins with what was read. An error is found again by the next read.
fn examine(mut input: Box<dyn Read + Send>) -> (Option<InputProblem>, Box<dyn Read + Send>) {
    let (mut beginning, mut chunk) = (Vec::new(), vec![0; READ_BUFFER]);
    let problem = loop {
        let read = match input.read(&mut chunk[beginning.len()..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
            Ok(read) => read,
        };
        beginning.extend_from_slice(&chunk[beginning.len()..][..read]);
        let problem_if = |ended| input_form::problem(&beginning, ended);
        let ended = read == 0 || beginning.len() == READ_BUFFER;
        let problem = problem_if(ended);
        if ended || problem.is_some() || problem_if(true).is_none() {
            break problem;
        }
    };
    (problem, Box::new(Cursor::new(beginning).chain(input)))
}

/// Reads lines on a thread of its own. The thread is not joined, since a read from a terminal or a pipe may never end.
fn read(input: Box<dyn Read + Send>, parser: LineParser) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let (problem, input) = examine(input);
        if let Some(problem) = problem {
            let _ = sender.blocking_send(Input::Line { number: 1, bytes: 0, parsed: Err(problem.into()) });
            return;
        }
        let mut lines = InputLines::new(BufReader::with_capacity(READ_BUFFER, input));
        loop {
            let next = match lines.next() {
                Ok(None) => return,
                Ok(Some(line)) => Input::Line {
                    number: line.number,
                    bytes: lines.bytes,
                    parsed: parser.parse(line.text).map(Box::new),
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
        EndReason::Aborted => format!("aborted; {}", unconfirmed(summary)),
        EndReason::NoBroker(error) => {
            let error = error.as_deref().map_or_else(String::new, |error| format!(" ({error})"));
            format!("broker unreachable{error}; {}", unconfirmed(summary))
        }
    };
    print_error(&problem);
    Ok(match summary.end {
        EndReason::NoBroker(_) => Exit::Unavailable,
        EndReason::Input | EndReason::Interrupted | EndReason::Aborted => Exit::Refused,
        EndReason::Unreadable(_) => Exit::Internal,
    })
}

/// What the broker may or may not have. Orders that it already has are recognized when they are published again.
fn unconfirmed(summary: &PublishSummary) -> String {
    let PublishSummary { unconfirmed, first_unconfirmed, .. } = summary;
    format!("{unconfirmed} messages unconfirmed: publish again from line {first_unconfirmed} on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_whose_first_read_is_one_list_is_judged_by_what_follows() {
        let examined = |parts: [&'static str; 2]| {
            let [first, second] = parts.map(|part| Cursor::new(part.as_bytes()));
            let (problem, mut input) = examine(Box::new(first.chain(second)));
            let mut text = String::new();
            input.read_to_string(&mut text).unwrap();
            assert_eq!(text, parts.concat());
            problem
        };
        assert_eq!(examined(["[1]\n", "{\"id\": 2}\n"]), None, "only its first line is wrong");
        assert_eq!(examined(["[", "1]\n{\"id\": 2}\n"]), None);
        assert_eq!(examined(["[1]\n", ""]), Some(InputProblem::List));
        assert_eq!(examined(["[{\"id\": 1},", " {\"id\": 2}]\n"]), Some(InputProblem::List));
        assert_eq!(examined(["[\n", "1]\n"]), Some(InputProblem::List));
        assert_eq!(examined(["{\"id\": 1}\n", "{\"id\": 2}\n"]), None);
    }
}
