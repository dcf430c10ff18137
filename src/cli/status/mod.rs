//! `orderd status`: asks the running daemon what it is doing, and shows it.
//!
//! It asks only the admin listener, never the broker. The status goes to standard output, errors go to standard error.

mod reload;
mod tables;
mod text;

use std::io::{self, IsTerminal, Stdout, Write};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::admin_client::{AdminClientError, DaemonTarget};
use super::output::{Output, write_json, write_json_line};
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Sources, duration};
use crate::status::{DaemonState, Status};

/// Moves the cursor to the upper left corner and clears the screen.
const CLEAR_SCREEN: &[u8] = b"\x1b[H\x1b[2J";
/// Allowed intervals of `--watch`.
const WATCH_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Arguments of `orderd status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Refresh the status every INTERVAL, from 100ms to 1h (2s by default); on a terminal, in place
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = watch_interval)]
    watch: Option<Duration>,
    /// Output format; json prints one object, with --watch one object per line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn watch_interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if WATCH_INTERVALS.contains(&interval) { Ok(interval) } else { Err("must be from 100ms to 1h".to_owned()) }
}

/// Shows the status once, or repeatedly until interrupted or until the reader of the output has closed the pipe.
///
/// Returns the exit code: 0, 69 if the daemon cannot be reached or has no connection to its broker, 77 if it does
/// not accept the token, 78 if the configuration has no address.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub(super) async fn run(
    args: StatusArgs,
    sources: &Sources,
    out: &mut Output<Stdout>,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let client = match args.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return report_error(&error, err),
    };
    let Some(interval) = args.watch else {
        return match client.status().await {
            Ok((json, status)) => {
                show(&args, &json, &status, out)?;
                exit_code(&status, err)
            }
            Err(error) => report_error(&error, err),
        };
    };
    let in_place = args.format == Format::Text && io::stdout().is_terminal();
    loop {
        let answer = client.status().await;
        // Written in one piece, so that a terminal does not flicker.
        let mut screen = Vec::new();
        if let Ok((json, status)) = &answer {
            show(&args, json, status, &mut screen)?;
        }
        if args.format == Format::Text && !in_place {
            writeln!(screen)?;
        }
        if in_place {
            out.write_unchanged(CLEAR_SCREEN)?;
        }
        out.write_all(&screen)?;
        out.flush()?;
        if out.is_closed() {
            return Ok(Exit::Done);
        }
        if let Err(error) = &answer {
            writeln!(err, "orderd: {}", chain(error))?;
        }
        tokio::time::sleep(interval).await;
    }
}

fn show(args: &StatusArgs, json: &Value, status: &Status, out: &mut dyn Write) -> io::Result<()> {
    match (args.format, args.watch) {
        (Format::Text, _) => text::write(status, Timestamp::now(), out),
        (Format::Json, None) => write_json(json, out),
        (Format::Json, Some(_)) => write_json_line(json, out),
    }
}

/// 69 if the daemon has no connection to the broker, unless it is draining.
fn exit_code(status: &Status, err: &mut dyn Write) -> io::Result<Exit> {
    if status.daemon.connections > 0 || status.daemon.state == DaemonState::Draining {
        return Ok(Exit::Done);
    }
    writeln!(
        err,
        "orderd: the daemon is running but has no connection to the broker; it keeps trying, see its log for the reason"
    )?;
    Ok(Exit::Unavailable)
}

fn report_error(error: &AdminClientError, err: &mut dyn Write) -> io::Result<Exit> {
    writeln!(err, "orderd: {}", chain(error))?;
    Ok(error.exit())
}
