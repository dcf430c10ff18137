//! The command line: parses arguments, runs commands, and maps their results to exit codes.

mod admin_client;
mod argument;
pub mod check;
pub mod control;
mod csv_cell;
pub mod dead_letters;
pub mod erase;
mod exit;
pub mod journal;
pub mod ledger;
mod ledger_source;
mod load_error;
mod local_actor;
pub mod notify;
mod outcome_text;
mod output;
mod pages;
pub mod probe;
pub mod publish;
pub mod report;
pub mod run;
pub mod schema;
pub mod status;
mod table;
mod text;
pub mod trace;

use std::io::{self, Stdout, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use jiff::Timestamp;
use output::Output;
use terminal_size::{Width, terminal_size_of};

pub use exit::Exit;

use crate::config::{Config, Loaded, MessageKind, Sources, load_ledger_directory};
use crate::domain::DEFAULT_NOTIFY;
use crate::escape::{escaped, is_escaped};
use crate::ledger::LedgerLocation;
use crate::notify::{NotifySettings, RecipientCheck};
use crate::{files, handlers, steps};

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
    /// Configuration file [default: $ORDERD_CONFIG, then /etc/orderd/orderd.toml]
    // Not clap's `env`, which refuses an empty variable.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one setting, such as consumers.order.workers=8; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the daemon; SIGTERM or SIGINT drains it, a second one aborts, a third exits at once, SIGHUP reloads
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
    /// List, replay, edit, hold and discard dead letters: what failed for good, and why
    DeadLetters(Box<dead_letters::DeadLettersArgs>),
    /// Back up the ledger
    Ledger(ledger::LedgerArgs),
    /// Show who did what with orderd, and verify that nothing was changed or removed
    Journal(journal::JournalArgs),
    /// Erase the personal data of one customer, order, message or dead letter from the ledger and the event files; the daemon may run
    Erase(erase::EraseArgs),
    /// Show the notification that an event about an order would cause, and send it to an address for a trial
    Notify(notify::NotifyArgs),
    /// Print the JSON Schema of orders, of the configuration file or of the events that orderd publishes
    Schema(schema::SchemaArgs),
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the man page, as roff
    Man,
    /// Ends the commands of steps once the orderd that started this process is gone
    #[command(hide = true)]
    GuardCommands,
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    files::limit_umask();
    files::close_inherited_in_children();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Prints help and version to stdout, mistakes to stderr.
            let error = with_config_hint(in_one_line(error));
            let printed = error.print();
            return if error.use_stderr() { Exit::Usage } else { finished(printed.map(|()| Exit::Done)) }.into();
        }
    };
    if let Some(problem) = arguments.settings.iter().find_map(|setting| setting_problem(setting)) {
        let _ = Arguments::command().error(ErrorKind::ValueValidation, problem).print();
        return Exit::Usage.into();
    }
    let sources = Sources::from_process(arguments.config, arguments.settings, handlers::REGISTRY);
    let terminal = terminal_size_of(io::stdout());
    text::set_terminal_width(terminal.map(|(Width(columns), _)| columns));
    let mut out = Output::stdout();
    let exit = run_command(arguments.command, &sources, &mut out).and_then(|exit| out.flush().map(|()| exit));
    finished(exit).into()
}

/// The error with the arguments in it escaped: a script may pass on what others sent.
fn in_one_line(mut error: clap::Error) -> clap::Error {
    let arguments = error.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) if text.contains(is_escaped) => Some((kind, ContextValue::String(escaped(text)))),
        _ => None,
    });
    for (kind, value) in arguments.collect::<Vec<_>>() {
        error.insert(kind, value);
    }
    error
}

/// The error with a hint if an argument is a configuration file that is given without its option.
fn with_config_hint(mut error: clap::Error) -> clap::Error {
    let is_file = |text: &str| text.ends_with(".toml");
    let given = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) if is_file(text) => text.clone(),
        _ => return error,
    };
    let hint = StyledStr::from(format!("a configuration file is named with its option: --config {given}"));
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint]));
    error
}

/// What is wrong with a `--set`. The text is not shown: it may be a password without its key.
fn setting_problem(setting: &str) -> Option<&'static str> {
    let has_key = setting.split_once('=').is_some_and(|(key, _)| !key.trim().is_empty());
    (!has_key).then_some("--set needs KEY=VALUE, such as consumers.order.workers=8")
}

/// The exit code of a command. Output that cannot be written is an error; a reader that closes the pipe early is not.
fn finished(exit: io::Result<Exit>) -> Exit {
    match exit {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            print_error(&format!("cannot write the output: {error}"));
            Exit::Internal
        }
    }
}

/// The notification channel of an order that names none.
fn default_channel(config: &Config) -> &str {
    config.consumers.values().find_map(|consumer| consumer.default_channel.as_deref()).unwrap_or(DEFAULT_NOTIFY)
}

/// The notification channels that customers' notifications may choose; none if they are written to the file.
fn customer_channels(config: &Config) -> NotifySettings {
    let mut consumers = config.consumers.values();
    let notifications = consumers.find(|consumer| consumer.messages == MessageKind::Notification);
    let channels = notifications.map_or(&config.notify, |consumer| &consumer.notify);
    channels.constructor().cloned().unwrap_or_default()
}

/// What the notification channels need of an order.
fn recipient_check(config: &Config) -> RecipientCheck {
    RecipientCheck::new(&customer_channels(config), default_channel(config))
}

/// Writes a line about the command itself to standard error.
fn print_error(line: &str) {
    let _ = writeln!(Output::stderr(), "orderd: {}", escaped(line));
}

/// Runs a command.
///
/// # Errors
/// When `out` cannot be written.
fn run_command(command: CliCommand, sources: &Sources, out: &mut Output<Stdout>) -> io::Result<Exit> {
    let err = &mut Output::stderr();
    match command {
        CliCommand::Run => match Config::load_usable(sources) {
            Ok((loaded, held_up)) => {
                let threads = loaded.config.runtime.threads;
                block_on(threads, async { Ok(run::run(loaded, held_up, sources.clone()).await) })
            }
            Err(error) => {
                load_error::write(&error, err)?;
                Ok(Exit::Config)
            }
        },
        CliCommand::Publish(args) => {
            with_usable_config(sources, |loaded| block_on(1, publish::run(args, loaded.config, out)))
        }
        CliCommand::Check(args) => block_on(1, check::run(args, sources, out, err)),
        CliCommand::Status(args) => block_on(1, status::run(args, sources, out, err)),
        CliCommand::Reload(args) => block_on(1, control::reload(args, sources, out, err)),
        CliCommand::Pause(args) => block_on(1, control::set_paused(args, true, sources, out, err)),
        CliCommand::Resume(args) => block_on(1, control::set_paused(args, false, sources, out, err)),
        CliCommand::Probe(args) => block_on(1, probe::run(args, sources, out, err)),
        CliCommand::Report(args) => {
            with_ledger(sources, |ledger| block_on(1, report::run(&args, ledger, Timestamp::now(), out, err)))
        }
        CliCommand::Trace(args) => block_on(1, trace::run(&args, sources, Timestamp::now(), out, err)),
        CliCommand::DeadLetters(args) if !args.only_reads() => block_on(1, dead_letters::act(*args, sources, out, err)),
        CliCommand::DeadLetters(args) => block_on(1, dead_letters::read(*args, sources, Timestamp::now(), out, err)),
        CliCommand::Ledger(args) => {
            with_usable_config(sources, |loaded| block_on(1, ledger::run(args, &loaded.config, out, err)))
        }
        CliCommand::Journal(args) => block_on(1, journal::run(args, sources, Timestamp::now(), out, err)),
        CliCommand::Erase(args) => {
            with_usable_config(sources, |loaded| block_on(1, erase::run(&args, &loaded.config, out, err)))
        }
        CliCommand::Notify(args) => {
            with_config(sources, |loaded| block_on(1, notify::run(&args, &loaded.config, out, err)))
        }
        CliCommand::Schema(args) => schema::run(args, out),
        CliCommand::Completions { shell } => print(&pages::completions(shell, Arguments::command()), out),
        CliCommand::Man => print(&pages::man(Arguments::command())?, out),
        CliCommand::GuardCommands => {
            steps::guard_commands(io::stdin().lock());
            Ok(Exit::Done)
        }
    }
}

/// Prints a generated page.
fn print(page: &[u8], out: &mut dyn Write) -> io::Result<Exit> {
    out.write_all(page)?;
    Ok(Exit::Done)
}

/// How long a runtime waits for its threads once the command has ended. One that still runs then hangs.
const RUNTIME_STOP_LIMIT: Duration = Duration::from_secs(1);

/// Runs a command on a runtime with this many worker threads. The calling thread, which waits for the command to end, is
/// not one of them.
fn block_on(threads: usize, command: impl Future<Output = io::Result<Exit>>) -> io::Result<Exit> {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(command);
            runtime.shutdown_timeout(RUNTIME_STOP_LIMIT);
            exit
        }
        Err(error) => {
            print_error(&format!("cannot start threads: {error}"));
            Ok(Exit::Internal)
        }
    }
}

/// Finds the ledger for a command that only reads it. Errors elsewhere in the configuration must not keep an operator from
/// reading what was recorded.
fn with_ledger(sources: &Sources, command: impl FnOnce(&LedgerLocation) -> io::Result<Exit>) -> io::Result<Exit> {
    match find_ledger(sources, &mut Output::stderr())? {
        Ok((location, _)) => command(&location),
        Err(exit) => Ok(exit),
    }
}

/// The ledger of this machine, and the configuration if it is valid. Otherwise `err` says so; the exit code if nothing says where the
/// ledger is.
fn find_ledger(sources: &Sources, err: &mut dyn Write) -> io::Result<Result<(LedgerLocation, Option<Config>), Exit>> {
    let error = match Config::load_usable(sources) {
        Ok((Loaded { config, .. }, _)) => return Ok(Ok((config.ledger.location(), Some(config)))),
        Err(error) => error,
    };
    let Some(directory) = load_ledger_directory(sources) else {
        load_error::write(&error, err)?;
        return Ok(Err(Exit::Config));
    };
    let shown = escaped(&directory.display().to_string());
    writeln!(
        err,
        "orderd: the configuration has errors, see `orderd check`; reading the ledger in {shown}, as it says"
    )?;
    Ok(Ok((LedgerLocation::Directory(directory), None)))
}

/// As [`with_config`], for commands that need no part of the configuration that is held up, such as the templates of notifications.
fn with_usable_config(sources: &Sources, command: impl FnOnce(Loaded) -> io::Result<Exit>) -> io::Result<Exit> {
    match Config::load_usable(sources) {
        Ok((loaded, held_up)) => {
            if !held_up.is_empty() {
                let count = text::counted(held_up.len() as i64, "fault");
                print_error(&format!("warning: the templates of notifications have {count}, see `orderd check`"));
            }
            command(loaded)
        }
        Err(error) => {
            load_error::write(&error, &mut Output::stderr())?;
            Ok(Exit::Config)
        }
    }
}

/// Loads the configuration for a command, or prints every problem.
fn with_config(sources: &Sources, command: impl FnOnce(Loaded) -> io::Result<Exit>) -> io::Result<Exit> {
    match Config::load(sources) {
        Ok(loaded) => command(loaded),
        Err(error) => {
            load_error::write(&error, &mut Output::stderr())?;
            Ok(Exit::Config)
        }
    }
}
