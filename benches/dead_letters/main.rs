//! `make letters`: how long it takes to find, group, export and plan to replay many stored dead letters, and how much memory.
//!
//! The ledger is generated. Everything is asked of the real program: commands that read the ledger themselves, and requests to a daemon.
//! The benchmark fails if the median of a list or of groups is above [`GOAL`], or memory above its limit.

#[path = "../../tests/support/harness/daemon.rs"]
#[allow(dead_code, reason = "shared; the bench kills no daemon")]
mod daemon;
#[path = "../../src/ledger/sqlite/tests/generated_letters.rs"]
mod generated_letters;
mod measure;
#[path = "../../tests/support/harness/node.rs"]
#[allow(dead_code, reason = "shared; the bench kills no broker")]
mod node;
mod programs;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use orderd::ledger::LedgerMaintenance;
use orderd::ledger::sqlite::{FILE_NAME, SqliteLedger};
use rusqlite::Connection;
use serde_json::{Value, json};

use measure::{Report, Row};
use node::Node;
use programs::{Api, Commands};

/// The most that the median of a list or of groups may take.
const GOAL: Duration = Duration::from_millis(500);
/// The most resident memory of a command, in MiB, whatever it reads.
const MAX_COMMAND_MIB: u64 = 48;
/// The same of the daemon, which has answered all requests.
const MAX_DAEMON_MIB: u64 = 96;
/// The length of a body.
const BODY_BYTES: usize = 2_048;
/// Runs of what takes long and has no goal.
const LONG_ROUNDS: usize = 3;

/// Measures lists, groups, plans and exports of many dead letters
#[derive(Debug, Parser)]
struct Arguments {
    /// Dead letters in the ledger
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    letters: u32,
    /// Runs of each list and of all groups
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Passed by `cargo bench`, and ignored
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is listed and grouped.
struct Case {
    name: &'static str,
    /// Options of the command, and parameters of the request: their names differ in hyphens only.
    filter: &'static [(&'static str, &'static str)],
    finds: bool,
}

const fn case(name: &'static str, filter: &'static [(&'static str, &'static str)]) -> Case {
    Case { name, filter, finds: true }
}

const fn nothing(name: &'static str, filter: &'static [(&'static str, &'static str)]) -> Case {
    Case { name, filter, finds: false }
}

/// Each filter, once with what is rare or common, and what finds nothing.
const CASES: &[Case] = &[
    case("open", &[]),
    case("open, 1,000 at once", &[("limit", "1000")]),
    case("held", &[("state", "held")]),
    case("any state", &[("state", "any")]),
    case("reason", &[("reason", "permanent")]),
    case("code", &[("code", "code_7")]),
    case("code, any state", &[("code", "code_0"), ("state", "any")]),
    case("consumer", &[("consumer", "priority")]),
    case("queue", &[("source", "unrouted_queue")]),
    case("product", &[("product", "product 7")]),
    case("customer", &[("customer", "customer-7")]),
    case("order", &[("order", "ord-777")]),
    case("routing key", &[("routing_key", "order.normal.web")]),
    case("since the first", &[("since", "1970-01-01T00:00:01Z")]),
    case("until a day", &[("until", "1970-01-02")]),
    case("of a replay", &[("replay", "7")]),
    case("3 retries", &[("min_retries", "3")]),
    case("0 retries, any state", &[("min_retries", "0"), ("state", "any")]),
    case("currency", &[("currency", "EUR")]),
    case("currency and total", &[("currency", "USD"), ("min_total", "990")]),
    case("total", &[("min_total", "0.01")]),
    case("text of one", &[("text", "ord-777\ncustomer")]),
    case("text of all", &[("text", "EXAMPLE.com")]),
    case("text of one, any state", &[("text", "ord-777\ncustomer"), ("state", "any")]),
    nothing("nothing: discarded text", &[("state", "discarded"), ("text", "nowhere")]),
    nothing("nothing: text", &[("text", "nowhere")]),
    nothing("nothing: text, any state", &[("text", "nowhere"), ("state", "any")]),
    nothing("nothing: code", &[("code", "nowhere")]),
    nothing("nothing: consumer, any state", &[("consumer", "nowhere"), ("state", "any")]),
    nothing("nothing: routing key", &[("routing_key", "nowhere")]),
    nothing("nothing: 4 retries", &[("min_retries", "4")]),
    nothing("nothing: currency", &[("currency", "CHF"), ("min_total", "1")]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/letters");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    generate(&directory.join("ledger"), arguments.letters.into())?;
    let mut report = Report::new(arguments.letters, GOAL);
    measure_commands(&arguments, &directory, &mut report)?;
    Node::wipe("bench")?;
    let node = Node::start("bench")?;
    let measured = measure_daemon(&arguments, &directory, &node, &mut report);
    node.stop()?;
    measured?;
    fs::remove_dir_all(&directory)?;
    print!("{report}");
    match report.problems(MAX_COMMAND_MIB, MAX_DAEMON_MIB) {
        problems if problems.is_empty() => Ok(()),
        problems => Err(problems.join("\n").into()),
    }
}

fn generate(ledger: &Path, letters: i64) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        SqliteLedger::open(ledger)?.close().await;
        Ok::<_, orderd::ledger::OpenError>(())
    })?;
    let connection = Connection::open(ledger.join(FILE_NAME))?;
    generated_letters::generate(&connection, letters, BODY_BYTES);
    connection.pragma_update(None, "wal_checkpoint", "truncate")?;
    Ok(())
}

/// Commands that read the ledger themselves, because no daemon runs.
fn measure_commands(arguments: &Arguments, directory: &Path, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let commands = Commands::new(directory);
    let rounds = usize::from(arguments.rounds);
    for Case { name, filter, finds } in CASES {
        let options: Vec<String> =
            filter.iter().map(|(name, value)| format!("--{}={value}", name.replace('_', "-"))).collect();
        for (kind, command) in [("list", &["list"][..]), ("groups", &["list", "--group"])] {
            let row = Row::measure(kind, "command", name, rounds, || {
                let output =
                    commands.run(&[command, &options.iter().map(String::as_str).collect::<Vec<_>>()].concat())?;
                let found = !output.text.starts_with(b"no ");
                if found == *finds { Ok(output.memory) } else { Err(format!("{kind} {name}: found {found}").into()) }
            })?;
            report.add(row);
        }
    }
    // CSV has a line more, with the names of the columns.
    for (format, lines) in [("ndjson", arguments.letters), ("csv", arguments.letters + 1)] {
        let row = Row::measure("export", "command", format, LONG_ROUNDS, || {
            let output = commands.run(&["export", "--state=any", &format!("--format={format}")])?;
            let written = output.text.iter().filter(|byte| **byte == b'\n').count();
            let is_whole = written == lines as usize;
            if is_whole { Ok(output.memory) } else { Err(format!("{format}: {written} lines, not {lines}").into()) }
        })?;
        report.add(row);
    }
    Ok(())
}

/// Requests to a daemon, and its memory after all of them.
fn measure_daemon(
    arguments: &Arguments,
    directory: &Path,
    node: &Node,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let (mut daemon, api) = programs::start_daemon(directory, node)?;
    let rounds = usize::from(arguments.rounds);
    for Case { name, filter, finds } in CASES {
        for (kind, path, found_in) in
            [("list", "dead-letters", "dead_letters"), ("groups", "dead-letters/groups", "groups")]
        {
            let row = Row::measure(kind, "HTTP", name, rounds, || {
                let answer: Value = serde_json::from_slice(&api.get(path, filter)?)?;
                let found = answer[found_in].as_array().is_some_and(|found| !found.is_empty());
                if found == *finds { Ok(0) } else { Err(format!("{kind} {name}: {answer}").into()) }
            })?;
            report.add(row);
        }
    }
    let row = Row::measure("export", "HTTP", "ndjson", LONG_ROUNDS, || {
        let sent = api.get("dead-letters/export", &[("state", "any")])?;
        let whole = sent.len() > arguments.letters as usize * BODY_BYTES && sent.ends_with(b"\r\n0\r\n\r\n");
        if whole { Ok(0) } else { Err("the export is not whole".into()) }
    })?;
    report.add(row);
    for (what, path, filter) in [
        ("replay of all", "replays", json!({})),
        ("replay of a text", "replays", json!({"text": "nowhere"})),
        ("replay of a code", "replays", json!({"code": "nowhere"})),
        ("discard of all", "discard", json!({})),
        ("hold of a code", "hold", json!({"code": "code_7"})),
    ] {
        let mut answers = 0;
        let row = Row::measure("plan", "HTTP", what, LONG_ROUNDS, || {
            answers = plan(&api, path, &filter)?;
            Ok(0)
        })?;
        report.add(row.noted(format!("{answers} answers")));
    }
    report.daemon_memory = daemon.peak_memory()?;
    let status = daemon.terminate(Duration::from_secs(60))?;
    if status.success() { Ok(()) } else { Err(format!("orderd exited with {status}").into()) }
}

/// All answers about what an action would do. Returns how many there are.
fn plan(api: &Api, path: &str, filter: &Value) -> Result<usize, Box<dyn Error>> {
    let (mut after, mut answers) = (json!(0), 0);
    while !after.is_null() {
        let request = json!({"selection": {"filter": filter}, "dry_run": true, "after": after});
        let answer: Value = serde_json::from_slice(&api.post(&format!("dead-letters/{path}"), &request)?)?;
        after = answer["next"].clone();
        answers += 1;
    }
    Ok(answers)
}
