//! `make bench`: orderd against the broker's ceiling, on one private broker node.
//!
//! Each round measures the two ceilings, which perform only the broker operations, and then orderd. With `--steps http`, it measures
//! orderd without a step and with one instead; with `--notify smtp`, a mail server and then orderd, which sends e-mails to it. Each measurement begins with a newly preloaded order queue. Queues, messages and
//! machine are the same for all, and connecting and declaring are never part of the measured time.

mod ceiling;
#[path = "../../tests/support/harness/daemon.rs"]
#[allow(dead_code, reason = "shared; the bench kills no daemon")]
mod daemon;
mod end_to_end;
mod mail_server;
mod minimal_client;
#[path = "../../tests/support/harness/node.rs"]
#[allow(dead_code, reason = "shared; the bench kills no broker")]
mod node;
mod notify_report;
mod report;
mod step_report;
mod step_service;

use std::error::Error;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use orderd::config::{Config, Sources};

use ceiling::{Style, Window};
use mail_server::MailServer;
use minimal_client::Connection;
use node::Node;
use notify_report::{NotifyReport, NotifyRound};
use report::{Report, Round};
use serde::Serialize;
use step_report::{StepReport, StepRound};
use step_service::StepService;

/// Connections to the mail server: the default of `max_connections`.
const CONNECTIONS: u64 = 8;
const MIB: f64 = 1024.0 * 1024.0;
/// A new quorum queue may lose confirmed messages for a moment, and is not at full speed yet.
const AFTER_DECLARING: Duration = Duration::from_secs(2);
/// Time for the broker to write the rest of the old log to the queues' files.
const AFTER_ROLLING: Duration = Duration::from_secs(2);

/// Compares orderd's throughput with the broker's ceilings
#[derive(Debug, Parser)]
struct Arguments {
    /// Orders in each round
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(10..))]
    orders: u64,
    /// Number of rounds, of which the median is reported
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Orders per window, for the ceiling in windows
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=30_000))]
    window: u16,
    /// Unacknowledged deliveries per queue, for the streaming ceiling
    #[arg(long, default_value_t = 1000)]
    prefetch: u16,
    /// Deliveries per acknowledgement, for the streaming ceiling
    #[arg(long, default_value_t = 200)]
    acks: u64,
    /// Measure only the ceilings
    #[arg(long, conflicts_with = "steps")]
    ceiling_only: bool,
    /// Compare orderd with one step, performed by a trivial service in the benchmark, with orderd without it
    #[arg(long, value_name = "KIND")]
    steps: Option<StepKind>,
    /// Compare orderd, which sends e-mails, with the most that the mail server of the tests accepts
    #[arg(long, value_name = "KIND", conflicts_with_all = ["steps", "ceiling_only"])]
    notify: Option<NotifyKind>,
    /// An environment variable for orderd, such as ORDERD_CONSUMERS__ORDER__WORKERS=8
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print one JSON object on stdout; the rounds go to stderr
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`, and ignored
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StepKind {
    Http,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NotifyKind {
    Smtp,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    Node::wipe("bench")?;
    let node = Node::start("bench")?;
    let outcome = match (arguments.steps, arguments.notify) {
        (None, None) => measure(&arguments, &node).and_then(|report| print(&arguments, &report)),
        (Some(StepKind::Http), _) => measure_steps(&arguments, &node).and_then(|report| print(&arguments, &report)),
        (None, Some(NotifyKind::Smtp)) => {
            measure_mails(&arguments, &node).and_then(|report| print(&arguments, &report))
        }
    };
    node.stop()?;
    outcome
}

fn print(arguments: &Arguments, report: &(impl Serialize + Display)) -> Result<(), Box<dyn Error>> {
    if arguments.json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// The settings given as arguments.
fn settings(arguments: &Arguments) -> Result<Vec<(&str, String)>, &'static str> {
    let settings = arguments.settings.iter().map(|text| text.split_once('='));
    let settings: Option<Vec<_>> =
        settings.map(|setting| setting.map(|(key, value)| (key, value.to_owned()))).collect();
    settings.ok_or("--set takes KEY=VALUE")
}

/// Where orderd's ledger and log are.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench")
}

/// Measures orderd without a step and with one, in turns.
fn measure_steps(arguments: &Arguments, node: &Node) -> Result<StepReport, Box<dyn Error>> {
    let (directory, without) = (directory(), settings(arguments)?);
    let service = StepService::start()?;
    let with = [&*without, &[("ORDERD_CONSUMERS__ORDER__STEPS", service.steps())]].concat();
    declare(node)?;
    // The warm-up: the broker is slower with its first messages.
    ceiling::preload(node.amqp_port, arguments.orders / 10)?;
    end_to_end::run(node, arguments.orders / 10, &directory, &with)?;
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        let run = |settings: &[(&str, String)]| -> Result<_, Box<dyn Error>> {
            prepare(node, arguments.orders)?;
            Ok(end_to_end::run(node, arguments.orders, &directory, settings)?)
        };
        let (without, _) = run(&without)?;
        let called = service.calls();
        let (with, memory) = run(&with)?;
        let calls = service.calls() - called;
        if calls != arguments.orders {
            return Err(format!("the step was called {calls} times for {} orders", arguments.orders).into());
        }
        let round = StepRound { without, with, memory_mib: memory as f64 / MIB };
        eprintln!("round {number}   {round}");
        rounds.push(round);
    }
    Ok(StepReport::new(arguments.orders, rounds))
}

/// Measures the mail server and then orderd, in turns.
fn measure_mails(arguments: &Arguments, node: &Node) -> Result<NotifyReport, Box<dyn Error>> {
    let (directory, server, mails) = (directory(), MailServer::start()?, arguments.orders);
    let smtp = [
        ("ORDERD_NOTIFY__EMAIL__TYPE", "smtp".to_owned()),
        ("ORDERD_NOTIFY__EMAIL__ADDRESS", format!("localhost:{}", server.port)),
        ("ORDERD_NOTIFY__EMAIL__TLS", "none".to_owned()),
        ("ORDERD_NOTIFY__EMAIL__FROM", "Lamps <orders@example.com>".to_owned()),
    ];
    let settings = [&smtp, &*settings(arguments)?].concat();
    declare(node)?;
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        let most = server.most_per_second(mails, CONNECTIONS)?;
        ceiling::preload_notifications(node.amqp_port, mails)?;
        let cpu = server.cpu()?;
        let (orderd, _) = end_to_end::notify(node, mails, &directory, &settings)?;
        let server_cpu = (server.cpu()? - cpu).as_secs_f64() * orderd.orders_per_second / mails as f64;
        let round = NotifyRound { server: most, orderd, server_cpu };
        eprintln!("round {number}   {round}");
        rounds.push(round);
    }
    Ok(NotifyReport::new(mails, rounds))
}

fn measure(arguments: &Arguments, node: &Node) -> Result<Report, Box<dyn Error>> {
    let settings = settings(arguments)?;
    let window = Window { prefetch: arguments.prefetch, acks: arguments.acks.clamp(1, arguments.prefetch.into()) };
    let in_windows = Window { prefetch: 2 * arguments.window, acks: arguments.window.into() };
    let directory = directory();

    declare(node)?;
    let mut memory_at_a_tenth = 0.0;
    if !arguments.ceiling_only {
        // This is also the warm-up: the broker is slower with its first messages.
        ceiling::preload(node.amqp_port, arguments.orders / 10)?;
        memory_at_a_tenth = end_to_end::run(node, arguments.orders / 10, &directory, &settings)?.1 as f64 / MIB;
    }
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        prepare(node, arguments.orders)?;
        let windows = ceiling::run(node, arguments.orders, Style::Windows, in_windows)?;
        prepare(node, arguments.orders)?;
        let stream = ceiling::run(node, arguments.orders, Style::Stream, window)?;
        let mut round = Round { windows, stream, orderd: None, memory_mib: 0.0 };
        if !arguments.ceiling_only {
            prepare(node, arguments.orders)?;
            let (orderd, memory) = end_to_end::run(node, arguments.orders, &directory, &settings)?;
            round.orderd = Some(orderd);
            round.memory_mib = memory as f64 / MIB;
        }
        eprintln!("round {number}   {round}");
        rounds.push(round);
    }
    Ok(Report::new(arguments.orders, rounds, memory_at_a_tenth))
}

/// Fills the order queue, with the broker in the same state before each run.
///
/// About once a round, the broker's write-ahead log is full (512 MiB) and rolled over: then its messages are written to the
/// queues' own files and read from there. In every round observed, this happened during orderd's run, and increased the
/// broker's CPU time per order by a fifth or more. So each run begins with a new log, which is large enough to preload and
/// process 100,000 orders (200 MiB). With more than 250,000 orders it is rolled over during the run again.
fn prepare(node: &Node, orders: u64) -> Result<(), Box<dyn Error>> {
    node.ctl(&["eval", "ok = ra_log_wal:force_roll_over(ra_log_wal)."])?;
    thread::sleep(AFTER_ROLLING);
    Ok(ceiling::preload(node.amqp_port, orders)?)
}

/// The topology of the default configuration, as orderd plans it.
fn declare(node: &Node) -> Result<(), Box<dyn Error>> {
    let sources = Sources { file: Some(daemon::CONFIG.into()), ..orderd::handlers::sources() };
    let config = Config::load(&sources)?.config;
    let mut connection = Connection::open(node.amqp_port)?;
    for declaration in config.topology().declarations() {
        connection.declare(declaration)?;
    }
    thread::sleep(AFTER_DECLARING);
    Ok(())
}
