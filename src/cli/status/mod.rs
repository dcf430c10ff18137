//! `orderd status`: asks the running daemon what it is doing, and shows it.
//!
//! It asks the admin listener only, never the broker. The status goes to standard output, what is wrong to standard
//! error.

mod reload;
mod text;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::ask::{AskError, Whom};
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Sources, duration};
use crate::status::{DaemonState, Status};

/// Goes to the upper left and clears the screen from there.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Arguments of `orderd status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    whom: Whom,
    /// Show it again and again, every two seconds unless told otherwise; in place if in a terminal
    #[arg(long, value_name = "EVERY", num_args = 0..=1, default_missing_value = "2s", value_parser = every)]
    watch: Option<Duration>,
    /// How to print; JSON is one object, with --watch one a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn every(text: &str) -> Result<Duration, String> {
    let every = duration::parse(text)?;
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    if range.contains(&every) { Ok(every) } else { Err("must be from 100ms to 1h".to_owned()) }
}

/// Asks and prints, once or until it is interrupted.
///
/// Returns the exit code: 0, 69 if the daemon or its broker is not there, 78 if it may not be asked.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: StatusArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let client = match args.whom.find(sources, err)? {
        Ok(client) => client,
        Err(error) => return refuse(&error, err),
    };
    let Some(every) = args.watch else {
        return match client.status().await {
            Ok((told, status)) => {
                show(args, &told, &status, out)?;
                verdict(&status, err)
            }
            Err(error) => refuse(&error, err),
        };
    };
    let in_place = args.format == Format::Text && io::stdout().is_terminal();
    loop {
        let asked = client.status().await;
        // Written at once, so that a terminal does not flicker.
        let mut screen = Vec::new();
        if in_place {
            write!(screen, "{CLEAR}")?;
        }
        if let Ok((told, status)) = &asked {
            show(args.clone(), told, status, &mut screen)?;
        }
        if args.format == Format::Text && !in_place {
            writeln!(screen)?;
        }
        out.write_all(&screen)?;
        out.flush()?;
        if let Err(error) = &asked {
            writeln!(err, "orderd: {}", chain(error))?;
        }
        tokio::time::sleep(every).await;
    }
}

fn show(args: StatusArgs, told: &Value, status: &Status, out: &mut dyn Write) -> io::Result<()> {
    match (args.format, args.watch) {
        (Format::Text, _) => text::write(status, Timestamp::now(), out),
        (Format::Json, None) => writeln!(out, "{told:#}"),
        (Format::Json, Some(_)) => writeln!(out, "{told}"),
    }
}

/// A daemon that runs without its broker is not what whoever asks hopes for.
fn verdict(status: &Status, err: &mut dyn Write) -> io::Result<Exit> {
    if status.daemon.connections > 0 || status.daemon.state == DaemonState::Draining {
        return Ok(Exit::Done);
    }
    writeln!(
        err,
        "orderd: the daemon runs, but its broker is not there: no AMQP connection stands; it goes on trying, and its log \
         says why"
    )?;
    Ok(Exit::Unavailable)
}

fn refuse(error: &AskError, err: &mut dyn Write) -> io::Result<Exit> {
    writeln!(err, "orderd: {}", chain(error))?;
    Ok(error.exit())
}
