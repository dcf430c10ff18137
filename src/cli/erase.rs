//! `orderd erase`: erases personal data of one customer, order, message or dead letter from the ledger and the event files, while a daemon runs or not.
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

use super::local_actor::local_actor;
use super::output::write_json;
use super::report::ledger_exit;
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::Config;
use crate::escape::escaped;
use crate::handlers;
use crate::ledger::{ErasedRows, ErasureOptions, ErasureSubject, ErasureTargets, JournalHead, UnfinishedSteps};
use crate::management::{ManagementClient, Totals};

/// How long the broker may take to say how many messages its queues have.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `orderd erase`.
#[derive(Debug, Args)]
pub struct EraseArgs {
    #[command(flatten)]
    subject: Subject,
    /// Also erase results of steps that are still needed: of orders in progress, and of those whose undo failed, which a person has to undo
    #[arg(long)]
    include_unfinished: bool,
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
    /// message_id of a message that is no order, such as one of a consumer with handler = "steps"; or its whole identity, as in the log
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    message: Option<String>,
    /// Number of one stored dead letter, such as one of which no order is known
    #[arg(long, value_name = "ID")]
    dead_letter: Option<i64>,
}

/// What is printed. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize)]
struct ErasureReport {
    dry_run: bool,
    /// The orders whose data was erased.
    orders: Vec<String>,
    /// The identities of other messages whose data was erased.
    messages: Vec<String>,
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
/// Returns the exit code: 0, 1 if nothing about what is named was found or dead letters that are being replayed were left, 70 if a file cannot be rewritten, 70 or 78 if
/// the ledger cannot be used.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: &EraseArgs, config: &Config, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let subject = args.subject.checked();
    let location = config.ledger.location();
    let targets = match location.erasure_targets(&subject).await {
        Ok(targets) => targets,
        Err(error) => {
            writeln!(err, "orderd: cannot read the ledger: {}", chain(&error))?;
            return Ok(ledger_exit(&error));
        }
    };
    let options = ErasureOptions { dry_run: args.dry_run, include_unfinished: args.include_unfinished };
    // The ledger comes last: without its customer ids, a second run would not find the lines that this one left.
    let (event_files, unreadable, failed) = erase_event_files(config, &subject, &targets, args.dry_run, err)?;
    if failed {
        writeln!(err, "orderd: the ledger is unchanged; repeat the command once the files can be written")?;
        return Ok(Exit::Internal);
    }
    let ledger = match location.erase(targets.clone(), options, &local_actor()).await {
        Ok(erased) => erased,
        Err(error) => {
            writeln!(err, "orderd: cannot erase from the ledger: {}", chain(&error))?;
            return Ok(ledger_exit(&error));
        }
    };
    let queues = queues_with_messages(config).await;
    let mut not_erased = not_erased(config, queues.as_ref(), &unreadable, ledger.copies_remain);
    not_erased.extend(still_needed(&ledger.unfinished));
    if let ErasureSubject::Customer(_) = subject {
        let never = "failure texts of orders that were never accepted, whose customers the ledger does not know: give such an order \
                     with --order";
        not_erased.push(never.to_owned());
        not_erased.extend(orders_of_others(&targets.orders_of_others));
    }
    not_erased.extend(other_dead_letters(&subject, &ledger));
    let ErasureTargets { orders, messages, .. } = targets;
    let report = ErasureReport { dry_run: args.dry_run, orders, messages, ledger, event_files, queues, not_erased };
    match args.format {
        Format::Text => write_text(&report, out)?,
        Format::Json => write_json(&report, out)?,
    }
    Ok(report.exit())
}

impl Subject {
    /// The one that is given.
    fn checked(&self) -> ErasureSubject {
        match (&self.customer, &self.order, self.dead_letter, &self.message) {
            (Some(customer), ..) => ErasureSubject::Customer(customer.clone()),
            (None, Some(order), ..) => ErasureSubject::Order(order.clone()),
            (None, None, Some(id), _) => ErasureSubject::DeadLetter(id),
            (None, None, None, message) => ErasureSubject::Message(message.clone().unwrap_or_default()),
        }
    }
}

impl ErasureReport {
    /// Whether nothing about what is named was found.
    fn is_empty(&self) -> bool {
        let ErasedRows { dead_letters, replaying_dead_letters, .. } = self.ledger;
        self.orders.is_empty()
            && self.messages.is_empty()
            && self.event_files.is_empty()
            && dead_letters + replaying_dead_letters == 0
    }

    /// 1 if nothing was found, or if the command has to be repeated for dead letters that are being replayed.
    fn exit(&self) -> Exit {
        match self.is_empty() || self.ledger.replaying_dead_letters > 0 {
            true => Exit::Refused,
            false => Exit::Done,
        }
    }
}

/// The files that were changed, those that cannot be read, and whether one could not be rewritten.
fn erase_event_files(
    config: &Config,
    subject: &ErasureSubject,
    targets: &ErasureTargets,
    dry_run: bool,
    err: &mut dyn Write,
) -> io::Result<(Vec<ErasedFile>, Vec<PathBuf>, bool)> {
    // An order that the ledger does not know may have events.
    let own = match subject {
        ErasureSubject::Order(id) => Some(id.clone()),
        ErasureSubject::Customer(_) | ErasureSubject::Message(_) | ErasureSubject::DeadLetter(_) => None,
    };
    let orders: HashSet<String> = targets.orders.iter().cloned().chain(own).collect();
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

/// What is not erased because steps, undos or people need it, and what to do about it.
fn still_needed(unfinished: &[UnfinishedSteps]) -> Vec<String> {
    let names = |in_state: fn(&str) -> bool| {
        let found = unfinished.iter().filter(|steps| in_state(steps.state));
        let names = found.map(|UnfinishedSteps { consumer, id, .. }| match consumer {
            Some(consumer) => format!("{id} of consumer {consumer}"),
            None => id.clone(),
        });
        Some(names.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty())
    };
    let in_progress = names(|state| state != "undo_failed").map(|names| {
        format!("results of the steps of {names}, which are in progress: they are erased as soon as all steps are done or undone")
    });
    let failed = names(|state| state == "undo_failed").map(|names| {
        format!(
            "results of the steps of {names}, which could not be undone: replay the dead letters, or undo by hand what is left, \
             then repeat the command with --include-unfinished"
        )
    });
    in_progress.into_iter().chain(failed).collect()
}

/// The orders of which only the customer's own dead letters are erased.
fn orders_of_others(orders: &[String]) -> Option<String> {
    let orders = Some(orders.join(", ")).filter(|orders| !orders.is_empty())?;
    Some(format!(
        "what is kept about {orders} besides the customer's dead letters, which name orders that are, or may be, another \
         customer's: give those that are this customer's with --order"
    ))
}

/// The stored dead letters that may contain personal data of the subject too.
fn other_dead_letters(subject: &ErasureSubject, ledger: &ErasedRows) -> Vec<String> {
    let ErasedRows { replaying_dead_letters, unattributed_dead_letters, .. } = *ledger;
    let mut places = Vec::new();
    if replaying_dead_letters > 0 {
        places.push(replaying_text(replaying_dead_letters));
    }
    let (id, unknown) = match subject {
        ErasureSubject::Customer(id) => (id, "customer"),
        ErasureSubject::Order(id) | ErasureSubject::Message(id) => (id, "order"),
        ErasureSubject::DeadLetter(_) => return places,
    };
    if unattributed_dead_letters > 0 {
        places.push(format!(
            "{unattributed_dead_letters} stored dead letters of which no {unknown} is known: orderd dead-letters list --state any \
             --text '{id}' finds those that contain the id; erase each with --dead-letter"
        ));
    }
    places
}

/// `1 dead letter that is being replayed: …`.
fn replaying_text(letters: usize) -> String {
    let (what, its) = match letters {
        1 => ("1 dead letter that is".to_owned(), "its replay has"),
        letters => (format!("{letters} dead letters that are"), "their replays have"),
    };
    format!("{what} being replayed: repeat the command once {its} ended")
}

fn write_text(report: &ErasureReport, out: &mut dyn Write) -> io::Result<()> {
    let ErasureReport { dry_run, orders, messages, ledger, event_files, queues: _, not_erased } = report;
    let lines: usize = event_files.iter().map(|file| file.lines).sum();
    if ledger.replaying_dead_letters > 0 {
        writeln!(out, "INCOMPLETE: not erased: {}", replaying_text(ledger.replaying_dead_letters))?;
    }
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
    if !messages.is_empty() {
        writeln!(out, "  messages       {}", escaped(&messages.join(", ")))?;
    }
    writeln!(out, "  customer ids   {}", ledger.customer_ids)?;
    writeln!(out, "  failure texts  {}", ledger.failure_texts)?;
    writeln!(out, "  recipients     {}", ledger.recipients)?;
    writeln!(out, "  step texts     {}", ledger.step_texts)?;
    writeln!(out, "  dead letters   {}", ledger.dead_letters)?;
    writeln!(out, "  event lines    {lines} in {} files", event_files.len())?;
    if let Some(JournalHead { seq, hash }) = ledger.journal {
        writeln!(out, "  journal        entry {seq}, {hash}")?;
    }
    writeln!(out, "not erased")?;
    not_erased.iter().try_for_each(|place| writeln!(out, "  {}", escaped(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ledger: ErasedRows) -> ErasureReport {
        let not_erased = other_dead_letters(&ErasureSubject::DeadLetter(7), &ledger);
        ErasureReport {
            dry_run: false,
            orders: Vec::new(),
            messages: Vec::new(),
            ledger,
            event_files: Vec::new(),
            queues: None,
            not_erased,
        }
    }

    #[test]
    fn an_erasure_that_leaves_a_dead_letter_that_is_being_replayed_does_not_look_like_a_success() {
        let of = |dead_letters, replaying_dead_letters| {
            report(ErasedRows { dead_letters, replaying_dead_letters, ..ErasedRows::default() })
        };
        let first_line = |report: &ErasureReport| {
            let mut out = Vec::new();
            write_text(report, &mut out).unwrap();
            String::from_utf8(out).unwrap().lines().next().unwrap().to_owned()
        };
        for (left, expected) in [(of(0, 1), "1 dead letter that is being"), (of(3, 2), "2 dead letters that are being")]
        {
            assert_eq!(left.exit(), Exit::Refused);
            let first = first_line(&left);
            assert!(first.starts_with("INCOMPLETE") && first.contains(expected), "{first}");
        }
        let complete = of(3, 0);
        assert_eq!((complete.exit(), first_line(&complete)), (Exit::Done, "erased".to_owned()));
        assert_eq!(of(0, 0).exit(), Exit::Refused);
    }
}
