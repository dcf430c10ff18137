//! `orderd run`: the process around the daemon: logging, signals, exit code. The daemon itself is `app`.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::Exit;
use crate::chain::chain;
use crate::config::{Loaded, LogFormat, LogLevel, Problem, Sources};
use crate::config_watcher::ConfigWatcher;
use crate::control::{Control, Permit};
use crate::ledger::LOCAL_ACTOR;
use crate::shutdown::Shutdown;
use crate::systemd::ServiceNotifier;
use crate::{amqp, app, telemetry};

/// Time allowed after the drain, for the last confirms, the ledger's last commit and the log files; `app` limits each of them
/// to less in sum. The service manager is asked for the drain timeout plus this.
const TIME_AFTER_DRAIN: Duration = Duration::from_secs(30);

/// How long the thread that writes the log has for the last line before the process ends at once.
const LAST_LOG_LINE: Duration = Duration::from_millis(50);

/// Runs the daemon until a signal or an error stops it. `loaded` was read from `sources`; a reload reads them again. `held_up` are its
/// problems that hold up only a part of the daemon.
pub async fn run(loaded: Loaded, held_up: Vec<Problem>, sources: Sources) -> Exit {
    let Loaded { config, warnings, path, .. } = loaded;
    let log = &config.log;
    let settings =
        telemetry::Settings { level: log.level.into(), json: log.format == LogFormat::Json, files: log.log_files() };
    let (_guards, level) = match telemetry::start(&settings, amqp::is_client_panic) {
        Ok(started) => started,
        Err(error) => {
            super::print_error(&chain(&error));
            return Exit::Config;
        }
    };
    for warning in warnings {
        warn!(%warning, "configuration");
    }
    for problem in held_up {
        error!(
            %problem,
            "a template of notifications has a fault: the notifications of its channel wait until it is corrected and a reload accepts it"
        );
    }
    info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), pid = std::process::id(), "starting");
    let shutdown = Shutdown::new();
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot install signal handlers");
            return Exit::Internal;
        }
    };
    let service = match ServiceNotifier::from_env() {
        Ok(service) => service,
        Err(error) => {
            error!(%error, "cannot start the notifier thread");
            return Exit::Internal;
        }
    };
    let (control, commands) = Control::new();
    let (drain_timeout, drain) = watch::channel(config.shutdown.drain_timeout);
    let handling_signals = signals.handle(shutdown.clone(), drain, control.clone(), service.clone());
    let signal_task = AbortOnDropHandle::new(tokio::spawn(handling_signals));
    let (watched, directories) = watch::channel(config.notify.directories().to_vec());
    let watcher_task = if config.reload.watch {
        let watcher = ConfigWatcher::new(path.clone(), directories).await;
        Some(AbortOnDropHandle::new(tokio::spawn(watcher.run(control.clone(), shutdown.clone()))))
    } else {
        None
    };
    let service_of_app = service.clone();
    let process =
        app::Process { path, sources, control, commands, level, drain_timeout, watched, service: service_of_app };
    let outcome = app::run(config, process, shutdown).await;
    drop((signal_task, watcher_task));
    let failure = outcome.as_ref().err().map(|error| format!("{}: {}", error.what(), chain(error)));
    service.end(failure);
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            error!(error = %chain(&error), "{}", error.what());
            if error.is_configuration() { Exit::Config } else { Exit::Internal }
        }
    }
}

/// The signals that the daemon handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// A write beyond the limit on the size of files. Handled, so that the write fails and does not end the process.
    _file_too_large: Signal,
    /// Notified at each HUP. However many arrive during a reload, one more reload follows.
    hangup_received: Arc<Notify>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            _file_too_large: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
            hangup_received: Arc::default(),
        })
    }

    /// The first TERM or INT starts the drain, unless the daemon has started it itself. A further one, or the drain
    /// timeout, aborts. The next one ends the process at once, whatever hangs. HUP reloads.
    async fn handle(
        mut self,
        shutdown: Shutdown,
        drain_timeout: watch::Receiver<Duration>,
        control: Control,
        service: ServiceNotifier,
    ) {
        let _reloading =
            AbortOnDropHandle::new(tokio::spawn(reload_on_hangup(Arc::clone(&self.hangup_received), control)));
        // Cancel-safe: both only wait.
        let first = tokio::select! {
            first = self.next() => first,
            () = shutdown.begun() => "none",
        };
        let drain_timeout = *drain_timeout.borrow();
        info!(signal = first, ?drain_timeout, "draining; a second signal aborts");
        shutdown.begin();
        service.stopping(drain_timeout + TIME_AFTER_DRAIN);
        // Cancel-safe: both only wait.
        tokio::select! {
            second = self.next() => warn!(signal = second, "aborting"),
            () = tokio::time::sleep(drain_timeout) => warn!(?drain_timeout, "the drain took too long; aborting"),
        }
        shutdown.abort();
        let last = self.next().await;
        warn!(signal = last, "exiting at once; the broker will deliver again what was not acked");
        tokio::time::sleep(LAST_LOG_LINE).await;
        std::process::exit(i32::from(u8::from(Exit::Internal)));
    }

    async fn next(&mut self) -> &'static str {
        loop {
            // Cancel-safe: a signal not received now is received by the next call.
            tokio::select! {
                _ = self.terminate.recv() => return "TERM",
                _ = self.interrupt.recv() => return "INT",
                _ = self.hangup.recv() => self.hangup_received.notify_one(),
            }
        }
    }
}

/// Reloads at each HUP. The daemon logs the result.
async fn reload_on_hangup(hangup_received: Arc<Notify>, control: Control) {
    loop {
        hangup_received.notified().await;
        if let Err(error) = control.reload("SIGHUP", LOCAL_ACTOR.to_owned(), Permit::unlimited()).await {
            warn!(%error, "cannot reload on SIGHUP");
        }
    }
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => tracing::Level::ERROR,
            LogLevel::Warn => tracing::Level::WARN,
            LogLevel::Info => tracing::Level::INFO,
            LogLevel::Debug => tracing::Level::DEBUG,
            LogLevel::Trace => tracing::Level::TRACE,
        }
    }
}
