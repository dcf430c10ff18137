//! Detects stuck tasks: a worker that does not yield its thread, and a runtime in which no task is scheduled.
//!
//! It only detects and reports; it never stops or restarts anything, and does not depend on systemd.

mod health;
mod heartbeat;
mod stall_detector;

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

pub use health::Health;
pub use heartbeat::{HeartbeatGuard, HeartbeatReading, Heartbeats};
use stall_detector::StallDetector;
pub use stall_detector::Stuck;

/// How often [`Watchdog::check`] is to be called; stall timeouts are counted in checks.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the runtime's own heartbeat is counted.
const RUNTIME_BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Checks heartbeats, logs which tasks become stuck or recover, and publishes them in [`Health`].
///
/// Driven from a thread outside the runtime, since a runtime that is stuck could not check itself.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stall_timeout: Duration,
    detector: StallDetector,
    runtime: Heartbeats,
    health: Health,
    stuck: Vec<Stuck>,
    _runtime_beat: AbortOnDropHandle<()>,
}

impl Watchdog {
    /// Starts the runtime's heartbeat. Needs a tokio runtime. A task without progress for `stall_timeout` is stuck.
    pub(crate) fn new(stall_timeout: Duration, health: Health) -> Self {
        let runtime = Heartbeats::default();
        let heartbeat = runtime.register();
        let beat = tokio::spawn(async move {
            let mut interval = tokio::time::interval(RUNTIME_BEAT_INTERVAL);
            loop {
                interval.tick().await;
                heartbeat.beat();
            }
        });
        Watchdog {
            stall_timeout,
            detector: StallDetector::new(checks_in(stall_timeout)),
            runtime,
            health,
            stuck: Vec::new(),
            _runtime_beat: AbortOnDropHandle::new(beat),
        }
    }

    /// One check of the runtime and of these workers. Returns `true` if nothing is stuck.
    pub(crate) fn check(&mut self, workers: &[HeartbeatReading]) -> bool {
        let runtime = self.runtime.read("").first().map_or(0, |heartbeat| heartbeat.count);
        let stuck = self.detector.check(runtime, workers);
        self.report(stuck);
        self.stuck.is_empty()
    }

    /// Logs and publishes the differences from the last check.
    fn report(&mut self, stuck: Vec<Stuck>) {
        let stall_timeout = self.stall_timeout;
        for task in stuck.iter().filter(|task| !self.stuck.contains(task)) {
            match task {
                Stuck::Worker { consumer } => error!(consumer, ?stall_timeout, "stuck: {task}"),
                Stuck::Runtime => error!(?stall_timeout, "stuck: {task}"),
            }
        }
        for task in self.stuck.iter().filter(|task| !stuck.contains(task)) {
            info!("no longer stuck: {task}");
        }
        if stuck != self.stuck {
            self.health.set(stuck.clone());
            self.stuck = stuck;
        }
    }
}

/// The number of checks that take at least this long.
pub(crate) fn checks_in(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(CHECK_INTERVAL.as_millis())).unwrap_or(u32::MAX)
}
