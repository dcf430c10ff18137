//! Logging: to stderr and, where asked for, to rolling files. Panics are log lines too.
//!
//! Lines are written by threads of their own, so that a slow terminal or disk never holds up a worker; what
//! they hold is written out when the guards are dropped. It never sees a secret: those do not print.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// The start of the names of orderd's own log files: `orderd.2026-11-22.log`.
const LOG_NAME: &str = "orderd";

/// Log lines that may wait for a slow writer.
const BUFFERED_LINES: usize = 32_768;

/// How to log.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The least severe level shown.
    pub level: Level,
    /// One JSON object a line, instead of text.
    pub json: bool,
    /// Rolling files beside stderr.
    pub files: Option<Files>,
}

/// Rolling files of one kind.
#[derive(Debug, Clone)]
pub struct Files {
    /// Created if missing.
    pub directory: PathBuf,
    /// When a new file begins.
    pub rotation: Rotation,
    /// Rolled files kept.
    pub keep: usize,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A log file cannot be made.
    #[error("cannot write log files in {directory:?}: create the directory and let orderd's user write there")]
    Files {
        /// The configured directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Logging is set up already.
    #[error("logging is set up already")]
    Twice,
}

/// Keeps the writers alive; dropped, they write out what they hold.
#[must_use = "dropping the guards ends logging"]
#[derive(Debug)]
pub struct Guards(#[allow(dead_code)] Vec<WorkerGuard>);

/// Changes the least severe level shown, while the process runs.
#[derive(Debug, Clone)]
pub struct LevelSwitch(reload::Handle<Targets, Registry>);

impl LevelSwitch {
    /// Shows what is as severe as `level`, and more.
    pub fn set(&self, level: Level) {
        // An error means that the subscriber is gone, and nothing is shown any more.
        let _ = self.0.reload(filter(level));
    }
}

/// Client libraries are kept at info: what they say below that may hold message bodies or credentials.
fn filter(level: Level) -> Targets {
    Targets::new().with_target("orderd", level).with_default(level.min(Level::INFO))
}

/// Starts logging for the process, and turns panics into log lines.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(
    settings: &Settings,
    is_library_panic: fn(&std::panic::PanicHookInfo<'_>) -> bool,
) -> Result<(Guards, LevelSwitch), TelemetryError> {
    let (stderr, guard) = writer(io::stderr());
    let mut guards = vec![guard];
    let mut layers = vec![layer(settings.json, stderr, io::stderr().is_terminal())];
    if let Some(files) = &settings.files {
        let (file, guard) = writer(rolling(files, LOG_NAME, "log")?);
        guards.push(guard);
        layers.push(layer(settings.json, file, false));
    }
    let (filter, switch) = reload::Layer::new(filter(settings.level));
    tracing_subscriber::registry().with(layers.with_filter(filter)).try_init().map_err(|_| TelemetryError::Twice)?;
    log_panics(is_library_panic);
    Ok((Guards(guards), LevelSwitch(switch)))
}

/// Rolling files named `<name>.<date>.<suffix>`. Writing blocks and reports what the system says.
///
/// # Errors
/// [`TelemetryError::Files`].
pub fn rolling(files: &Files, name: &str, suffix: &str) -> Result<RollingFileAppender, TelemetryError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| TelemetryError::Files {
        directory: files.directory.clone(),
        source,
    };
    std::fs::create_dir_all(&files.directory).map_err(|error| failed(error.into()))?;
    RollingFileAppender::builder()
        .rotation(files.rotation.clone())
        .filename_prefix(name)
        .filename_suffix(suffix)
        .max_log_files(files.keep)
        .build(&files.directory)
        .map_err(|error| failed(error.into()))
}

/// Lines that find the buffer full, because a terminal, a pipe or a disk takes none, are dropped: the log is not
/// worth an order.
fn writer(to: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES).thread_name("log-writer").finish(to)
}

fn layer<W>(json: bool, writer: W, ansi: bool) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(ansi);
    if json { layer.json().flatten_event(true).boxed() } else { layer.boxed() }
}

/// Panics become log lines. The AMQP client panics in its own tasks when a broker sends what it cannot read;
/// that ends a connection, which is noticed and healed, so it is only a warning.
fn log_panics(is_library_panic: fn(&std::panic::PanicHookInfo<'_>) -> bool) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or("no text");
        let at = panic.location().map(ToString::to_string);
        if is_library_panic(panic) {
            tracing::warn!(panic = text, at, "the AMQP client lost a connection by a panic of its own");
        } else {
            tracing::error!(panic = text, at, "panic");
        }
    }));
}
