//! The command line: parses arguments, runs commands, and maps their results to exit codes.

mod admin_client;
pub mod check;
pub mod control;
mod exit;
mod pages;
pub mod probe;
pub mod publish;
pub mod report;
pub mod run;
pub mod status;
mod table;
mod text;
pub mod trace;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use jiff::Timestamp;

pub use exit::Exit;

use crate::config::{Config, LoadError, Loaded, Sources};
use crate::handlers;

/// Output format of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Text for people
    #[default]
    Text,
    /// JSON for programs
    Json,
}

/// The arguments of the program. The help begins with the description in `Cargo.toml`.
#[derive(Debug, Parser)]
#[command(name = "orderd", version, about, arg_required_else_help = true, subcommand_value_name = "COMMAND", after_help = exit::after_help())]
struct Arguments {
    /// Configuration file [default: /etc/orderd/orderd.toml]
    #[arg(long, short, global = true, value_name = "FILE", env = "ORDERD_CONFIG")]
    config: Option<PathBuf>,
    /// Override one setting, such as consumers.order.workers=8; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the daemon; SIGTERM or SIGINT drains it, a second one aborts, SIGHUP reloads the configuration
    Run,
    /// Publish orders from a file or standard input, one JSON object per line
    Publish(publish::PublishArgs),
    /// Check the configuration and show what would run: topology, consumers, retry schedules
    Check(check::CheckArgs),
    /// Show what the running daemon is doing: connections, queues, consumers, failures, findings
    Status(status::StatusArgs),
    /// Reload the configuration of the running daemon and show what changed
    ///
    /// Exits with 0 only if all changes are active.
    Reload(control::ReloadArgs),
    /// Pause a consumer of the running daemon until it is resumed, even across restarts
    Pause(control::PauseArgs),
    /// Resume a paused consumer of the running daemon
    Resume(control::PauseArgs),
    /// Check whether the daemon is alive or ready, for health checks and scripts
    ///
    /// Exits with 69 if the check fails.
    Probe(probe::ProbeArgs),
    /// Show orders and revenue over time, from the ledger; the daemon need not run
    Report(report::ReportArgs),
    /// Show the history of one order, from the ledger: attempts, failures, delays, events, and where it is now
    Trace(trace::TraceArgs),
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the man page, as roff
    Man,
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Prints help and version to stdout, mistakes to stderr.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let sources = Sources::from_process(arguments.config, arguments.settings, handlers::REGISTRY);
    run_command(arguments.command, &sources).unwrap_or_else(|exit| exit).into()
}

fn run_command(command: CliCommand, sources: &Sources) -> Result<Exit, Exit> {
    match command {
        CliCommand::Run => {
            let loaded = load(sources)?;
            Ok(runtime(loaded.config.runtime.threads)?.block_on(run::run(loaded, sources.clone())))
        }
        CliCommand::Publish(args) => {
            let loaded = load(sources)?;
            Ok(runtime(1)?.block_on(publish::run(args, loaded.config)))
        }
        CliCommand::Check(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            runtime(1)?.block_on(check::run(args, sources, &mut out, &mut err)).map_err(|error| output_error(&error))
        }
        CliCommand::Status(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            let shown = status::run(args, sources, &mut out, &mut err);
            runtime(1)?.block_on(shown).map_err(|error| output_error(&error))
        }
        CliCommand::Reload(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            let reload = control::reload(args, sources, &mut out, &mut err);
            runtime(1)?.block_on(reload).map_err(|error| output_error(&error))
        }
        CliCommand::Pause(args) => set_paused(args, true, sources),
        CliCommand::Resume(args) => set_paused(args, false, sources),
        CliCommand::Probe(args) => {
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            runtime(1)?.block_on(probe::run(args, sources, &mut out, &mut err)).map_err(|error| output_error(&error))
        }
        CliCommand::Report(args) => {
            let (loaded, now) = (load(sources)?, Timestamp::now());
            let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
            let reported = report::run(&args, &loaded.config, now, &mut out, &mut err);
            runtime(1)?.block_on(reported).map_err(|error| output_error(&error))
        }
        CliCommand::Trace(args) => {
            let (loaded, now) = (load(sources)?, Timestamp::now());
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            let traced = trace::run(&args, &loaded.config, now, &mut out, &mut err);
            runtime(1)?.block_on(traced).map_err(|error| output_error(&error))
        }
        CliCommand::Completions { shell } => print(&pages::completions(shell, Arguments::command())),
        CliCommand::Man => print(&pages::man(Arguments::command()).map_err(|error| output_error(&error))?),
    }
}

/// Prints a generated page.
fn print(page: &[u8]) -> Result<Exit, Exit> {
    let mut out = std::io::stdout().lock();
    out.write_all(page).and_then(|()| out.flush()).map_err(|error| output_error(&error))?;
    Ok(Exit::Done)
}

fn set_paused(args: control::PauseArgs, paused: bool, sources: &Sources) -> Result<Exit, Exit> {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let command = control::set_paused(args, paused, sources, &mut out, &mut err);
    runtime(1)?.block_on(command).map_err(|error| output_error(&error))
}

/// Reports that the output cannot be written, and returns the exit code. A reader that closes the pipe early, such as `head`,
/// is not an error.
fn output_error(error: &std::io::Error) -> Exit {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Exit::Done;
    }
    eprintln!("orderd: cannot write the output: {error}");
    Exit::Internal
}

/// Starts a runtime with this many worker threads. The calling thread, which waits for the command to end, is not one of
/// them.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(|error| {
        eprintln!("orderd: cannot start threads: {error}");
        Exit::Internal
    })
}

/// Loads the configuration, or prints every problem.
fn load(sources: &Sources) -> Result<Loaded, Exit> {
    Config::load(sources).map_err(|error: LoadError| {
        eprintln!("orderd: {}", crate::chain::chain(&error));
        Exit::Config
    })
}
