//! Logging: to stderr and, if configured, to rolling files. Panics are logged too. What happens for every message is logged once
//! per cause, then with counts: [`RepeatedLog`], and [`MessageLog`] for lines about single messages.
//!
//! Separate threads write the lines, so that a slow terminal or disk never delays a worker. Dropping the guards writes out
//! what is buffered. It never sees a secret: the secret type does not print its value.
//!
//! What others sent is escaped in both formats, so that no text can forge a line or control a terminal.

mod fields;
mod log_file;
mod message_log;
mod repeated_log;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

pub use message_log::{MessageLine, MessageLog};
pub use repeated_log::{LineDue, RepeatedLog};

use crate::escape::JsonEscaping;
use crate::files::Rolling;
use fields::EscapedFields;
use log_file::LogFile;

/// The most log lines that are buffered for a slow writer.
const BUFFERED_LINES: usize = 32_768;
/// How long the start waits for the log file to be opened, if the disk hangs.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// How and where to log.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The least severe level that is logged.
    pub level: Level,
    /// One JSON object per line, instead of text.
    pub json: bool,
    /// Rolling files, in addition to stderr.
    pub files: Option<Rolling>,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A log file cannot be created.
    #[error("cannot write log files in {directory:?}: create the directory and let orderd's user write there")]
    Files {
        /// The configured directory.
        directory: PathBuf,
        /// What the system reported.
        #[source]
        source: io::Error,
    },
    /// Logging is set up already.
    #[error("logging is set up already")]
    Twice,
}

/// Keeps the writer threads alive. Dropping them writes out what is buffered.
#[must_use = "dropping the guards ends logging"]
#[derive(Debug)]
pub struct Guards(#[allow(dead_code)] Vec<WorkerGuard>);

/// Changes the log level while the process runs.
#[derive(Debug, Clone)]
pub struct LevelSwitch(reload::Handle<Targets, Registry>);

impl LevelSwitch {
    /// Logs what is at least as severe as `level`.
    pub fn set(&self, level: Level) {
        // An error means that the subscriber is gone: nothing is logged any more.
        let _ = self.0.reload(filter(level));
    }
}

/// Libraries log nothing below info: their debug lines may contain message bodies or credentials.
fn filter(level: Level) -> Targets {
    Targets::new().with_target("orderd", level).with_default(level.min(Level::INFO))
}

/// Starts logging for the whole process, panics included.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(
    settings: &Settings,
    is_library_panic: fn(&std::panic::PanicHookInfo<'_>) -> bool,
) -> Result<(Guards, LevelSwitch), TelemetryError> {
    let (stderr, guard) = writer(io::stderr(), settings.json);
    let mut guards = vec![guard];
    let mut layers = vec![layer(settings.json, stderr, io::stderr().is_terminal())];
    let mut hanging_directory = None;
    if let Some(files) = &settings.files {
        let failed = |source| TelemetryError::Files { directory: files.directory.clone(), source };
        let file = LogFile::open(files.clone(), OPEN_PATIENCE).map_err(failed)?;
        hanging_directory = (!file.is_open()).then_some(&files.directory);
        let (file, guard) = writer(file, settings.json);
        guards.push(guard);
        layers.push(layer(settings.json, file, false));
    }
    let (filter, switch) = reload::Layer::new(filter(settings.level));
    tracing_subscriber::registry().with(layers.with_filter(filter)).try_init().map_err(|_| TelemetryError::Twice)?;
    log_panics(is_library_panic);
    if let Some(directory) = hanging_directory {
        let directory = directory.display();
        tracing::warn!(%directory, "cannot open the log file yet: the disk hangs or is overloaded; logging to stderr only");
    }
    Ok((Guards(guards), LevelSwitch(switch)))
}

/// When the buffer is full, because a terminal, pipe or disk does not accept data, lines are dropped: processing orders
/// matters more than the log.
fn writer(to: impl io::Write + Send + 'static, json: bool) -> (NonBlocking, WorkerGuard) {
    let builder =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES).thread_name("log-writer");
    if json { builder.finish(JsonEscaping(to)) } else { builder.finish(to) }
}

fn layer<W>(json: bool, writer: W, ansi: bool) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(ansi);
    if json { layer.json().flatten_event(true).boxed() } else { layer.fmt_fields(EscapedFields).boxed() }
}

/// Logs panics. The AMQP client library panics in its own tasks when a broker sends what it cannot decode. That ends a
/// connection, which orderd notices and replaces, so it is only a warning.
fn log_panics(is_library_panic: fn(&std::panic::PanicHookInfo<'_>) -> bool) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or("no text");
        let at = panic.location().map(ToString::to_string);
        if is_library_panic(panic) {
            tracing::warn!(panic = text, at, "the AMQP client library panicked and lost a connection");
        } else {
            tracing::error!(panic = text, at, "panic");
        }
    }));
}
