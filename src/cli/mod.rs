//! The command line: its arguments, and which code each command exits with.

mod ask;
pub mod check;
mod pages;
pub mod probe;
pub mod publish;
pub mod report;
pub mod run;
pub mod status;
mod table;
pub mod tell;
pub mod trace;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use jiff::Timestamp;

use crate::config::{Config, LoadError, Loaded, Sources};
use crate::handlers;

/// How a command ended; the numbers are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1: done, but some input was refused, what was asked for is unknown, or not all of a reload is in force.
    Refused,
    /// 64: the arguments are wrong.
    Usage,
    /// 69: broker or daemon cannot be reached.
    Unavailable,
    /// 70: a bug, or the system failed.
    Internal,
    /// 78: the configuration, or what it says about the broker, is wrong.
    Config,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Internal => 70,
            Exit::Config => 78,
        })
    }
}

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Processes an online shop's orders from RabbitMQ, and loses none of them.
#[derive(Debug, Parser)]
#[command(name = "orderd", version, about, arg_required_else_help = true, subcommand_value_name = "COMMAND", after_help = EXIT_CODES)]
struct Arguments {
    /// Configuration file.
    #[arg(long, short, global = true, value_name = "FILE", env = "ORDERD_CONFIG")]
    config: Option<PathBuf>,
    /// Overrides one setting, such as consumers.order.workers=8. May be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 some input refused, an order unknown, or not all of a reload in force, 64 usage or no such \
consumer, 69 broker or daemon unreachable, or a reload rejected for what passes, 70 internal, 78 configuration, also any other rejected reload.\nSettings come from --set, then ORDERD_<SECTION>__<KEY> in the environment, then the file \
(default /etc/orderd/orderd.toml), then defaults.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon until SIGTERM or SIGINT, which drain; a second signal aborts. SIGHUP reloads.
    Run,
    /// Publishes orders from a file or standard input, one JSON object a line.
    Publish(publish::PublishArgs),
    /// Says what would run: topology, pools, retry schedules; or every fault of the configuration.
    Check(check::CheckArgs),
    /// Shows what the running daemon is doing: connections, queues, consumers, failures, what does not add up.
    Status(status::StatusArgs),
    /// Has the running daemon read its configuration again, and says what is in force now; exit 0 only if all of it is.
    Reload(tell::ReloadArgs),
    /// Stops the intake of one consumer of the running daemon, until it is resumed; a restart does not end it.
    Pause(tell::IntakeArgs),
    /// Restarts the intake of a paused consumer.
    Resume(tell::IntakeArgs),
    /// Asks whether the daemon lives, or is ready: for health checks and scripts; exit 69 if not.
    Probe(probe::ProbeArgs),
    /// Says what was ordered and earned over time, from the ledger; the daemon may run meanwhile or not.
    Report(report::ReportArgs),
    /// Tells one order's life from the ledger: attempts, failures, delays, events; and where it is now.
    Trace(trace::TraceArgs),
    /// Prints what a shell needs to complete commands and options; `make install` puts it in place.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Prints the man page, as roff; `make install` puts it in place.
    Man,
}

/// Parses the process's arguments and carries the command out.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Prints help and version to stdout, mistakes to stderr.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let sources = Sources::of_process(arguments.config, arguments.settings);
    carry_out(arguments.command, &sources).unwrap_or_else(|exit| exit).into()
}

fn carry_out(command: Command, sources: &Sources) -> Result<Exit, Exit> {
    match command {
        Command::Run => {
            let loaded = load(sources)?;
            Ok(runtime(loaded.config.runtime.threads)?.block_on(run::run(loaded, sources.clone())))
        }
        Command::Publish(args) => {
            let loaded = load(sources)?;
            Ok(runtime(1)?.block_on(publish::run(args, loaded.config)))
        }
        Command::Check(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            runtime(1)?.block_on(check::run(args, sources, &mut out, &mut err)).map_err(|error| unwritable(&error))
        }
        Command::Status(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            let shown = status::run(args, sources, &mut out, &mut err);
            runtime(1)?.block_on(shown).map_err(|error| unwritable(&error))
        }
        Command::Reload(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            let told = tell::reload(args, sources, &mut out, &mut err);
            runtime(1)?.block_on(told).map_err(|error| unwritable(&error))
        }
        Command::Pause(args) => intake(args, true, sources),
        Command::Resume(args) => intake(args, false, sources),
        Command::Probe(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            runtime(1)?.block_on(probe::run(args, sources, &mut out, &mut err)).map_err(|error| unwritable(&error))
        }
        Command::Report(args) => {
            let (loaded, now) = (load(sources)?, Timestamp::now());
            let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
            report::run(&args, &loaded.config, now, &mut out, &mut err).map_err(|error| unwritable(&error))
        }
        Command::Trace(args) => {
            let (loaded, now) = (load(sources)?, Timestamp::now());
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            let traced = trace::run(&args, &loaded.config, now, &mut out, &mut err);
            runtime(1)?.block_on(traced).map_err(|error| unwritable(&error))
        }
        Command::Completions { shell } => print(&pages::completions(shell, Arguments::command())),
        Command::Man => print(&pages::man(Arguments::command()).map_err(|error| unwritable(&error))?),
    }
}

/// Prints what is made from the table of arguments.
fn print(page: &[u8]) -> Result<Exit, Exit> {
    let mut out = std::io::stdout().lock();
    out.write_all(page).and_then(|()| out.flush()).map_err(|error| unwritable(&error))?;
    Ok(Exit::Done)
}

fn intake(args: tell::IntakeArgs, pause: bool, sources: &Sources) -> Result<Exit, Exit> {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let told = tell::intake(args, pause, sources, &mut out, &mut err);
    runtime(1)?.block_on(told).map_err(|error| unwritable(&error))
}

/// A reader that has seen enough, such as `head`, is no fault; anything else that keeps output from being written is.
fn unwritable(error: &std::io::Error) -> Exit {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Exit::Done;
    }
    eprintln!("orderd: cannot write the output: {error}");
    Exit::Internal
}

/// Makes the threads that tasks run on. The thread that waits for the command's end comes on top.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(|error| {
        eprintln!("orderd: cannot start its threads: {error}");
        Exit::Internal
    })
}

/// Loads the configuration, or prints every problem.
fn load(sources: &Sources) -> Result<Loaded, Exit> {
    Config::load(sources, &handlers::NAMES).map_err(|error: LoadError| {
        eprintln!("orderd: {}", crate::chain::chain(&error));
        Exit::Config
    })
}
