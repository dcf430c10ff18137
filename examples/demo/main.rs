//! `make demo`: runs the whole pipeline with a shop's services as steps, a mail server, cancellations and injected faults, and proves
//! that no order is missing, that every charge is kept with a processed order or refunded, and that every customer is notified once.
//! In the end the causes are repaired, and the dead letters are replayed.
//!
//! ```text
//! main      the run: producers, services that go away, cancellations, the audit
//! replays   the repair of the causes, and the replay of the dead letters
//! up        `make up` starts a broker and orderd and leaves them running; `make down` stops them
//! ```

#[path = "../../tests/support/harness/mod.rs"]
mod harness;
#[path = "../../tests/support/smtp_server.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the tests share it; the demo stops at the first error")]
mod smtp_server;

mod replays;
mod up;

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use harness::audit::{Audit, Progress, Published};
use harness::daemon::{CONFIG, Daemon};
use harness::environment::{ADDRESSES, EarlierData, Environment, external_broker};
use harness::interrupt;
use harness::mail_audit::{Mail, MailAudit};
use harness::queued_messages::QueuedMessages;
use harness::shop::Shop;
use harness::shop::books::BooksAudit;
use harness::{Outcome, sibling_program};
use indicatif::{ProgressBar, ProgressStyle};
use smtp_server::SmtpServer;
use tokio::runtime::Runtime;

const POLL: Duration = Duration::from_millis(250);
/// Time between two progress lines, which are printed if stderr is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit, generous enough for a slow machine.
const DEADLINE: Duration = Duration::from_secs(300);
const DRAIN: Duration = Duration::from_secs(40);
/// Orders sent to a routing key with a typo in it. The shop refuses none of these.
const UNROUTABLE: u64 = 3;

/// Injected faults of every kind, and short retry delays.
const FAULTS: [(&str, &str); 9] = [
    ("ORDERD_CONSUMERS__ORDER__FAULTS__TRANSIENT", "0.05"),
    ("ORDERD_CONSUMERS__ORDER__FAULTS__PERMANENT", "0.01"),
    ("ORDERD_CONSUMERS__ORDER__FAULTS__PANIC", "0.002"),
    ("ORDERD_CONSUMERS__ORDER__FAULTS__HANG", "0.001"),
    ("ORDERD_CONSUMERS__ORDER__TIMEOUT", "2s"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__IMMEDIATE", "0"),
    ("ORDERD_CONSUMERS__ORDER__RETRY__DELAYS", "1s,3s,5s"),
    ("ORDERD_CONSUMERS__PRIORITY__RETRY__DELAYS", "1s,3s,5s"),
    ("ORDERD_CONSUMERS__NOTIFICATION__RETRY__DELAYS", "1s,3s,5s,10s"),
];

/// Notifications: e-mails to a server that the demo starts, text messages to the file. `examples/templates` (relative to the configuration file) has the text of the events
/// of another program.
const CHANNELS: [(&str, &str); 10] = [
    ("ORDERD_NOTIFY__EMAIL__TYPE", "smtp"),
    ("ORDERD_NOTIFY__EMAIL__TLS", "none"),
    ("ORDERD_NOTIFY__EMAIL__FROM", "Lamps & More <orders@example.com>"),
    ("ORDERD_NOTIFY__EMAIL__LIST_UNSUBSCRIBE", "https://example.com/unsubscribe"),
    ("ORDERD_NOTIFY__EMAIL__TEMPLATES", "../examples/templates"),
    ("ORDERD_NOTIFY__EMAIL__TIMEOUT", "2s"),
    ("ORDERD_NOTIFY__EMAIL__CIRCUIT_BREAKER__FAILURES", "0.2"),
    ("ORDERD_NOTIFY__EMAIL__CIRCUIT_BREAKER__WINDOW", "5s"),
    ("ORDERD_NOTIFY__EMAIL__CIRCUIT_BREAKER__OPEN", "1s"),
    ("ORDERD_NOTIFY__SMS__TYPE", "log"),
];
const MAIL_SERVER: &str = "ORDERD_NOTIFY__EMAIL__ADDRESS";
/// Every third notification of the other program is a text message.
const SMS_SHARE: u64 = 3;
/// Processed orders that customers cancel.
const CANCELLATIONS: usize = 20;

/// How long the reservation service is away, once a quarter of the orders is settled.
const ABSENCE: Duration = Duration::from_secs(5);
/// The consumers whose orders are charged, reserved and shipped.
const STEPS: [&str; 2] = ["ORDERD_CONSUMERS__ORDER__STEPS", "ORDERD_CONSUMERS__PRIORITY__STEPS"];

/// Runs orderd with a broker, producers, a shop's services and injected faults.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Publish and process orders, and prove that none is missing
    Run {
        /// Orders to publish
        #[arg(long, default_value_t = 5_000)]
        orders: u64,
        /// Orders per second
        #[arg(long, default_value_t = 500)]
        rate: u64,
    },
    /// Start a broker and orderd, and leave them running
    Up {
        /// Delete the broker's data and the ledger of the last time first
        #[arg(long)]
        fresh: bool,
    },
    /// Stop what `up` started
    Down,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Action::Run { orders, rate } => run(orders, rate.max(1)),
        Action::Up { fresh } => up::up(fresh).map(|()| true),
        Action::Down => up::down().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo. Returns whether the audit passed.
fn run(orders: u64, rate: u64) -> Outcome<bool> {
    interrupt::watch()?;
    let published = Published {
        prefix: format!("demo-{}-", jiff::Timestamp::now().as_second()),
        orders,
        unroutable: UNROUTABLE,
        notifications: orders.div_ceil(10),
        analytics: orders.div_ceil(5),
        cancelled: HashSet::new(),
        gaps: Vec::new(),
    };
    let runtime = Runtime::new()?;
    let shop = Shop::start()?;
    let steps = shop.steps();
    let mail_server = SmtpServer::start(&[]);
    let address = format!("127.0.0.1:{}", mail_server.port);
    let settings = STEPS.iter().map(|key| (*key, &*steps)).chain(FAULTS).chain(CHANNELS);
    let settings: Vec<_> = settings.chain([(MAIL_SERVER, &*address)]).collect();
    let mut environment = prepare_environment("demo", &settings, EarlierData::Deleted, &runtime)?;
    let audits = run_in(&mut environment, published, rate, &mut Surroundings { shop, mail_server }, &runtime);
    environment.tear_down()?;
    let (audit, books, mails) = audits?;
    let log = environment.directory.join("orderd.log");
    println!("\n{audit}\n\n{books}\n\n{mails}\n\nthe log of orderd is in {}", log.display());
    Ok(audit.passed() && books.passed() && mails.passed())
}

fn prepare_environment(
    name: &str,
    settings: &[(&'static str, &str)],
    earlier: EarlierData,
    runtime: &Runtime,
) -> Outcome<Environment> {
    match external_broker()? {
        Some(addresses) => println!("using the broker at {addresses}, from {ADDRESSES}"),
        None => println!("starting a private RabbitMQ node, with its data in target/broker/{name}"),
    }
    let environment = Environment::prepare(name, settings, earlier, runtime)?;
    println!("topology declared on {}", environment.config.broker.addresses[0]);
    Ok(environment)
}

/// What orderd calls.
struct Surroundings {
    shop: Shop,
    mail_server: SmtpServer,
}

fn run_in(
    environment: &mut Environment,
    mut published: Published,
    rate: u64,
    surroundings: &mut Surroundings,
    runtime: &Runtime,
) -> Outcome<(Audit, BooksAudit, MailAudit)> {
    let mut daemon = environment.start_daemon(&sibling_program("orderd")?)?;
    println!(
        "orderd is running as process {}; 5 % of the orders fail once, 1 % always, 1 % are bad;\n\
         the shop's services refuse 1 % of the cards, 1 % are sold out, 1 % cannot be shipped",
        daemon.pid()
    );
    let seconds = published.orders.div_ceil(rate).max(1);
    let mut producers = Producers(Vec::new());
    for (program, count, extra) in [
        ("order_producer", published.orders, &["--bad", "0.01"][..]),
        ("notification_producer", published.notifications, &[]),
        ("analytics_producer", published.analytics, &[]),
    ] {
        let options =
            ["--count", &count.to_string(), "--rate", &count.div_ceil(seconds).to_string()].map(str::to_owned);
        producers.start(
            environment,
            &published.prefix,
            program,
            &[&options, &*extra.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()].concat(),
        )?;
    }
    publish_unroutable(environment, &published.prefix)?;
    watch(environment, &mut published, &mut daemon, &mut producers, surroundings)?;
    show_command(environment, &["status"])?;
    show_command(environment, &["report", "--by", "product"])?;
    replays::repair(environment, &mut daemon, &surroundings.shop)?;
    replays::replay(environment)?;
    replays::await_events(environment, &published, &mut daemon)?;
    stop(&mut daemon)?;
    let (prefix, promotions) =
        (published.prefix.clone(), published.notifications - published.notifications / SMS_SHARE);
    let audit = runtime.block_on(async {
        let queued = QueuedMessages::read(&environment.connector(), environment.ledger_directory()).await?;
        Audit::of_run(published, environment.ledger_directory(), queued).await
    })?;
    let states = audit.order_states();
    let books = surroundings.shop.books().audit(&states);
    let contents = surroundings.mail_server.mails();
    let contents: Vec<&str> = contents.iter().filter_map(|mail| mail["content"].as_str()).collect();
    show_mail(&contents)?;
    let mails: Vec<Mail> = contents.iter().map(|content| Mail::read(content)).collect();
    let notified: HashSet<String> = states.processed.union(&states.cancelled).cloned().collect();
    let mails = MailAudit::of(&mails, &prefix, &notified, &states.cancelled, promotions);
    Ok((audit, books, mails))
}

fn stop(daemon: &mut Daemon) -> Outcome<()> {
    match daemon.terminate(DRAIN)? {
        status if status.success() => Ok(()),
        status => Err(format!("orderd failed while stopping: {status}").into()),
    }
}

/// The running producers; killed when dropped.
struct Producers(Vec<Child>);

impl Producers {
    fn start(&mut self, environment: &Environment, prefix: &str, program: &str, arguments: &[String]) -> Outcome<()> {
        let path = sibling_program(program)?;
        let child = Command::new(&path)
            .args(arguments)
            .args(["--prefix", prefix])
            .env("ORDERD_CONFIG", CONFIG)
            .envs(environment.settings().iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", path.display()))?;
        self.0.push(child);
        Ok(())
    }

    /// Whether all producers have exited successfully.
    fn are_done(&mut self) -> Outcome<bool> {
        let mut done = true;
        for child in &mut self.0 {
            match child.try_wait()? {
                None => done = false,
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("a producer failed ({status})").into()),
            }
        }
        Ok(done)
    }
}

impl Drop for Producers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that it has exited already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Publishes orders whose routing key has a typo, and matches no binding. They must not get lost either.
fn publish_unroutable(environment: &Environment, prefix: &str) -> Outcome<()> {
    let order = |number| {
        format!(
            "{{\"id\": \"{prefix}typo-{number}\", \"product\": \"Pen\", \"quantity\": 1, \"price\": \"1.20\", \"currency\": \"EUR\", \
             \"email\": \"typo-{number}@example.com\"}}\n"
        )
    };
    publish_lines(environment, "order.nromal.created", &(1..=UNROUTABLE).map(order).collect::<String>())
}

/// Publishes these lines with this routing key.
fn publish_lines(environment: &Environment, routing_key: &str, lines: &str) -> Outcome<()> {
    let mut child = command(environment, &["publish", "--routing-key", routing_key, "-"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes())?;
    }
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("orderd publish failed ({status})").into()),
    }
}

/// Publishes the cancellations of some processed orders, and returns their ids.
fn cancel(environment: &Environment, prefix: &str) -> Outcome<HashSet<String>> {
    let orders = Progress::some_processed(environment.ledger_directory(), prefix, CANCELLATIONS)?;
    let lines: String = orders.iter().map(|id| format!("{{\"id\": {id:?}, \"event\": \"cancelled\"}}\n")).collect();
    // The consumer of these has no injected faults.
    publish_lines(environment, "order.priority.cancelled", &lines)?;
    println!("customers cancel {} processed orders", orders.len());
    Ok(orders)
}

/// Shows one e-mail about an order with several lines, as a mail program does.
fn show_mail(contents: &[&str]) -> Outcome<()> {
    const SHOW: &str = "import sys, email, email.policy
mail = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
for name in ('From', 'To', 'Subject', 'Message-ID', 'List-Unsubscribe'):
    print(f'  | {name}: {mail[name]}')
for line in ('\\n' + mail.get_body(('plain',)).get_content()).splitlines():
    print(f'  | {line}')";
    let Some(content) = contents.iter().find(|content| content.matches(" x ").count() > 2).or(contents.first()) else {
        return Ok(());
    };
    println!("\none of the e-mails:\n");
    let mut python = Command::new("/usr/bin/python3").args(["-c", SHOW]).stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = python.stdin.take() {
        input.write_all(content.as_bytes())?;
    }
    match python.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("cannot show an e-mail: python3 failed ({status})").into()),
    }
}

/// An orderd command with the settings of the running daemon.
fn command(environment: &Environment, arguments: &[&str]) -> Outcome<Command> {
    let mut command = Command::new(sibling_program("orderd")?);
    command.args(arguments).args(["--config", CONFIG]);
    command.envs(environment.settings().iter().map(|(key, value)| (key, value)));
    Ok(command)
}

/// Runs an orderd command, and shows the command line and its output.
fn show_command(environment: &Environment, arguments: &[&str]) -> Outcome<()> {
    let line = format!("orderd {}", arguments.join(" "));
    println!("\n$ {line}");
    let status = command(environment, arguments)?.status()?;
    if status.success() { Ok(()) } else { Err(format!("{line} failed ({status})").into()) }
}

/// A server that goes away once.
#[derive(Clone, Copy)]
enum Presence {
    Present,
    AwaySince(Instant),
    Back,
}

impl Presence {
    /// Lets it go away when it is time, and come back. `change` gets whether it is there from now on.
    fn follow(&mut self, name: &str, is_time: bool, change: impl FnOnce(bool) -> Outcome<()>) -> Outcome<()> {
        match *self {
            Presence::Present if is_time => {
                change(false)?;
                println!("the {name} is away for {ABSENCE:?}");
                *self = Presence::AwaySince(Instant::now());
            }
            Presence::AwaySince(since) if since.elapsed() >= ABSENCE => {
                change(true)?;
                println!("the {name} is back");
                *self = Presence::Back;
            }
            Presence::Present | Presence::AwaySince(_) | Presence::Back => {}
        }
        Ok(())
    }
}

/// Shows progress until everything is settled.
fn watch(
    environment: &Environment,
    published: &mut Published,
    daemon: &mut Daemon,
    producers: &mut Producers,
    Surroundings { shop, mail_server }: &mut Surroundings,
) -> Outcome<()> {
    let begin = Instant::now();
    let (mut reservations, mut mail) = (Presence::Present, Presence::Present);
    let bar = ProgressBar::new(published.orders);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} orders  {msg}")?);
    let mut last_line = begin;
    loop {
        interrupt::sleep(POLL)?;
        let producing = !producers.are_done()?;
        let progress = Progress::read(environment.ledger_directory(), &published.prefix);
        let Progress { processed, cancelled: _, dead_lettered, replayed: _, notifications, analytics, dead_events: _ } =
            progress;
        let (settled, orders) = (progress.settled_orders(), published.orders);
        let message = format!(
            "{processed} processed, {dead_lettered} dead-lettered, {notifications} notifications, {analytics} events"
        );
        reservations.follow("reservation service", settled >= orders / 4, |is_there| {
            if is_there {
                shop.start_reservations()?;
            } else {
                shop.stop_reservations();
            }
            Ok(())
        })?;
        mail.follow("mail server", settled >= orders / 2, |is_there| {
            mail_server.set_mode(if is_there { "up" } else { "down" });
            Ok(())
        })?;
        if published.cancelled.is_empty() && settled >= orders * 3 / 4 {
            published.cancelled = cancel(environment, &published.prefix)?;
        }
        bar.set_position(settled);
        if !io::stderr().is_terminal() && last_line.elapsed() >= LINE_INTERVAL {
            println!("{:>4} s  {message}", begin.elapsed().as_secs());
            last_line = Instant::now();
        }
        bar.set_message(message);
        if !producing && progress.is_settled(published) {
            bar.finish();
            println!("settled after {:.1} s", begin.elapsed().as_secs_f64());
            return Ok(());
        }
        daemon.check_alive()?;
        if begin.elapsed() > DEADLINE {
            let hint = "does another orderd consume from this broker?";
            return Err(format!("not settled within {DEADLINE:?}: {progress:?} of {published:?}; {hint}").into());
        }
    }
}
