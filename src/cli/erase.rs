//! `orderd erase`: erases one customer's personal data from the ledger and the event files, while a daemon runs or not.
//!
//! It never contacts the daemon, and asks the broker only for the number of queued messages. It says what it cannot erase.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use tokio::time::timeout;

use super::output::write_json;
use super::report::ledger_exit;
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::Config;
use crate::escape::escaped;
use crate::handlers;
use crate::ledger::{ErasedRows, ErasureSubject};
use crate::management::{ManagementClient, Totals};

/// How long the broker may take to say how many messages its queues have.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `orderd erase`.
#[derive(Debug, Args)]
pub struct EraseArgs {
    #[command(flatten)]
    subject: Subject,
    /// Show what would be erased, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// Id of the customer, as in the orders' customer_id
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    customer: Option<String>,
    /// Id of one order
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    order: Option<String>,
}

/// What is printed. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize)]
struct ErasureReport {
    dry_run: bool,
    /// The orders whose data was erased.
    orders: Vec<String>,
    ledger: ErasedRows,
    /// The event files with lines that were changed.
    event_files: Vec<ErasedFile>,
    /// The queues with messages, which may contain personal data; `None` if the broker did not answer.
    queues: Option<BTreeMap<String, u64>>,
    /// Where personal data may remain.
    not_erased: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ErasedFile {
    path: PathBuf,
    lines: usize,
}

/// Erases the data and prints what was done.
///
/// Returns the exit code: 0, 1 if nothing about the customer or order was found, 70 if a file cannot be rewritten, 70 or 78 if
/// the ledger cannot be used.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: &EraseArgs, config: &Config, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let subject = match (&args.subject.customer, &args.subject.order) {
        (Some(customer), _) => ErasureSubject::Customer(customer.clone()),
        (None, order) => ErasureSubject::Order(order.clone().unwrap_or_default()),
    };
    let location = config.ledger.location();
    let orders = match location.orders_of(&subject).await {
        Ok(orders) => orders,
        Err(error) => {
            writeln!(err, "orderd: cannot read the ledger: {}", chain(&error))?;
            return Ok(ledger_exit(&error));
        }
    };
    // The ledger comes last: without its customer ids, a second run would not find the lines that this one left.
    let (event_files, unreadable, failed) = erase_event_files(config, &subject, &orders, args.dry_run, err)?;
    if failed {
        writeln!(err, "orderd: the ledger is unchanged; repeat the command once the files can be written")?;
        return Ok(Exit::Internal);
    }
    let ledger = match location.erase(orders.clone(), args.dry_run).await {
        Ok(erased) => erased,
        Err(error) => {
            writeln!(err, "orderd: cannot erase from the ledger: {}", chain(&error))?;
            return Ok(ledger_exit(&error));
        }
    };
    let queues = queues_with_messages(config).await;
    let mut not_erased = not_erased(config, queues.as_ref(), &unreadable, ledger.copies_remain);
    if let ErasureSubject::Customer(_) = subject {
        let never = "failure texts of orders that were never accepted, whose customers the ledger does not know: give such an order \
                     with --order";
        not_erased.push(never.to_owned());
    }
    let report = ErasureReport { dry_run: args.dry_run, orders, ledger, event_files, queues, not_erased };
    match args.format {
        Format::Text => write_text(&report, out)?,
        Format::Json => write_json(&report, out)?,
    }
    Ok(if report.is_empty() { Exit::Refused } else { Exit::Done })
}

impl ErasureReport {
    /// Whether nothing about the customer or order was found.
    fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.event_files.is_empty()
    }
}

/// The files that were changed, those that cannot be read, and whether one could not be rewritten.
fn erase_event_files(
    config: &Config,
    subject: &ErasureSubject,
    orders: &[String],
    dry_run: bool,
    err: &mut dyn Write,
) -> io::Result<(Vec<ErasedFile>, Vec<PathBuf>, bool)> {
    // An order that the ledger does not know may have events.
    let own = match subject {
        ErasureSubject::Order(id) => Some(id.clone()),
        ErasureSubject::Customer(_) => None,
    };
    let orders: HashSet<String> = orders.iter().cloned().chain(own).collect();
    let (mut erased, mut unreadable, mut failed) = (Vec::new(), Vec::new(), false);
    for files in config.event_files() {
        let (readable, compressed) = match handlers::event_files(&files) {
            Ok(found) => found,
            Err(error) => {
                writeln!(err, "orderd: cannot read the directory {:?}: {error}", files.directory)?;
                failed = true;
                continue;
            }
        };
        unreadable.extend(compressed);
        for path in readable {
            match handlers::erase_events(&path, subject, &orders, dry_run) {
                Ok(0) => {}
                Ok(lines) => erased.push(ErasedFile { path, lines }),
                Err(error) => {
                    writeln!(err, "orderd: cannot erase from {path:?}: {error}")?;
                    failed = true;
                }
            }
        }
    }
    Ok((erased, unreadable, failed))
}

/// The number of messages in each queue of the topology that has any; `None` if the broker does not answer.
async fn queues_with_messages(config: &Config) -> Option<BTreeMap<String, u64>> {
    let client = ManagementClient::new(&config.management, &config.broker.virtual_host).ok()?;
    let all = timeout(BROKER_TIMEOUT, client.totals()).await.ok()?.ok()?;
    let topology = config.topology();
    let own: HashSet<&str> = topology.queues().map(|queue| queue.name.as_str()).collect();
    let messages = |totals: &Totals| totals.ready.unwrap_or(0) + totals.unacked.unwrap_or(0);
    let queues = all.queues.iter().filter(|totals| own.contains(totals.name.as_str()) && messages(totals) > 0);
    Some(queues.map(|totals| (totals.name.clone(), messages(totals))).collect())
}

fn not_erased(
    config: &Config,
    queues: Option<&BTreeMap<String, u64>>,
    unreadable: &[PathBuf],
    copies_remain: bool,
) -> Vec<String> {
    let depths: Option<Vec<_>> = queues.map(|queues| queues.iter().map(|(name, n)| format!("{name} {n}")).collect());
    let depths = match depths {
        None => "numbers unknown, the broker does not answer".to_owned(),
        Some(depths) if depths.is_empty() => "none now".to_owned(),
        Some(depths) => depths.join(", "),
    };
    let mut places = vec![
        format!("messages in the broker's queues ({depths}): run the command again once they are processed or deleted"),
        match &config.log.directory {
            Some(directory) => format!("log files in {directory:?}, removed by log.keep, and the journal"),
            None => "the log on standard error, such as the journal".to_owned(),
        },
        "event files where log.directory was before: run the command again with --set log.directory=DIRECTORY for each, and \
         there with --order for each order above"
            .to_owned(),
        "backups of the ledger and of the files, and copies that other programs made".to_owned(),
    ];
    places.extend(unreadable.iter().map(|path| format!("{path:?}, which is compressed")));
    if copies_remain {
        places.push("the ledger's write-ahead log, until the daemon's next checkpoint".to_owned());
    }
    places
}

fn write_text(report: &ErasureReport, out: &mut dyn Write) -> io::Result<()> {
    let ErasureReport { dry_run, orders, ledger, event_files, queues: _, not_erased } = report;
    let lines: usize = event_files.iter().map(|file| file.lines).sum();
    let heading = match (report.is_empty(), dry_run) {
        (true, _) => "nothing found, nothing erased",
        (false, true) => "would erase (nothing was changed)",
        (false, false) => "erased",
    };
    writeln!(out, "{heading}")?;
    writeln!(
        out,
        "  orders         {}",
        if orders.is_empty() { "none in the ledger".to_owned() } else { escaped(&orders.join(", ")) }
    )?;
    writeln!(out, "  customer ids   {}", ledger.customer_ids)?;
    writeln!(out, "  failure texts  {}", ledger.failure_texts)?;
    writeln!(out, "  step texts     {}", ledger.step_texts)?;
    writeln!(out, "  event lines    {lines} in {} files", event_files.len())?;
    writeln!(out, "not erased")?;
    not_erased.iter().try_for_each(|place| writeln!(out, "  {place}"))
}
