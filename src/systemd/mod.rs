//! What the service manager is told (systemd, or whoever set `$NOTIFY_SOCKET`), and the watch over orderd's own tasks.
//!
//! ```text
//! heartbeats of workers and runtime ─► stall_detector (pure) ─┬─► WATCHDOG=1, only while nobody is stuck
//! readiness of the daemon ────────────────────────┼─► READY=1, STATUS=…, EXTEND_TIMEOUT_USEC=…
//! reload, stop ──────────────────────────────────┘
//! ```
//! A thread of its own looks and tells, for a runtime that is stuck could do neither. It never touches a message, and
//! works the same without a service manager, but for the telling.

mod manager;

mod notifier;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

pub use manager::{Manager, NotifyError};

use crate::chain::chain;
use crate::watchdog::{Health, HeartbeatReading, Heartbeats};
use notifier::Notifier;

/// How often the runtime shows that tasks get their turn.
const BEAT: Duration = Duration::from_millis(500);

/// The daemon, as seen by the watch over it. Asked twice a second from a thread outside the runtime.
pub trait StatusSource: Send + Sync {
    /// The heartbeats of all workers that run now. Must not wait for what a task may hold while it works.
    fn heartbeats(&self) -> Vec<HeartbeatReading>;
    /// How the daemon is doing.
    fn readiness(&self) -> Readiness;
}

/// How the daemon is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Not ready yet; says what it waits for.
    Waiting(String),
    /// Topology and pools are up, or have been; says in one line how it goes.
    Up(String),
}

/// What the service thread is to do.
enum Notice {
    Watch(Arc<dyn StatusSource>),
    Reloading { monotonic_usec: u128 },
    Reloaded,
    Stopping { budget: Duration },
    End { status: Option<String> },
}

/// The way to the service manager. Clones share it.
#[derive(Clone)]
pub struct Service {
    notices: mpsc::Sender<Notice>,
    health: Health,
    running: Arc<Mutex<Option<Running>>>,
}

/// What runs until the end.
struct Running {
    notifier: JoinHandle<()>,
    _beating: AbortOnDropHandle<()>,
}

impl Service {
    /// Starts the thread that watches and tells. Needs a tokio runtime.
    ///
    /// # Errors
    /// What the system said when it would not start the thread.
    pub fn start(manager: Manager) -> std::io::Result<Self> {
        let (notices, inbox) = mpsc::channel();
        let (health, runtime) = (Health::default(), Heartbeats::default());
        let own = runtime.register();
        let beating = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut beat = tokio::time::interval(BEAT);
            loop {
                beat.tick().await;
                own.beat();
            }
        }));
        let notifier = Notifier::new(manager, runtime, health.clone());
        let notifier = std::thread::Builder::new().name("service".to_owned()).spawn(move || notifier.run(&inbox))?;
        let running = Running { notifier, _beating: beating };
        Ok(Service { notices, health, running: Arc::new(Mutex::new(Some(running))) })
    }

    /// Who is stuck.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// From now on the daemon is looked at; READY=1 is told as soon as it is up.
    pub fn watch(&self, status_source: Arc<dyn StatusSource>) {
        self.tell(Notice::Watch(status_source));
    }

    /// A reload begins: RELOADING=1. READY=1 follows when the guard is dropped, whatever became of the reload.
    #[must_use = "dropping the guard says that the reload is over"]
    pub fn reloading(&self) -> Reloading {
        self.tell(Notice::Reloading { monotonic_usec: manager::monotonic_usec() });
        Reloading(self.clone())
    }

    /// The daemon stops: STOPPING=1, and more time is asked for again and again, but for no longer than `budget`.
    pub fn stopping(&self, budget: Duration) {
        self.tell(Notice::Stopping { budget });
    }

    /// Ends the watch; the last STATUS says why, if there is a reason. Waits until it is told: a second at the most.
    pub fn end(&self, status: Option<String>) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else { return };
        self.tell(Notice::End { status });
        if running.notifier.join().is_err() {
            warn!("the service thread has panicked");
        }
    }

    fn tell(&self, notice: Notice) {
        // The thread ends by `end` alone; after it nobody needs to know.
        let _ = self.notices.send(notice);
    }
}

/// A reload that is being carried out.
pub struct Reloading(Service);

impl Drop for Reloading {
    fn drop(&mut self) {
        self.0.tell(Notice::Reloaded);
    }
}

/// A service that tells nobody but the log, if the environment names no service manager; one that can be told, else.
///
/// # Errors
/// What the system said when it would not start the thread.
pub fn of_process() -> std::io::Result<Service> {
    let manager = Manager::of_process().unwrap_or_else(|error| {
        warn!(error = %chain(&error), "cannot tell the service manager anything");
        Manager::none()
    });
    Service::start(manager)
}
