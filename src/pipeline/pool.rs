//! One consumer's pool: subscription after subscription, each served by supervised workers.
//!
//! It never reads a message; `process` does.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::consumer_context::ConsumerContext;
use super::process::{FAILED_MESSAGES, process};
use super::publish::publish_until_accepted;
use super::safe_mode::{LostSubscription, SafeMode};
use super::shared_subscription::SharedSubscription;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::message::{Consumer, LossCause, Subscription};
use crate::shutdown::Shutdown;
use crate::supervisor::{IntensityExceeded, RestartPolicy, supervise};
use crate::telemetry::RepeatedLog;

/// Upper bound of the first wait between attempts to subscribe; it doubles up to [`Pool::reconnect_max`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait in safe mode. A message that kills its connection has to be delivered some twenty times before the
/// broker's delivery limit removes it, and blocks its queue until then.
const SAFE_MODE_WAIT: Duration = Duration::from_secs(1);
/// A subscription that lived longer than this resets the back-off.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(10);
/// How long a drained pool waits for its last acks to be sent before it closes its subscription. Closing itself waits until
/// the queue's consumer count falls, but that also happens when another draining pool of the same queue ends.
const LAST_ACKS: Duration = Duration::from_secs(1);
/// How often a subscription is asked whether the broker still answers.
const ANSWER_CHECK: Duration = Duration::from_secs(1);

/// Failed attempts to subscribe, by consumer.
static FAILURES: RepeatedLog = RepeatedLog::new();

/// The workers of one consumer.
pub struct Pool {
    /// What the workers need to process deliveries.
    pub context: Arc<ConsumerContext>,
    /// Where deliveries come from.
    pub consumer: Arc<dyn Consumer>,
    /// Worker tasks, at least 1.
    pub workers: usize,
    /// Deliveries that one worker processes at a time, at least 1.
    pub prefetch: u16,
    /// The longest wait between attempts to subscribe.
    pub reconnect_max: Duration,
    /// Stops the pool: unstarted deliveries are released, those in flight are finished.
    pub shutdown: Shutdown,
    /// To be cancelled when the pool is replaced or paused. It then stops consuming, finishes everything the broker has
    /// delivered, and ends. Nothing is released or redelivered, unless a connection is lost, a shutdown begins, or a delivery
    /// cannot be started within [`ConsumerContext::max_hold`] because of a rate limit.
    pub drain: CancellationToken,
    /// Cancelled once a draining pool has stopped consuming.
    pub intake_ended: CancellationToken,
}

/// Why a pool ended although it was not stopped.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A worker died more often than its restart policy allows.
    #[error("a worker of consumer {consumer:?} keeps dying")]
    Worker {
        /// The consumer's name.
        consumer: String,
        /// How often it died.
        #[source]
        source: IntensityExceeded,
    },
}

/// The workers of one subscription, and the deliveries that each may process at a time.
#[derive(Debug, Clone, Copy)]
struct Slots {
    workers: usize,
    per_worker: usize,
    /// One delivery at a time, to find out whether a service works again.
    is_trial: bool,
}

impl Pool {
    /// Consumes until a shutdown begins or the pool is drained, and returns once everything in flight is settled. Starts in
    /// safe mode if the consumer's previous pool was in it.
    ///
    /// # Errors
    /// [`PoolError`] when a worker dies too often. Its deliveries have been released.
    pub async fn run(self: Arc<Self>) -> Result<(), PoolError> {
        let safe_mode = Arc::new(Mutex::new(SafeMode::new(self.context.counters.pool().safe_mode)));
        let mut failures = 0_u32;
        while !self.is_stopping() {
            // Cancel-safe: both only wait, or publish what may be published again.
            tokio::select! {
                () = self.outages_ended() => {}
                () = self.stopping() => return Ok(()),
            }
            let slots = self.slots(&safe_mode);
            if slots.is_trial {
                let consumer = &self.context.consumer;
                info!(%consumer, "a service is unavailable; one delivery at a time until it works again");
            }
            let prefetch = u16::try_from(slots.workers * slots.per_worker).unwrap_or(u16::MAX);
            // A shutdown may drop the attempt: the client cleans up after itself. A drain must not: the broker may already
            // have delivered the first messages, and would deliver them again.
            let subscribed = tokio::select! {
                subscribed = self.consumer.subscribe(&self.context.queue, prefetch) => subscribed,
                () = self.shutdown.begun() => return Ok(()),
            };
            match subscribed {
                Ok(subscription) => {
                    let failed = FAILURES.ended(&self.context.consumer);
                    info!(consumer = %self.context.consumer, queue = %self.context.queue, prefetch, failed, "consuming");
                    let subscribed_at = Instant::now();
                    let settled_before = self.context.counters.counts().acked();
                    let settler = Arc::clone(&subscription.settler);
                    let ended = self.serve(subscription, slots, &safe_mode).await?;
                    let lived = subscribed_at.elapsed();
                    if self.is_stopping() {
                        return Ok(());
                    }
                    if let SubscriptionEnd::Lost(cause) = ended {
                        let settled = self.context.counters.counts().acked() > settled_before;
                        let by_broker = settler.was_ended_by_broker();
                        self.report_loss(&safe_mode, LostSubscription { lived, settled, by_broker });
                        self.log_loss(cause, lived);
                        failures = if lived > BACKOFF_RESET_AFTER { 0 } else { failures + 1 };
                    } else {
                        failures = 0;
                        continue;
                    }
                }
                Err(error) => {
                    failures += 1;
                    lock(&safe_mode).subscribe_failed();
                    self.context.counters.subscribe_failed(chain(&error));
                    if let Some(due) = FAILURES.occurred(&self.context.consumer) {
                        let (consumer, repeated) = (&self.context.consumer, due.repeated);
                        warn!(%consumer, error = %chain(&error), repeated, "cannot consume; retrying");
                    }
                }
            }
            let backoff = self.backoff(lock(&safe_mode).is_on());
            let wait = backoff.wait(failures.saturating_sub(1), fastrand::f64());
            // Cancel-safe: both only wait.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stopping() => {}
            }
        }
        Ok(())
    }

    /// Whether the pool must not subscribe again.
    fn is_stopping(&self) -> bool {
        self.shutdown.has_begun() || self.drain.is_cancelled()
    }

    /// Resolves when the pool must not subscribe again. Cancel-safe.
    pub async fn stopping(&self) {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = self.shutdown.begun() => {}
            () = self.drain.cancelled() => {}
        }
    }

    /// Resolves when the ledger can record, the event file can be written, and the broker has accepted what it did not accept
    /// before.
    async fn outages_ended(&self) {
        if let Some(mut publications) = self.context.outage.publications() {
            // What is accepted here is published again by the delivery that caused it, which was released: orders and events are
            // recorded once, but of a failed message there are two copies, and may be two dead letters. Nothing else shows that
            // the broker accepts: a subscription to try it would count toward the delivery limit.
            // An error that another attempt cannot help ends the outage too: the delivery that caused it meets it again.
            let _ = publish_until_accepted(&self.context, &mut publications).await;
            self.context.outage.end();
            info!(consumer = %self.context.consumer, "publishing is possible again; consuming");
        }
        self.context.intake.outage_ended().await;
    }

    /// Resolves when deliveries must not wait any longer: the ledger could not record, the broker did not accept what they cause,
    /// or a service was unavailable, for [`ConsumerContext::max_hold`], or the intake is closed while the pool stops. Returns why.
    ///
    /// During a trial the only delivery does not wait for the service for long: it is soon used to try it.
    async fn outage_ends_hold(&self, is_trial: bool) -> String {
        let max_hold = self.context.max_hold();
        let intake = &self.context.intake;
        let while_stopping = async {
            self.stopping().await;
            intake.closed().await;
        };
        // Cancel-safe: all only wait.
        tokio::select! {
            () = intake.outage_for(max_hold) => format!("the ledger or the event file could not be written, or deliveries were held, for {max_hold:?}"),
            service = intake.trial_for(max_hold), if !is_trial => format!("{service} was unavailable for {max_hold:?}"),
            () = while_stopping => "the ledger, the event file or a service is unavailable".to_owned(),
            () = self.context.outage.begun() => {
                let max_hold = self.context.max_hold();
                let cause = self.context.counters.broker_problems().read().publish_error;
                let cause = cause.unwrap_or_else(|| "it confirms nothing, or there is no connection".to_owned());
                format!("the broker has not accepted for {max_hold:?} what deliveries cause: {cause}")
            }
        }
    }

    /// Resolves when a pool has been draining for [`ConsumerContext::max_hold`]. A rate limit that was lowered meanwhile could
    /// otherwise keep what it has received for hours.
    async fn drain_ends_hold(&self) {
        self.drain.cancelled().await;
        tokio::time::sleep(self.context.max_hold()).await;
    }

    /// Reports a lost subscription to the safe-mode state machine, which may turn safe mode on.
    fn report_loss(&self, safe_mode: &Mutex<SafeMode>, lost: LostSubscription) {
        lock(safe_mode).lost(lost, Instant::now());
    }

    fn log_loss(&self, cause: Option<LossCause>, lived: Duration) {
        let ConsumerContext { consumer, queue, timeout, counters, .. } = &*self.context;
        match cause {
            Some(LossCause::AckTimeout(limit)) => {
                let problem = counters.broker_problems().ack_timed_out(queue, limit, *timeout);
                error!(%consumer, problem, "the broker ended the subscription: a delivery was held for too long");
            }
            Some(LossCause::Other(reason)) => warn!(%consumer, ?lived, reason, "lost the subscription"),
            None => warn!(%consumer, ?lived, "lost the subscription"),
        }
    }

    fn backoff(&self, safe_mode: bool) -> Backoff {
        let max = if safe_mode { self.reconnect_max.min(SAFE_MODE_WAIT) } else { self.reconnect_max };
        Backoff { first: FIRST_WAIT, max }
    }

    fn slots(&self, safe_mode: &Mutex<SafeMode>) -> Slots {
        let is_safe = lock(safe_mode).is_on();
        if self.context.counters.pool().safe_mode && !is_safe {
            info!(consumer = %self.context.consumer, "safe mode ended: deliveries are processed concurrently again");
        }
        self.context.counters.set_safe_mode(is_safe);
        if is_safe {
            warn!(consumer = %self.context.consumer, "safe mode: one delivery at a time, because deliveries keep being redelivered");
            return Slots { workers: 1, per_worker: 1, is_trial: false };
        }
        if self.context.intake.is_trial() {
            return Slots { workers: 1, per_worker: 1, is_trial: true };
        }
        let most = self.context.intake.rate_limiter().max_slots();
        let most_at_once = self.context.handler.max_in_flight(self.context.max_hold()).unwrap_or(usize::MAX);
        let most = most.min(most_at_once).max(1);
        let workers = self.workers.min(most);
        Slots { workers, per_worker: usize::from(self.prefetch).min(most / workers).max(1), is_trial: false }
    }

    /// Runs the workers of one subscription until it is lost, is drained, or is stopped by a shutdown or by safe mode.
    async fn serve(
        self: &Arc<Self>,
        subscription: Subscription,
        slots: Slots,
        safe_mode: &Arc<Mutex<SafeMode>>,
    ) -> Result<SubscriptionEnd, PoolError> {
        let Subscription { deliveries, settler, address, silent } = subscription;
        let counters = Arc::clone(&self.context.counters);
        let mut serving = counters.subscription_opened((slots.workers * slots.per_worker) as u64, address, silent);
        let shared = Arc::new(SharedSubscription::new(
            deliveries,
            Arc::clone(&settler),
            Arc::clone(safe_mode),
            Arc::clone(&counters),
            Arc::clone(&self.context.unidentified),
            self.context.intake.clone(),
        ));
        let mut workers: FuturesUnordered<_> = (0..slots.workers)
            .map(|number| {
                AbortOnDropHandle::new(tokio::spawn(Arc::clone(self).worker(
                    number,
                    slots.per_worker,
                    Arc::clone(&shared),
                )))
            })
            .collect();
        let mut exceeded = None;
        let mut cancelled = false;
        let (mut lost, mut loss) = (settler.ended(), None);
        let mut outage_ends_hold = pin!(self.outage_ends_hold(slots.is_trial));
        let mut drain_ends_hold = pin!(self.drain_ends_hold());
        let mut answer_check = tokio::time::interval(ANSWER_CHECK);
        loop {
            // Cancel-safe: joining a worker and waiting for a cancellation can both be started again.
            tokio::select! {
                joined = workers.next() => match joined {
                    None => break,
                    Some(Ok(Err(error))) => {
                        exceeded = Some(error);
                        shared.stopped.cancel();
                    }
                    Some(Ok(Ok(())) | Err(_)) => {}
                },
                // Workers without a free slot do not poll the subscription, so they would not notice.
                cause = &mut lost, if loss.is_none() => {
                    loss = Some(cause);
                    shared.lost.cancel();
                }
                _ = answer_check.tick() => {
                    serving.set_unanswered(settler.unanswered());
                    FAILED_MESSAGES.write_counts();
                }
                reason = &mut outage_ends_hold, if !shared.interrupted.is_cancelled() => {
                    warn!(consumer = %self.context.consumer, reason, "releasing what is in flight, until the outage ends");
                    self.context.counters.subscribe_failed(format!("closed during an outage: {reason}"));
                    shared.interrupted.cancel();
                    shared.stopped.cancel();
                }
                // What is in flight is finished; what was not started returns to the queue.
                () = &mut drain_ends_hold, if !shared.stopped.is_cancelled() => shared.stopped.cancel(),
                // Subscribes again with the full prefetch.
                () = self.context.intake.trial_ended(), if slots.is_trial && !cancelled => shared.stopped.cancel(),
                () = self.shutdown.begun(), if !cancelled => shared.stopped.cancel(),
                () = shared.stopped.cancelled(), if !cancelled => {
                    cancelled = true;
                    settler.cancel().await;
                }
                () = self.drain.cancelled(), if !shared.draining.is_cancelled() => {
                    // Before the consumer is cancelled, or the end of the deliveries would look like a lost subscription.
                    shared.draining.cancel();
                    serving.start_draining();
                    settler.cancel_when_idle().await;
                    self.intake_ended.cancel();
                }
            }
        }
        if shared.lost.is_cancelled() {
            // The deliveries may have ended first.
            return Ok(SubscriptionEnd::Lost(loss.or_else(|| lost.now_or_never())));
        }
        settler.cancel().await;
        let unstarted = shared.release_unstarted().await;
        if shared.draining.is_cancelled() {
            if unstarted > 0 {
                let (consumer, max_hold) = (&self.context.consumer, self.context.max_hold());
                info!(%consumer, unstarted, ?max_hold, "a former pool could not start all its deliveries in time; the others returned to the queue");
            }
            self.shutdown.sleep(LAST_ACKS).await;
        }
        if let Err(error) = settler.close().await {
            warn!(consumer = %self.context.consumer, %error, "the last acks may be lost; their messages would then be delivered again");
        }
        match exceeded {
            Some(source) => Err(PoolError::Worker { consumer: self.context.consumer.to_string(), source }),
            None => Ok(SubscriptionEnd::Stopped),
        }
    }

    /// Runs one worker and restarts it when it dies.
    async fn worker(
        self: Arc<Self>,
        number: usize,
        slots: usize,
        shared: Arc<SharedSubscription>,
    ) -> Result<(), IntensityExceeded> {
        let name = format!("{} worker {number}", self.context.consumer);
        let on_restart = || self.context.counters.restarted();
        supervise(&name, RestartPolicy::DEFAULT, &self.shutdown, on_restart, || {
            let work = work(Arc::clone(&self.context), self.shutdown.clone(), Arc::clone(&shared), slots);
            self.context.counters.heartbeats().register().track(work)
        })
        .await
    }
}

/// Why a subscription ended without an error.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SubscriptionEnd {
    /// The cause, if it is known.
    Lost(Option<LossCause>),
    Stopped,
}

/// Receives deliveries and processes up to `slots` of them at a time, until no more arrive and all are settled.
async fn work(
    context: Arc<ConsumerContext>,
    shutdown: Shutdown,
    shared: Arc<SharedSubscription>,
    slots: usize,
) -> Result<(), std::convert::Infallible> {
    let _working = context.counters.worker_started();
    let mut in_flight = FuturesUnordered::new();
    let mut batch = Vec::new();
    let (mut lost, mut aborted) = (pin!(shared.lost.cancelled()), pin!(shutdown.aborted()));
    let mut interrupted = pin!(shared.interrupted.cancelled());
    let mut open = true;
    while open || !in_flight.is_empty() {
        let room = slots - in_flight.len();
        // Cancel-safe: `receive` is, finished deliveries have settled themselves, and the other branches only wait.
        // Returning drops `in_flight`, which releases its deliveries.
        tokio::select! {
            biased;
            () = &mut lost => return Ok(()),
            () = &mut aborted => return Ok(()),
            () = &mut interrupted => return Ok(()),
            // Takes all that have finished by now: one round of this loop for each would cost too much.
            Some(_done) = async { in_flight.by_ref().ready_chunks(slots).next().await }, if room < slots => {}
            more = shared.receive(room, &mut batch), if open && room > 0 => {
                open = more;
                in_flight.extend(batch.drain(..).map(|guard| process(Arc::clone(&context), guard)));
            }
        }
    }
    Ok(())
}

fn lock(safe_mode: &Mutex<SafeMode>) -> std::sync::MutexGuard<'_, SafeMode> {
    safe_mode.lock().expect("safe mode's lock is never poisoned: nothing panics under it")
}
