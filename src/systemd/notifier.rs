//! The notifier thread: drives the watchdog, and sends notifications when the daemon's state changes.
//!
//! A notification that cannot be sent never stops orderd.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::{NotifierCommand, NotifySocket, Readiness, StatusSource};
use crate::chain::chain;
use crate::escape::escaped;
use crate::watchdog::{CHECK_INTERVAL, Health, Watchdog, checks_in};

/// Stall timeout without a systemd watchdog; about half of the unit's `WatchdogSec`.
const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Shortest stall timeout whatever `WatchdogSec` says: a busy machine may delay a task that long.
const MIN_STALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The time requested with each EXTEND_TIMEOUT_USEC while starting, reloading and stopping.
const EXTENSION: Duration = Duration::from_secs(30);
/// Ticks between two requests for more time, and between two changes of STATUS once the daemon is up.
const TICKS_BETWEEN_UPDATES: u32 = 10;

/// The daemon's state as last sent to the service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotifiedState {
    Starting,
    Running,
    Reloading,
    /// More time may be requested for this many more ticks.
    Stopping {
        ticks_left: u32,
    },
}

/// The state of the notifier thread.
pub(super) struct Notifier {
    socket: NotifySocket,
    watchdog: Watchdog,
    source: Option<Arc<dyn StatusSource>>,
    state: NotifiedState,
    ticks: u32,
    last_status: LastStatus,
    /// The last message was sent without an error.
    socket_works: bool,
}

/// The STATUS sent last, and the tick at which it was sent.
#[derive(Default)]
struct LastStatus {
    line: String,
    tick: u32,
}

impl Notifier {
    /// Needs a tokio runtime.
    pub(super) fn new(socket: NotifySocket, health: Health) -> Self {
        // Half of WatchdogSec, so that the other half is left to log the cause before systemd kills the process.
        let stall_timeout =
            socket.watchdog.map_or(DEFAULT_STALL_TIMEOUT, |interval| (interval / 2).max(MIN_STALL_TIMEOUT));
        Notifier {
            socket,
            watchdog: Watchdog::new(stall_timeout, health),
            source: None,
            state: NotifiedState::Starting,
            ticks: 0,
            last_status: LastStatus::default(),
            socket_works: true,
        }
    }

    /// Runs until [`NotifierCommand::End`].
    pub(super) fn run(mut self, inbox: &Receiver<NotifierCommand>) {
        let mut next_tick = Instant::now();
        loop {
            match inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(NotifierCommand::End { status }) => return self.end(status),
                Ok(command) => self.apply(command),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    next_tick = Instant::now() + CHECK_INTERVAL;
                }
            }
        }
    }

    fn apply(&mut self, command: NotifierCommand) {
        match command {
            NotifierCommand::Attach(source) => self.source = Some(source),
            // In any other state, the READY=1 at the end of the reload would be wrong.
            NotifierCommand::Reloading { monotonic_usec } if self.state == NotifiedState::Running => {
                self.state = NotifiedState::Reloading;
                let status = self.status_line("reloading");
                self.send(&format!("RELOADING=1\nMONOTONIC_USEC={monotonic_usec}\n{status}"));
            }
            NotifierCommand::Reloaded if self.state == NotifiedState::Reloading => {
                self.state = NotifiedState::Running;
                self.send_ready();
            }
            NotifierCommand::Reloading { .. } | NotifierCommand::Reloaded => {}
            NotifierCommand::Stopping { .. } if matches!(self.state, NotifiedState::Stopping { .. }) => {}
            NotifierCommand::Stopping { timeout } => {
                self.state = NotifiedState::Stopping { ticks_left: checks_in(timeout) };
                let status = self.current_status_line();
                self.send(&format!("STOPPING=1\n{}{status}", extension()));
            }
            NotifierCommand::End { .. } => unreachable!("`run` handles it"),
        }
    }

    fn end(mut self, status: Option<String>) {
        let status = self.status_line(status.as_deref().unwrap_or("stopped"));
        self.send(&format!("STOPPING=1\n{status}"));
    }

    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        let heartbeats = self.source.as_ref().map_or_else(Vec::new, |source| source.heartbeats());
        if self.watchdog.check(&heartbeats) {
            self.send_liveness();
        }
        // Last, since it reads counters, whose lock a stuck task may hold; the watchdog has logged that task by now.
        self.send_readiness();
    }

    /// Nothing is stuck: sends WATCHDOG=1, and requests more time where the state may need it.
    fn send_liveness(&mut self) {
        let mut message = String::new();
        if let Some(interval) = self.socket.watchdog
            && self.ticks.is_multiple_of(checks_in(interval / 4).max(1))
        {
            message.push_str("WATCHDOG=1\n");
        }
        let extend = self.ticks.is_multiple_of(TICKS_BETWEEN_UPDATES);
        match &mut self.state {
            NotifiedState::Starting | NotifiedState::Reloading if extend => message.push_str(&extension()),
            NotifiedState::Stopping { ticks_left } => {
                *ticks_left = ticks_left.saturating_sub(1);
                if extend && *ticks_left > 0 {
                    message.push_str(&extension());
                }
            }
            NotifiedState::Starting | NotifiedState::Reloading | NotifiedState::Running => {}
        }
        if !message.is_empty() {
            self.send(&message);
        }
    }

    /// Sends READY=1 when the daemon is up for the first time, and STATUS when it has changed.
    fn send_readiness(&mut self) {
        let Some(source) = self.source.clone() else { return };
        match (source.readiness(), self.state) {
            (Readiness::Up(_), NotifiedState::Starting) => {
                self.state = NotifiedState::Running;
                self.send_ready();
            }
            (_, NotifiedState::Reloading) => {}
            (Readiness::Up(line) | Readiness::Waiting(line), state) => {
                // While starting, what the daemon waits for is sent at once; later, counts change all the time.
                let too_soon = self.ticks.wrapping_sub(self.last_status.tick) < TICKS_BETWEEN_UPDATES
                    && state != NotifiedState::Starting;
                if line != self.last_status.line && !too_soon {
                    let status = self.status_line(&line);
                    self.send(&status);
                }
            }
        }
    }

    fn send_ready(&mut self) {
        let status = self.current_status_line();
        self.send(&format!("READY=1\n{status}"));
    }

    /// `STATUS=…` of the daemon's current state; empty before a source is attached.
    fn current_status_line(&mut self) -> String {
        let readiness = self.source.as_ref().map(|source| source.readiness());
        match readiness {
            Some(Readiness::Up(line) | Readiness::Waiting(line)) => self.status_line(&line),
            None => String::new(),
        }
    }

    /// `STATUS=…` with this text, which is stored as the last one sent.
    fn status_line(&mut self, text: &str) -> String {
        self.last_status = LastStatus { line: text.to_owned(), tick: self.ticks };
        format!("STATUS={}\n", escaped(text))
    }

    /// Sends a message. Logs the first of several failures in a row.
    fn send(&mut self, message: &str) {
        match self.socket.send(message) {
            Ok(()) => self.socket_works = true,
            Err(error) => {
                if std::mem::replace(&mut self.socket_works, false) {
                    warn!(error = %chain(&error), "cannot notify the service manager");
                }
            }
        }
    }
}

fn extension() -> String {
    format!("EXTEND_TIMEOUT_USEC={}\n", EXTENSION.as_micros())
}
