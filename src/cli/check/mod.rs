//! `orderd check`: shows what would run, without running it.
//!
//! Offline by default; with `--connect` it compares the broker with the configuration. It never declares, publishes or
//! consumes. Problems with the configuration go to standard error, one line each; the exit code is then 78.

mod broker;
mod channel_servers;
mod order;
mod permissions;
mod report;
mod schedule;
mod step_commands;
mod step_servers;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;

pub use broker::{AddressReport, BrokerReport};
pub use channel_servers::{ChannelServerError, ChannelServerReport};
pub use order::read_order;
pub use permissions::PermissionsReport;
pub use report::{CheckReport, ConsumerReport, TopologyReport};
pub use schedule::{DelayedRetry, RetrySchedule};
pub use step_commands::StepCommandReport;
pub use step_servers::StepServerReport;

use super::output::write_json;
use super::{Exit, Format, load_error};
use crate::chain::chain;
use crate::config::{Config, LoadError, Mechanism, Problem, Sources};
use crate::escape::escaped;

/// The user that RabbitMQ creates at its first start.
const DEFAULT_USER: &str = "guest";

/// Arguments of `orderd check`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CheckArgs {
    /// Also compare the broker with the configuration (missing objects, differences, dangerous policies), and check that the servers
    /// of steps accept connections, that their programs exist, and that the servers of notification channels can be used
    #[arg(long)]
    pub connect: bool,
    /// Print only the commands that create orderd's and a producer's user, with the least permissions they need
    #[arg(long, conflicts_with = "connect")]
    pub permissions: bool,
    /// Show what orderd reads from an order document, field by field, or everything that is wrong with it; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["connect", "permissions"])]
    pub order: Option<PathBuf>,
    /// Output format: text or json. With --order, give it a second time to name the format of the order, by default orderd
    #[arg(long = "format", value_name = "FORMAT", default_value = "text", value_parser = CheckFormat::parse)]
    pub formats: Vec<CheckFormat>,
}

/// A value of `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckFormat {
    /// The output format.
    Output(Format),
    /// The format of an order document.
    Order(String),
}

impl CheckFormat {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "text" => CheckFormat::Output(Format::Text),
            "json" => CheckFormat::Output(Format::Json),
            "" => return Err("must be text, json or the name of a format of orders".to_owned()),
            name => CheckFormat::Order(name.to_owned()),
        })
    }
}

impl CheckArgs {
    /// The output format.
    fn output(&self) -> Format {
        let output = self.formats.iter().rev().find_map(|format| match format {
            CheckFormat::Output(format) => Some(*format),
            CheckFormat::Order(_) => None,
        });
        output.unwrap_or_default()
    }

    /// The name of the order's format.
    fn order_format(&self) -> Option<&str> {
        self.formats.iter().rev().find_map(|format| match format {
            CheckFormat::Order(name) => Some(name.as_str()),
            CheckFormat::Output(_) => None,
        })
    }
}

/// Checks the configuration. Prints the report to `out`, problems and warnings to `err`.
///
/// Returns the exit code: 0 if all is as it must be, 69 if the broker, a step's server or that of a notification channel is unreachable, 78 if the configuration is invalid, the
/// broker contradicts it, or something is missing on the broker, even if orderd declares it at its next start.
///
/// With `--format json`, `out` gets one object: `ok` (`true` for exit code 0), `problems` and `warnings`
/// (each `path`, `message`, and `line`, `column`, `set_by` where known), and, unless there are problems, the
/// fields of [`CheckReport`].
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: CheckArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let output = args.output();
    if let Some(name) = args.order_format().filter(|_| args.order.is_none()) {
        writeln!(err, "error: --format must be text or json, is {name:?}; the format of an order needs --order FILE")?;
        return Ok(Exit::Usage);
    }
    let loaded = match Config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => return report_load_error(output, with_all_warnings(error), out, err),
    };
    load_error::write_warnings(&loaded.warnings, &loaded.path, err)?;
    if let Some(file) = &args.order {
        return order::run(file, args.order_format(), output, &loaded.config, out, err);
    }
    if args.permissions && output == Format::Text {
        permissions::write(&loaded.config, out)?;
        return Ok(Exit::Done);
    }
    let mut report = CheckReport::new(&loaded);
    let storage = storage_warnings(&loaded.config);
    load_error::write_warnings(&storage, &loaded.path, err)?;
    report.warnings.extend(storage);
    let mut exit = Exit::Done;
    if args.connect {
        let broker = broker::ask(&loaded.config).await;
        for problem in broker.problems(loaded.config.topology.declare) {
            writeln!(err, "error: {}", escaped(&problem))?;
        }
        exit = broker.exit();
        report.connected = Some(broker);
        let servers = step_servers::ask(&loaded.config).await;
        for StepServerReport { address, steps, error } in &servers {
            if let Some(error) = error {
                let need = if steps.len() == 1 { "needs" } else { "need" };
                let problem = format!("cannot connect to {address}, which {} {need}: {error}", steps.join(", "));
                writeln!(err, "error: {}", escaped(&problem))?;
                exit = if exit == Exit::Done { Exit::Unavailable } else { exit };
            }
        }
        report.step_servers = Some(servers);
        let commands = step_commands::look(&loaded.config);
        for StepCommandReport { step, error, .. } in &commands {
            if let Some(error) = error {
                writeln!(err, "error: {}", escaped(&format!("{step}: {error}")))?;
                exit = if exit == Exit::Done { Exit::Config } else { exit };
            }
        }
        report.step_commands = Some(commands);
        let channels = channel_servers::ask(&loaded.config).await;
        for ChannelServerReport { channel, address, error } in &channels {
            if let Some(ChannelServerError { code, reason }) = error {
                let problem = format!("notification channel {channel:?} cannot use {address}: {code}: {reason}");
                writeln!(err, "error: {}", escaped(&problem))?;
                exit = if exit == Exit::Done { Exit::Unavailable } else { exit };
            }
        }
        report.channel_servers = Some(channels);
    }
    let known = report.connected.as_ref().and_then(BrokerReport::user_name);
    if let Some(warning) = shared_user(&loaded.config, known) {
        load_error::write_warnings(std::slice::from_ref(&warning), &loaded.path, err)?;
        report.warnings.push(warning);
    }
    match output {
        Format::Text => text::write(&report, out)?,
        Format::Json => {
            let mut object = serde_json::to_value(&report)?;
            object["ok"] = json!(exit == Exit::Done);
            object["problems"] = json!([]);
            write_json(&object, out)?;
        }
    }
    Ok(exit)
}

/// Warnings about a ledger or event files that would be lost, or damaged, where they are.
fn storage_warnings(config: &Config) -> Vec<Problem> {
    let ledger = config.ledger.location().storage_problem().map(|message| ("ledger.directory", message));
    let log = config.log.directory.as_deref().and_then(|directory| {
        let file_system = crate::files::volatile_file_system(directory)?;
        Some(("log.directory", format!("is in memory ({file_system}): event files are lost when the machine restarts")))
    });
    let found = ledger.into_iter().chain(log);
    found.map(|(path, message)| warning(path, message)).collect()
}

fn warning(path: &str, message: String) -> Problem {
    Problem { path: path.to_owned(), message, line: None, column: None, set_by: None }
}

/// A warning if orderd uses the user that every installation of RabbitMQ has. `known` is the broker's name of orderd's user.
fn shared_user(config: &Config, known: Option<&str>) -> Option<Problem> {
    let configured = match config.broker.mechanism {
        Mechanism::Plain => Some(config.broker.username.as_str()),
        // Only the broker knows which user the certificate stands for.
        Mechanism::External => None,
    };
    let message = "orderd uses the broker's default user \"guest\": messages of every other program that uses it count as \
                   orderd's own; create a user for orderd (`orderd check --permissions` prints the commands)";
    let is_shared = known.or(configured) == Some(DEFAULT_USER);
    is_shared.then(|| warning("broker.username", message.to_owned()))
}

/// The errors with the warnings that a valid configuration would get too, except about keys that have errors.
fn with_all_warnings(mut error: LoadError) -> LoadError {
    if let LoadError::Invalid { problems, warnings, read: Some(config), .. } = &mut error {
        let found = storage_warnings(config).into_iter().chain(shared_user(config, None));
        warnings.extend(found.filter(|warning| problems.iter().all(|problem| problem.path != warning.path)));
    }
    error
}

/// Prints why the configuration cannot be loaded.
fn report_load_error(format: Format, error: LoadError, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    load_error::write(&error, err)?;
    if format == Format::Json {
        let (problems, warnings) = match &error {
            LoadError::Unreadable { path, .. } => (json!([{"path": path, "message": chain(&error)}]), json!([])),
            LoadError::Invalid { problems, warnings, .. } => (json!(problems), json!(warnings)),
        };
        write_json(&json!({"ok": false, "problems": problems, "warnings": warnings}), out)?;
    }
    Ok(Exit::Config)
}

#[cfg(test)]
mod tests;
