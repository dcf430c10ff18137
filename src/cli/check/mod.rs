//! `orderd check`: says what would run, without running it.
//!
//! Offline by default; `--connect` asks the broker what it has. It never declares, publishes or consumes.
//! Every problem of the configuration goes to standard error, one line each, and the exit code is 78.

mod broker;
mod report;
mod text;

use std::io::{self, Write};

use serde_json::json;

pub use broker::{BrokerReport, Reach};
pub use report::{CheckReport, ConsumerReport, Retry, Schedule, TopologyReport};

use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Config, LoadError, Problem, Sources};

/// Arguments of `orderd check`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct CheckArgs {
    /// Ask the broker too: what is missing, what differs, which policies would lose messages
    #[arg(long)]
    pub connect: bool,
    /// Print only the commands that grant orderd's user the least permissions it needs
    #[arg(long, conflicts_with = "connect")]
    pub permissions: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Checks, and prints what it finds: the report to `out`, problems and warnings to `err`.
///
/// Returns the exit code: 0 when `orderd run` would start, 69 when the broker cannot be asked, 78 when the
/// configuration is wrong or the broker contradicts it.
///
/// With `--format json`, `out` gets one object: `ok` (whether the exit code is 0), `problems` and `warnings`
/// (each `path`, `message`, and `line`, `column`, `set_by` where known), and, unless there are problems, what
/// [`CheckReport`] says.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: CheckArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let loaded = match Config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(args.format, &error, out, err),
    };
    for warning in &loaded.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    if args.permissions && args.format == Format::Text {
        let broker = &loaded.config.broker;
        let [permissions, topics] = loaded.config.permissions().commands(&broker.virtual_host, &broker.username);
        writeln!(out, "{permissions}")?;
        if loaded.config.topology.declare {
            writeln!(out, "# RabbitMQ 4.3 takes the next once the exchange is there: after orderd's first start")?;
        }
        writeln!(out, "{topics}")?;
        return Ok(Exit::Done);
    }
    let mut report = CheckReport::new(&loaded);
    let mut code = Exit::Done;
    if args.connect {
        let broker = broker::ask(&loaded.config).await;
        for fault in broker.faults(loaded.config.topology.declare) {
            writeln!(err, "error: {fault}")?;
        }
        code = broker.exit(loaded.config.topology.declare);
        report.connected = Some(broker);
    }
    match args.format {
        Format::Text => text::write(&report, out)?,
        Format::Json => {
            let mut object = serde_json::to_value(&report)?;
            object["ok"] = json!(code == Exit::Done);
            object["problems"] = json!([]);
            writeln!(out, "{object:#}")?;
        }
    }
    Ok(code)
}

/// Tells why there is no configuration.
fn refuse(format: Format, error: &LoadError, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let (problems, warnings): (&[Problem], &[Problem]) = match error {
        LoadError::Unreadable { .. } => {
            writeln!(err, "{}", chain(error))?;
            (&[], &[])
        }
        LoadError::Invalid { problems, warnings, .. } => (problems, warnings),
    };
    for warning in warnings {
        writeln!(err, "warning: {warning}")?;
    }
    for problem in problems {
        writeln!(err, "{problem}")?;
    }
    if format == Format::Json {
        let told = match error {
            LoadError::Unreadable { path, .. } => json!([{"path": path, "message": chain(error)}]),
            LoadError::Invalid { .. } => json!(problems),
        };
        writeln!(out, "{:#}", json!({"ok": false, "problems": told, "warnings": warnings}))?;
    }
    Ok(Exit::Config)
}

#[cfg(test)]
mod tests;
