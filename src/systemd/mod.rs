//! Notifies systemd (or any service manager that sets `$NOTIFY_SOCKET`) of readiness, status and liveness.
//!
//! ```text
//! heartbeats ─► watchdog::Watchdog ─► WATCHDOG=1, only while no task is stuck
//! readiness of the daemon ─────────► READY=1, STATUS=…, EXTEND_TIMEOUT_USEC=…
//! reload, stop ────────────────────► RELOADING=1, STOPPING=1
//! ```
//! A separate thread drives the watchdog and sends the notifications, since a stuck runtime could do neither. It also runs
//! without a service manager, but then it sends nothing. It never processes an order.

mod notifier;
mod notify_socket;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

pub use notify_socket::{NotifyError, NotifySocket};

use crate::chain::chain;
use crate::watchdog::{Health, HeartbeatReading};
use notifier::Notifier;

/// What the notifier thread reads from the daemon, twice a second, outside the runtime.
pub trait StatusSource: Send + Sync {
    /// The heartbeats of all running workers. Must not take a lock that a task may hold while it works.
    fn heartbeats(&self) -> Vec<HeartbeatReading>;
    /// The readiness, with a status line. May take such a lock.
    fn readiness(&self) -> Readiness;
}

/// Readiness as systemd knows it: once up, the daemon stays up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Not up; the line says what the daemon waits for.
    Waiting(String),
    /// Topology and pools are up, or have been; the line summarizes the state.
    Up(String),
}

/// A message to the notifier thread.
enum NotifierCommand {
    Attach(Arc<dyn StatusSource>),
    Reloading { monotonic_usec: u128 },
    Reloaded,
    Stopping { timeout: Duration },
    End { status: Option<String> },
}

/// Handle to the notifier thread; cheap to clone.
#[derive(Clone)]
pub struct ServiceNotifier {
    commands: mpsc::Sender<NotifierCommand>,
    health: Health,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl ServiceNotifier {
    /// Starts the notifier thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// The operating system cannot start the thread.
    pub fn start(socket: NotifySocket) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let health = Health::default();
        let notifier = Notifier::new(socket, health.clone());
        let thread = std::thread::Builder::new().name("notifier".to_owned()).spawn(move || notifier.run(&inbox))?;
        Ok(ServiceNotifier { commands, health, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Starts the notifier for the `$NOTIFY_SOCKET` of this process. Without one, or with one that cannot be used, it
    /// only logs.
    ///
    /// # Errors
    /// The operating system cannot start the thread.
    pub fn from_env() -> std::io::Result<Self> {
        let socket = NotifySocket::from_env().unwrap_or_else(|error| {
            warn!(error = %chain(&error), "cannot notify the service manager");
            NotifySocket::disabled()
        });
        Self::start(socket)
    }

    /// The tasks that are stuck now.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Reads the daemon's state from now on, and sends READY=1 as soon as it is up.
    pub fn attach(&self, source: Arc<dyn StatusSource>) {
        self.send(NotifierCommand::Attach(source));
    }

    /// A reload begins: RELOADING=1. READY=1 follows when the guard is dropped, whatever the outcome of the reload.
    #[must_use = "dropping the guard says that the reload is over"]
    pub fn reloading(&self) -> ReloadGuard {
        self.send(NotifierCommand::Reloading { monotonic_usec: notify_socket::monotonic_usec() });
        ReloadGuard(self.clone())
    }

    /// The daemon stops: STOPPING=1, then EXTEND_TIMEOUT_USEC repeatedly, but for no longer than `timeout`.
    pub fn stopping(&self, timeout: Duration) {
        self.send(NotifierCommand::Stopping { timeout });
    }

    /// Ends the thread; the last STATUS is `status`, if given. Waits until it is sent, at most one second.
    pub fn end(&self, status: Option<String>) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.send(NotifierCommand::End { status });
        if thread.join().is_err() {
            warn!("the notifier thread panicked");
        }
    }

    fn send(&self, command: NotifierCommand) {
        // Fails only after `end`, when nothing is left to notify.
        let _ = self.commands.send(command);
    }
}

/// A reload in progress.
pub struct ReloadGuard(ServiceNotifier);

impl Drop for ReloadGuard {
    fn drop(&mut self) {
        self.0.send(NotifierCommand::Reloaded);
    }
}
