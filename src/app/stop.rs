//! Stops everything in order, each step within a limit: a disk that hangs must not keep the process from ending.
//!
//! It never decides that the daemon stops.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::{error, info, warn};

use super::daemon::Daemon;
use super::event_logs::EventLogs;
use super::observability::Observability;
use crate::amqp::ConfirmingPublisher;
use crate::ledger::Ledger;
use crate::pipeline::FAILED_MESSAGES;
use crate::shutdown::Shutdown;

/// How long the workers may take to end once the drain is aborted. They only release their deliveries, unless a handler blocks
/// its thread.
const ABORT_LIMIT: Duration = Duration::from_secs(5);
/// How long the collectors of dead letters may take to end, while the workers do: their last acks wait for the broker.
const COLLECTORS_LIMIT: Duration = Duration::from_secs(5);
/// How long the publisher waits for its last confirms, and notifications for the answers of their servers, after all workers have ended.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);
/// How long the steps after the last confirms may take together: the ledger's last commit and checkpoint take most of it.
const STOP_LIMIT: Duration = Duration::from_secs(12);
/// How long a step may take at least, if those before it have used up [`STOP_LIMIT`].
const MIN_STEP: Duration = Duration::from_secs(1);

/// Stops everything, after a shutdown has begun. Deliveries are settled before the publisher closes, and recorded before
/// the ledger closes. Returns the names of the steps that did not end in time.
pub(super) async fn stop(daemon: Daemon, publisher: &ConfirmingPublisher, shutdown: &Shutdown) -> Vec<&'static str> {
    let Daemon { pools, dead_letters, observability, retention, alerting, ledger, journal, logs, .. } = daemon;
    let (processes, deliveries) = (pools.processes(), pools.deliveries());
    let mut unfinished = Vec::new();
    let working = async {
        // Cancel-safe: what is not finished then is released.
        tokio::select! {
            () = pools.finish() => true,
            () = after_abort(shutdown) => false,
        }
    };
    // The last dead letters of the workers are in the queue for the next start.
    let (worked, collected) = tokio::join!(working, timeout(COLLECTORS_LIMIT, dead_letters.finish()));
    for (has_ended, step) in [(worked, "workers"), (collected.is_ok(), "collectors of dead letters")] {
        if !has_ended {
            unfinished.push(step);
        }
    }
    FAILED_MESSAGES.write_all_counts();
    if shutdown.is_aborted() {
        warn!("not all deliveries were finished in time; the broker will deliver those again");
    }
    // A server that has got a whole notification accepts it, so its record is worth waiting for. Without an abort there is none left.
    let (closed, delivered) = tokio::join!(publisher.close(LAST_CONFIRMS), timeout(LAST_CONFIRMS, deliveries.finish()));
    if delivered.is_err() {
        let count = deliveries.in_flight();
        warn!(count, "stopped while servers had not answered to notifications; those will be delivered again");
    }
    if let Err(unconfirmed) = closed {
        warn!(error = %unconfirmed, "closed the publisher while publications were unconfirmed; the deliveries that caused them were not acked");
    }
    let mut steps = Steps::new(unfinished);
    steps.finish("commands", processes.finish()).await;
    steps.finish("alerts", alerting.finish()).await;
    steps.finish("ledger", ledger.close()).await;
    steps.finish("journal", journal.finish()).await;
    observability.log_counts();
    steps.finish("retention", retention.finish()).await;
    steps.finish("event files", logs.finish()).await;
    steps.finish("admin listener", observability.stop()).await;
    info!("stopped");
    steps.unfinished
}

/// Stops what runs before the broker has answered for the first time. `logs` is `None` until the event files are open.
pub(super) async fn stop_before_start(
    ledger: Arc<dyn Ledger>,
    logs: Option<EventLogs>,
    observability: Observability,
) -> Vec<&'static str> {
    let mut steps = Steps::new(Vec::new());
    steps.finish("ledger", ledger.close()).await;
    if let Some(logs) = logs {
        steps.finish("event files", logs.finish()).await;
    }
    steps.finish("admin listener", observability.stop()).await;
    steps.unfinished
}

async fn after_abort(shutdown: &Shutdown) {
    shutdown.aborted().await;
    tokio::time::sleep(ABORT_LIMIT).await;
}

/// The steps that share [`STOP_LIMIT`].
struct Steps {
    until: Instant,
    /// Those that did not end in time.
    unfinished: Vec<&'static str>,
}

impl Steps {
    fn new(unfinished: Vec<&'static str>) -> Self {
        Steps { until: Instant::now() + STOP_LIMIT, unfinished }
    }

    /// Waits for a step, but no longer than its limit.
    async fn finish(&mut self, step: &'static str, work: impl Future<Output = ()>) {
        let until = self.until.max(Instant::now() + MIN_STEP);
        if timeout_at(until, work).await.is_err() {
            error!(step, "a part of the shutdown did not end in time; stopping without it");
            self.unfinished.push(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn steps_that_hang_share_one_limit_and_those_after_them_still_get_a_moment() {
        let begun = Instant::now();
        let mut steps = Steps::new(vec!["workers"]);
        steps.finish("ledger", pending()).await;
        steps.finish("retention", async {}).await;
        steps.finish("event files", pending()).await;
        assert_eq!(steps.unfinished, ["workers", "ledger", "event files"]);
        assert_eq!(begun.elapsed(), STOP_LIMIT + MIN_STEP);
    }
}
