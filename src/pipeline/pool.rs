//! One consumer's pool: subscription after subscription, each served by supervised workers.
//!
//! It never looks into a message; `process` does.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::intake::Intake;
use super::process::{ConsumerContext, process};
use super::safe_mode::SafeMode;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::message::{Consumer, Subscription};
use crate::metrics::DeliveryCounts;
use crate::shutdown::Shutdown;
use crate::supervisor::{IntensityExceeded, RestartPolicy, supervise};

/// The longest first wait between attempts to subscribe; it doubles up to [`Pool::reconnect_max`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait in safe mode. A message that kills its connection has to be delivered some twenty times
/// before the broker's delivery limit takes it out, and holds up its queue until then.
const SAFE_WAIT: Duration = Duration::from_secs(1);
/// A subscription that lived so long resets the back-off.
const STEADY: Duration = Duration::from_secs(10);
/// How long a retired pool's last acks have before its subscription is closed. Closing waits for the queue's count of
/// consumers to fall, and that falls too when another former pool of the same queue is done.
const LAST_ACKS: Duration = Duration::from_secs(1);

/// The workers of one consumer.
pub struct Pool {
    /// What the workers do.
    pub line: Arc<ConsumerContext>,
    /// Where deliveries come from.
    pub consumer: Arc<dyn Consumer>,
    /// Worker tasks, at least 1.
    pub workers: usize,
    /// Deliveries one worker works on at a time, at least 1.
    pub prefetch: u16,
    /// The longest wait between attempts to subscribe.
    pub reconnect_max: Duration,
    /// When to stop.
    pub shutdown: Shutdown,
    /// When to take nothing in any more, finish all that was handed out, and end: another pool takes over, or none. What
    /// was in flight is then neither given back nor handed out again, unless a connection is lost or a shutdown begins.
    pub retired: CancellationToken,
    /// Cancelled once it is retired and takes nothing in any more, or has ended.
    pub intake_ended: CancellationToken,
}

/// A pool cannot go on by itself.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A worker keeps dying.
    #[error("a worker of consumer {consumer:?} keeps dying")]
    Worker {
        /// The consumer's name.
        consumer: String,
        /// How often.
        #[source]
        source: IntensityExceeded,
    },
}

/// How many workers, each with how many deliveries at a time.
#[derive(Debug, Clone, Copy)]
struct Slots {
    workers: usize,
    each: usize,
}

impl Pool {
    /// Serves subscriptions until a shutdown begins or it is retired, and all work in progress is settled. It begins in
    /// safe mode if the pool before it was in it.
    ///
    /// # Errors
    /// [`PoolError`] when a worker dies too often; what it held has been released.
    pub async fn run(self: Arc<Self>) -> Result<(), PoolError> {
        let safe_mode = Arc::new(Mutex::new(SafeMode::beginning(self.line.counters.pool().safe_mode)));
        let mut failures = 0_u32;
        while !self.is_over() {
            let slots = self.slots(&safe_mode);
            let prefetch = u16::try_from(slots.workers * slots.each).unwrap_or(u16::MAX);
            // Dropping the attempt at shutdown is fine: the client cleans up after itself. Retired, it waits: the broker
            // may have handed out the first deliveries, and would hand them out again.
            let subscribed = tokio::select! {
                subscribed = self.consumer.subscribe(&self.line.queue, prefetch) => subscribed,
                () = self.shutdown.begun() => return Ok(()),
            };
            match subscribed {
                Ok(subscription) => {
                    info!(consumer = %self.line.consumer, queue = %self.line.queue, prefetch, "consuming");
                    let since = Instant::now();
                    let before = self.line.counters.counts();
                    let ended = self.serve(subscription, slots, &safe_mode).await?;
                    let lived = since.elapsed();
                    if self.is_over() {
                        return Ok(());
                    }
                    if ended == Ended::Lost {
                        let settled = progress(&before, &self.line.counters.counts());
                        self.lost(&safe_mode, lived, settled);
                        warn!(consumer = %self.line.consumer, ?lived, "lost the subscription");
                        failures = if lived > STEADY { 0 } else { failures + 1 };
                    } else {
                        failures = 0;
                        continue;
                    }
                }
                Err(error) => {
                    failures += 1;
                    warn!(consumer = %self.line.consumer, error = %chain(&error), failures, "cannot consume; trying again");
                }
            }
            let backoff = self.backoff(lock(&safe_mode).is_on());
            let wait = backoff.wait(failures.saturating_sub(1), fastrand::f64());
            // Cancel-safe: both only wait.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.over() => {}
            }
        }
        Ok(())
    }

    /// Whether no subscription is to follow.
    fn is_over(&self) -> bool {
        self.shutdown.has_begun() || self.retired.is_cancelled()
    }

    /// Resolves when no subscription is to follow. Cancel-safe.
    pub async fn over(&self) {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = self.shutdown.begun() => {}
            () = self.retired.cancelled() => {}
        }
    }

    /// A subscription was lost; that may turn safe mode on.
    fn lost(&self, safe_mode: &Mutex<SafeMode>, lived: Duration, settled: bool) {
        let mut safe_mode = lock(safe_mode);
        safe_mode.lost(lived, settled);
        self.line.counters.safe_mode(safe_mode.is_on());
    }

    fn backoff(&self, safe_mode: bool) -> Backoff {
        let max = if safe_mode { self.reconnect_max.min(SAFE_WAIT) } else { self.reconnect_max };
        Backoff { first: FIRST_WAIT, max }
    }

    fn slots(&self, safe_mode: &Mutex<SafeMode>) -> Slots {
        let safe = lock(safe_mode).is_on();
        self.line.counters.safe_mode(safe);
        if safe {
            warn!(consumer = %self.line.consumer, "safe mode: one delivery at a time, since deliveries keep coming back");
            return Slots { workers: 1, each: 1 };
        }
        Slots { workers: self.workers, each: usize::from(self.prefetch) }
    }

    /// Serves one subscription until it is lost or stopped, or the daemon shuts down, or the pool is retired and all that
    /// was handed out is settled.
    async fn serve(
        self: &Arc<Self>,
        subscription: Subscription,
        slots: Slots,
        safe_mode: &Arc<Mutex<SafeMode>>,
    ) -> Result<Ended, PoolError> {
        let Subscription { deliveries, settler } = subscription;
        let counters = Arc::clone(&self.line.counters);
        let mut serving = counters.serving((slots.workers * slots.each) as u64);
        let intake =
            Arc::new(Intake::new(deliveries, Arc::clone(&settler), Arc::clone(safe_mode), Arc::clone(&counters)));
        let mut workers: FuturesUnordered<_> = (0..slots.workers)
            .map(|number| {
                AbortOnDropHandle::new(tokio::spawn(Arc::clone(self).worker(number, slots.each, Arc::clone(&intake))))
            })
            .collect();
        let mut exceeded = None;
        let mut stopping = false;
        let mut ended = settler.ended();
        loop {
            // Cancel-safe: joined workers and cancellations can be waited for again.
            tokio::select! {
                ended = workers.next() => match ended {
                    None => break,
                    Some(Ok(Err(error))) => {
                        exceeded = Some(error);
                        intake.stopped.cancel();
                    }
                    Some(Ok(Ok(())) | Err(_)) => {}
                },
                // Workers whose slots are all taken would not notice.
                () = &mut ended, if !intake.lost.is_cancelled() => intake.lost.cancel(),
                () = self.shutdown.begun(), if !stopping => intake.stopped.cancel(),
                () = intake.stopped.cancelled(), if !stopping => {
                    stopping = true;
                    settler.cancel().await;
                }
                // Before the broker hears of it, or the end of what it has handed out would look like a loss.
                () = self.retired.cancelled(), if !intake.retired.is_cancelled() => {
                    intake.retired.cancel();
                    serving.drains();
                    settler.wind_down().await;
                    self.intake_ended.cancel();
                }
            }
        }
        if intake.lost.is_cancelled() {
            return Ok(Ended::Lost);
        }
        settler.cancel().await;
        intake.give_back().await;
        if intake.retired.is_cancelled() {
            self.shutdown.sleep(LAST_ACKS).await;
        }
        if let Err(error) = settler.close().await {
            warn!(consumer = %self.line.consumer, %error, "what was settled last may be handed out again");
        }
        match exceeded {
            Some(source) => Err(PoolError::Worker { consumer: self.line.consumer.to_string(), source }),
            None => Ok(Ended::Stopped),
        }
    }

    /// One worker and its restarts.
    async fn worker(
        self: Arc<Self>,
        number: usize,
        slots: usize,
        intake: Arc<Intake>,
    ) -> Result<(), IntensityExceeded> {
        let name = format!("{} worker {number}", self.line.consumer);
        let on_restart = || self.line.counters.restarted();
        supervise(&name, RestartPolicy::DEFAULT, &self.shutdown, on_restart, || {
            let work = work(Arc::clone(&self.line), self.shutdown.clone(), Arc::clone(&intake), slots);
            self.line.counters.heartbeats().register().around(work)
        })
        .await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Lost,
    Stopped,
}

/// Takes deliveries and works on up to `slots` of them at a time, until no more come and all are settled.
async fn work(
    line: Arc<ConsumerContext>,
    shutdown: Shutdown,
    intake: Arc<Intake>,
    slots: usize,
) -> Result<(), std::convert::Infallible> {
    let _working = line.counters.working();
    let mut in_flight = FuturesUnordered::new();
    let mut batch = Vec::new();
    let (mut lost, mut aborted) = (pin!(intake.lost.cancelled()), pin!(shutdown.aborted()));
    let mut open = true;
    while open || !in_flight.is_empty() {
        let room = slots - in_flight.len();
        // Cancel-safe: `take` says so itself, what is done has settled itself, and the other branches only wait. What is
        // dropped with `in_flight` releases itself.
        tokio::select! {
            biased;
            () = &mut lost => return Ok(()),
            () = &mut aborted => return Ok(()),
            // All that are done by now: to ask for each anew costs as much as a small step of its work.
            Some(_done) = async { in_flight.by_ref().ready_chunks(slots).next().await }, if room < slots => {}
            more = intake.take(room, &mut batch), if open && room > 0 => {
                open = more;
                in_flight.extend(batch.drain(..).map(|held| process(Arc::clone(&line), held)));
            }
        }
    }
    Ok(())
}

fn lock(safe_mode: &Mutex<SafeMode>) -> std::sync::MutexGuard<'_, SafeMode> {
    safe_mode.lock().expect("safe mode's lock is never poisoned: nothing panics under it")
}

fn progress(before: &DeliveryCounts, after: &DeliveryCounts) -> bool {
    after.settled() > before.settled()
}
