//! Takes the messages out of one queue: subscription after subscription, until it is stopped.
//!
//! A delivery is acked once the ledger has stored it. One that cannot be stored (its body is larger than orderd reads, or the ledger
//! refuses it) is held unsettled, so that the broker delivers those behind it; it returns to the queue with the end of the
//! subscription, which is renewed before the broker's acknowledgement timeout. So it is tried again every few minutes.
//!
//! Orders come first: it subscribes after all consumers have, and gives way when they lack a connection or the disk gets full.

mod conditions;
mod storing;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::conditions::{can_record, cannot_record_now, ends_subscription, outage_for, until};
use super::letter_parser::LetterParser;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::ledger::{LedgerState, LetterSource, LetterWriter, session_id};
use crate::message::{Consumer, LossCause, MAX_HOLD, Settlement, Subscription};
use crate::metrics::{Collected, CollectionPause, CollectorCounters, KeptCause};
use crate::shutdown::Shutdown;
use crate::telemetry::RepeatedLog;

/// Deliveries that are stored at a time. How much memory they take is limited too: `broker.max_unsettled_bytes`.
const SLOTS: usize = 200;
/// Upper bound of the first wait between attempts to subscribe.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A subscription that lived longer than this resets the back-off.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(10);
/// Of the broker's acknowledgement timeout, once it is known, this part at most.
const MAX_HOLD_PART: u32 = 2;
/// The longest that messages are held which stay in the queue: half of RabbitMQ's usual acknowledgement timeout. Each renewal
/// transfers them again, so each holds them for twice as long as the one before.
const MAX_KEPT_HOLD: Duration = Duration::from_secs(15 * 60);
/// After this time a subscription has received again what stays in the queue.
const KEPT_RECEIVED_AFTER: Duration = Duration::from_secs(10);
/// How long the ledger's answers about the other messages are waited for, once it has not recorded one.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// The wait after the ledger had no room for a message.
const NO_ROOM_WAIT: Duration = Duration::from_secs(60);

/// Failed attempts to subscribe, by queue.
static FAILURES: RepeatedLog = RepeatedLog::new();
/// Messages that stay in their queue, by queue and cause.
static KEPT: RepeatedLog = RepeatedLog::new();

/// What collectors are built from.
#[derive(Clone)]
pub struct CollectorDeps {
    /// Where deliveries come from.
    pub source: Arc<dyn Consumer>,
    /// Where they are stored.
    pub ledger: Arc<dyn LetterWriter>,
    /// Whether it can record.
    pub ledger_state: watch::Receiver<LedgerState>,
    /// Why nothing is to be collected for now.
    pub pause: watch::Receiver<Option<CollectionPause>>,
    /// Reads what they say.
    pub parser: Arc<LetterParser>,
    /// The longest wait between attempts to subscribe.
    pub reconnect_max: Duration,
    /// Stops all of them.
    pub shutdown: Shutdown,
}

/// The collector of one queue.
pub struct Collector {
    queue: LetterSource,
    deps: CollectorDeps,
    counters: Arc<CollectorCounters>,
    /// Cancelled when this collector is to stop.
    stop: CancellationToken,
    /// Bodies are read one at a time: one may take much memory once it is decompressed.
    reading: Arc<Semaphore>,
    /// How long a delivery may be held, as far as the broker's acknowledgement timeout is known.
    longest_hold: Mutex<Duration>,
}

/// What a delivery has come to.
enum Outcome {
    Collected(Collected),
    /// It stays in the queue.
    Kept(KeptCause),
    /// The ledger has no room for it.
    NoRoom,
    /// The ledger cannot record it now.
    NotRecorded,
}

/// Why a subscription has ended.
enum Ended {
    Stopped,
    /// It is to be opened again, with room for the messages that stay in the queue. `held`: they were held as long as they may be.
    Renewed {
        kept: usize,
        held: bool,
    },
    Lost(LossCause),
    NoRoom,
    NotRecorded,
}

/// A subscription in the counters, also if the collector dies.
struct Serving<'c>(&'c CollectorCounters);

impl<'c> Serving<'c> {
    fn begin(counters: &'c CollectorCounters) -> Self {
        counters.subscribed();
        Serving(counters)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.unsubscribed();
    }
}

impl Collector {
    /// A collector that does not run yet. It runs until `stop` is cancelled, or a shutdown begins.
    pub fn new(
        queue: LetterSource,
        deps: CollectorDeps,
        counters: Arc<CollectorCounters>,
        stop: CancellationToken,
    ) -> Self {
        let (reading, longest_hold) = (Arc::new(Semaphore::new(1)), Mutex::new(MAX_KEPT_HOLD));
        Collector { queue, deps, counters, stop, reading, longest_hold }
    }

    /// Collects until it is stopped. What it has received by then is stored, unless the ledger cannot record.
    ///
    /// # Errors
    /// None.
    pub async fn run(self: Arc<Self>) -> Result<(), Infallible> {
        let (mut failures, mut kept, mut renewals) = (0_u32, 0, 0_u32);
        while !self.is_stopping() {
            // Cancel-safe: both only wait.
            tokio::select! {
                () = self.may_collect() => {}
                () = self.stopping() => break,
            }
            let prefetch = u16::try_from(SLOTS + 2 * kept).unwrap_or(u16::MAX);
            // A shutdown may drop the attempt: the client cleans up after itself.
            let subscribed = tokio::select! {
                subscribed = self.deps.source.subscribe(self.queue.as_str(), prefetch) => subscribed,
                () = self.deps.shutdown.begun() => break,
            };
            match subscribed {
                Ok(subscription) => {
                    let failed = FAILURES.ended(self.queue);
                    info!(queue = self.queue.as_str(), prefetch, failed, "collecting dead letters");
                    let since = Instant::now();
                    let hold = self.kept_hold(renewals);
                    match self.serve(subscription, usize::from(prefetch), hold).await {
                        Ended::Stopped => break,
                        Ended::Renewed { kept: found, held } => {
                            renewals = if found == 0 { 0 } else { renewals + u32::from(held) };
                            (kept, failures) = (found, 0);
                            continue;
                        }
                        Ended::Lost(cause) => {
                            self.log_loss(cause);
                            failures = if since.elapsed() > BACKOFF_RESET_AFTER { 0 } else { failures + 1 };
                        }
                        Ended::NoRoom => {
                            self.wait_for_room().await;
                            continue;
                        }
                        Ended::NotRecorded => failures += 1,
                    }
                }
                Err(error) => {
                    failures += 1;
                    self.counters.subscribe_failed(chain(&error));
                    if let Some(due) = FAILURES.occurred(self.queue) {
                        let (queue, repeated) = (self.queue.as_str(), due.repeated);
                        warn!(queue, error = %chain(&error), repeated, "cannot collect dead letters; retrying");
                    }
                }
            }
            let backoff = Backoff { first: FIRST_WAIT, max: self.deps.reconnect_max };
            // Cancel-safe: both only wait.
            tokio::select! {
                () = tokio::time::sleep(backoff.wait(failures.saturating_sub(1), fastrand::f64())) => {}
                () = self.stopping() => {}
            }
        }
        Ok(())
    }

    /// Resolves when the ledger can record and nothing has precedence. Cancel-safe.
    async fn may_collect(&self) {
        let mut pause = self.deps.pause.clone();
        loop {
            until(&self.deps.ledger_state, can_record).await;
            let cause = *pause.borrow_and_update();
            self.counters.set_pause(cause);
            if cause.is_none() {
                return;
            }
            if pause.changed().await.is_err() {
                // The sender was dropped, so the cause cannot change any more.
                std::future::pending().await
            }
        }
    }

    /// Lets the orders have what room there is for a while.
    async fn wait_for_room(&self) {
        self.counters.set_pause(Some(CollectionPause::DiskSpace));
        // Cancel-safe: both only wait.
        tokio::select! {
            () = tokio::time::sleep(NO_ROOM_WAIT) => {}
            () = self.stopping() => {}
        }
    }

    async fn serve(&self, subscription: Subscription, prefetch: usize, kept_hold: Duration) -> Ended {
        let serving = Serving::begin(&self.counters);
        let Subscription { mut deliveries, settler, .. } = subscription;
        let session: Arc<str> = session_id().into();
        let mut in_flight = FuturesUnordered::new();
        let (mut is_open, mut cancelled, mut kept) = (true, false, 0_usize);
        let (mut renewed, mut held) = (false, false);
        // Only once something is kept.
        let mut kept_until = Instant::now() + kept_hold;
        let mut kept_received = pin!(tokio::time::sleep(KEPT_RECEIVED_AFTER));
        let mut kept_is_known = false;
        let mut lost = settler.ended();
        let mut cannot_record = pin!(outage_for(&self.deps.ledger_state, self.max_hold()));
        let mut given_way = pin!(until(&self.deps.pause, ends_subscription));
        let ended = loop {
            if !is_open && in_flight.is_empty() {
                break if renewed && !cancelled { Ended::Renewed { kept, held } } else { Ended::Stopped };
            }
            // Cancel-safe: `next` is, and the others only wait.
            tokio::select! {
                biased;
                cause = &mut lost => break Ended::Lost(cause),
                () = self.deps.shutdown.aborted() => break Ended::Stopped,
                Some((id, outcome)) = in_flight.next(), if !in_flight.is_empty() => match outcome {
                    Outcome::Collected(collected) => {
                        settler.settle(id, Settlement::Ack);
                        self.counters.collected(collected);
                    }
                    Outcome::Kept(cause) => {
                        kept += 1;
                        kept_until = if kept == 1 { Instant::now() + kept_hold } else { kept_until };
                        self.counters.kept(cause);
                        self.log_kept(cause);
                    }
                    Outcome::NoRoom => break Ended::NoRoom,
                    Outcome::NotRecorded => break Ended::NotRecorded,
                },
                () = self.stopping(), if !cancelled => {
                    cancelled = true;
                    settler.cancel_when_idle().await;
                }
                // What the ledger has not answered by then returns to the queue.
                () = until(&self.deps.ledger_state, cannot_record_now), if cancelled => break Ended::Stopped,
                () = &mut cannot_record => break Ended::Renewed { kept, held },
                () = &mut kept_received, if !kept_is_known => {
                    kept_is_known = true;
                    self.counters.has_received_kept();
                }
                () = sleep_until(kept_until), if kept > 0 && !renewed && !cancelled => {
                    (renewed, held) = (true, true);
                    settler.cancel().await;
                }
                () = &mut given_way, if !renewed && !cancelled => {
                    renewed = true;
                    settler.cancel().await;
                }
                delivery = deliveries.next(), if is_open => match delivery {
                    None => is_open = false,
                    Some(delivery) => {
                        self.counters.received();
                        in_flight.push(self.store(delivery, Arc::clone(&session)));
                    }
                },
            }
            // Most slots are taken by messages that stay in the queue.
            if !renewed && !cancelled && kept + SLOTS / 2 > prefetch && prefetch < usize::from(u16::MAX) {
                renewed = true;
                settler.cancel().await;
            }
        };
        // The ledger may have stored the others, which then are acked.
        if matches!(ended, Ended::NoRoom | Ended::NotRecorded) {
            settler.cancel().await;
            let rest = async {
                while let Some((id, outcome)) = in_flight.next().await {
                    if let Outcome::Collected(collected) = outcome {
                        settler.settle(id, Settlement::Ack);
                        self.counters.collected(collected);
                    }
                }
            };
            // What it has not answered by then may still be stored, and is delivered again.
            let _ = timeout(LAST_ANSWERS, rest).await;
        }
        drop(in_flight);
        drop(serving);
        // An error means that the connection is lost: the last acks may be, too.
        let _ = settler.close().await;
        ended
    }

    fn is_stopping(&self) -> bool {
        self.stop.is_cancelled() || self.deps.shutdown.has_begun()
    }

    /// Resolves when nothing more is to be collected. Cancel-safe.
    async fn stopping(&self) {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.deps.shutdown.begun() => {}
        }
    }

    fn longest_hold(&self) -> Duration {
        *self.longest_hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long messages may wait for the ledger.
    fn max_hold(&self) -> Duration {
        self.longest_hold().min(MAX_HOLD)
    }

    /// How long messages may be held that stay in the queue, after this many renewals for them.
    fn kept_hold(&self, renewals: u32) -> Duration {
        MAX_HOLD.saturating_mul(1_u32.checked_shl(renewals).unwrap_or(u32::MAX)).min(self.longest_hold())
    }

    fn log_loss(&self, cause: LossCause) {
        let queue = self.queue.as_str();
        match cause {
            LossCause::AckTimeout(limit) => {
                let hold = (limit / MAX_HOLD_PART).min(MAX_KEPT_HOLD);
                *self.longest_hold.lock().unwrap_or_else(PoisonError::into_inner) = hold;
                warn!(
                    queue,
                    ?limit,
                    ?hold,
                    "the broker's consumer_timeout is short; holding dead letters no longer than this"
                );
            }
            LossCause::Other(reason) => warn!(queue, reason, "lost the subscription to a dead letter queue"),
        }
    }

    fn log_kept(&self, cause: KeptCause) {
        let Some(due) = KEPT.occurred((self.queue, cause.as_str())) else { return };
        let (queue, repeated) = (self.queue.as_str(), due.repeated);
        match cause {
            KeptCause::TooLarge => error!(
                queue,
                repeated,
                "a dead letter stays in its queue: its body is larger than broker.max_body, or than 64 MiB; raise the former and \
                 restart, or take the message out"
            ),
            KeptCause::Refused => {
                error!(queue, repeated, "a dead letter stays in its queue: the ledger refuses it; report it");
            }
        }
    }
}

#[cfg(test)]
mod tests;
