//! The thread that looks twice a second, tells the service manager, and logs who is stuck.
//!
//! Whatever happens to the manager's socket, orderd goes on.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::{Manager, Notice, Readiness, StatusSource};
use crate::chain::chain;
use crate::watchdog::{Health, Heartbeats, StallDetector, Stuck};

/// How often it looks. So long may READY=1 and a change of STATUS be late.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// How long somebody may go without progress where no watchdog says how long; about half of what the unit says.
const PATIENCE: Duration = Duration::from_secs(15);
/// The shortest such time, whatever the watchdog says: a machine may be so busy.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(3);
/// How much time is asked for at a time while starting, reloading and stopping.
const EXTENSION: Duration = Duration::from_secs(30);
/// How often it is asked for; every STATUS that only counts on waits as long.
const EXTEND_EVERY: u32 = 10;

/// How far the daemon has come, as the service manager knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Reloading,
    /// So many more looks may ask for time.
    Stopping {
        looks: u32,
    },
}

pub(super) struct Notifier {
    manager: Manager,
    runtime: Heartbeats,
    health: Health,
    stall_detector: StallDetector,
    status_source: Option<Arc<dyn StatusSource>>,
    stage: Stage,
    stuck: Vec<Stuck>,
    looks: u32,
    /// The STATUS told last, and at which look.
    told: (String, u32),
    /// Whether the last message could be sent.
    reached: bool,
}

fn in_looks(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(LOOK.as_millis())).unwrap_or(u32::MAX)
}

impl Notifier {
    pub(super) fn new(manager: Manager, runtime: Heartbeats, health: Health) -> Self {
        // The other half is what is left for the log to say why, before the manager kills.
        let patience = manager.watchdog.map_or(PATIENCE, |every| (every / 2).max(SHORTEST_PATIENCE));
        Notifier {
            manager,
            runtime,
            health,
            stall_detector: StallDetector::new(in_looks(patience)),
            status_source: None,
            stage: Stage::Starting,
            stuck: Vec::new(),
            looks: 0,
            told: (String::new(), 0),
            reached: true,
        }
    }

    /// Runs until it is told to end.
    pub(super) fn run(mut self, inbox: &Receiver<Notice>) {
        let mut next = Instant::now();
        loop {
            match inbox.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Notice::End { status }) => return self.end(status),
                Ok(notice) => self.take(notice),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    next = Instant::now() + LOOK;
                }
            }
        }
    }

    fn take(&mut self, notice: Notice) {
        match notice {
            Notice::Watch(status_source) => self.status_source = Some(status_source),
            // While it starts, READY=1 would be told too early afterwards; while it stops, too late.
            Notice::Reloading { monotonic_usec } if self.stage == Stage::Running => {
                self.stage = Stage::Reloading;
                let status = self.note("reloading");
                self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={monotonic_usec}\n{status}"));
            }
            Notice::Reloaded if self.stage == Stage::Reloading => {
                self.stage = Stage::Running;
                self.ready();
            }
            Notice::Reloading { .. } | Notice::Reloaded => {}
            Notice::Stopping { .. } if matches!(self.stage, Stage::Stopping { .. }) => {}
            Notice::Stopping { budget } => {
                self.stage = Stage::Stopping { looks: in_looks(budget) };
                let status = self.status();
                self.tell(&format!("STOPPING=1\n{}{status}", extension()));
            }
            Notice::End { .. } => unreachable!("`run` has seen to it"),
        }
    }

    fn end(mut self, status: Option<String>) {
        let status = self.note(status.as_deref().unwrap_or("stopped"));
        self.tell(&format!("STOPPING=1\n{status}"));
    }

    fn look(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        let runtime = self.runtime.read("").first().map_or(0, |heartbeat| heartbeat.count);
        let heartbeats = self.status_source.as_ref().map_or_else(Vec::new, |status_source| status_source.heartbeats());
        let stuck = self.stall_detector.look(runtime, &heartbeats);
        self.report(stuck);
        if self.stuck.is_empty() {
            self.live();
        }
        // Counters may be what somebody stuck holds: whoever is, is told by now.
        self.look_at_standing();
    }

    /// Logs who has become stuck, and who no longer is.
    fn report(&mut self, stuck: Vec<Stuck>) {
        for who in stuck.iter().filter(|who| !self.stuck.contains(who)) {
            let watchdog = self.manager.watchdog;
            match who {
                Stuck::Worker { consumer } => error!(consumer, ?watchdog, "stuck: {who}"),
                Stuck::Runtime => error!(?watchdog, "stuck: {who}"),
            }
        }
        for who in self.stuck.iter().filter(|who| !stuck.contains(who)) {
            info!("no longer stuck: {who}");
        }
        if stuck != self.stuck {
            self.health.set(stuck.clone());
            self.stuck = stuck;
        }
    }

    /// Nobody is stuck: shows that orderd lives, and asks for time where some is needed.
    fn live(&mut self) {
        let mut message = String::new();
        if let Some(every) = self.manager.watchdog
            && self.looks.is_multiple_of(in_looks(every / 4).max(1))
        {
            message.push_str("WATCHDOG=1\n");
        }
        let extend = self.looks.is_multiple_of(EXTEND_EVERY);
        match &mut self.stage {
            Stage::Starting | Stage::Reloading if extend => message.push_str(&extension()),
            Stage::Stopping { looks } => {
                *looks = looks.saturating_sub(1);
                if extend && *looks > 0 {
                    message.push_str(&extension());
                }
            }
            Stage::Starting | Stage::Reloading | Stage::Running => {}
        }
        if !message.is_empty() {
            self.tell(&message);
        }
    }

    fn look_at_standing(&mut self) {
        let Some(status_source) = self.status_source.clone() else { return };
        match (status_source.readiness(), self.stage) {
            (Readiness::Up(_), Stage::Starting) => {
                self.stage = Stage::Running;
                self.ready();
            }
            (_, Stage::Reloading) => {}
            (Readiness::Up(line) | Readiness::Waiting(line), stage) => {
                // While it starts, what it waits for is told at once; later, numbers change all the time.
                let rest = self.looks.wrapping_sub(self.told.1) < EXTEND_EVERY && stage != Stage::Starting;
                if line != self.told.0 && !rest {
                    let status = self.note(&line);
                    self.tell(&status);
                }
            }
        }
    }

    fn ready(&mut self) {
        let status = self.status();
        self.tell(&format!("READY=1\n{status}"));
    }

    /// The STATUS line of now.
    fn status(&mut self) -> String {
        let readiness = self.status_source.as_ref().map(|status_source| status_source.readiness());
        match readiness {
            Some(Readiness::Up(line) | Readiness::Waiting(line)) => self.note(&line),
            None => String::new(),
        }
    }

    /// Makes a STATUS line, and remembers it as told.
    fn note(&mut self, line: &str) -> String {
        self.told = (line.to_owned(), self.looks);
        format!("STATUS={}\n", line.replace(char::is_control, " "))
    }

    /// Sends; a manager that cannot be reached is logged once.
    fn tell(&mut self, message: &str) {
        match self.manager.tell(message) {
            Ok(()) => self.reached = true,
            Err(error) => {
                if std::mem::replace(&mut self.reached, false) {
                    warn!(error = %chain(&error), "cannot tell the service manager anything");
                }
            }
        }
    }
}

fn extension() -> String {
    format!("EXTEND_TIMEOUT_USEC={}\n", EXTENSION.as_micros())
}
