//! The circuit breakers of all steps and notification channels: who may call, who waits, and what the intake, the log and the
//! status are shown.
//!
//! When a breaker opens and closes is decided in `breaker`. A breaker belongs to the names of a consumer and of its step or channel, so that a
//! reload keeps its state; it ends with the last handler that uses it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::breaker::{Breaker, BreakerState, CallResult, Ticket, Wait};
use super::breaker_settings::BreakerSettings;
use super::service::StepFailure;
use crate::gate::{Gate, GateControl};
use crate::telemetry::RepeatedLog;

/// Breakers that open, by consumer, kind and name.
static OPENED: RepeatedLog = RepeatedLog::new();

/// What a circuit breaker belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakerKind {
    /// A step, and its undo.
    Step,
    /// The server of a notification channel.
    Channel,
}

impl BreakerKind {
    /// How the log names it.
    fn as_str(self) -> &'static str {
        match self {
            BreakerKind::Step => "step",
            BreakerKind::Channel => "notification channel",
        }
    }
}

/// Breakers by consumer, kind and name.
type BreakersByName = BTreeMap<(Arc<str>, BreakerKind, Arc<str>), Weak<CircuitBreaker>>;

/// All circuit breakers. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct CircuitBreakers(Arc<Mutex<BreakersByName>>);

/// The circuit breaker of one step, of its calls and of those of its undo, or of one notification channel's server.
#[derive(Debug)]
pub struct CircuitBreaker {
    consumer: Arc<str>,
    kind: BreakerKind,
    name: Arc<str>,
    state: Mutex<SharedBreakerState>,
    gate: GateControl,
    changed: Notify,
}

#[derive(Debug)]
struct SharedBreakerState {
    breaker: Breaker,
    /// Deliveries that wait to make a call.
    waiting: usize,
    since: Timestamp,
    openings: u64,
    last_failure: Option<String>,
    last_code: Option<String>,
    /// It is open for another reason than failures, which is logged elsewhere.
    is_held: bool,
}

/// What the status shows about a breaker.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerReading {
    /// The consumer's name.
    pub consumer: Arc<str>,
    /// What it belongs to.
    pub kind: BreakerKind,
    /// The name of the step or channel.
    pub name: Arc<str>,
    /// Its state.
    pub state: BreakerState,
    /// When it last closed or, while it is not closed, when it first opened.
    pub since: Timestamp,
    /// How often it has opened, failed trials included.
    pub openings: u64,
    /// Calls within the window.
    pub calls: u32,
    /// Those that failed.
    pub failures: u32,
    /// Deliveries that wait to make a call.
    pub waiting: usize,
    /// The last failure that it has counted.
    pub last_failure: Option<String>,
    /// Its code, without what the service has answered.
    pub last_code: Option<String>,
}

impl CircuitBreakers {
    /// The breaker of a step or channel, with these settings from now on.
    pub fn breaker(
        &self,
        consumer: &Arc<str>,
        kind: BreakerKind,
        name: &Arc<str>,
        settings: BreakerSettings,
    ) -> Arc<CircuitBreaker> {
        let mut breakers = self.lock();
        breakers.retain(|_, breaker| breaker.strong_count() > 0);
        let key = (Arc::clone(consumer), kind, Arc::clone(name));
        if let Some(breaker) = breakers.get(&key).and_then(Weak::upgrade) {
            breaker.change(|state, now| {
                state.breaker.set(settings, now);
                state.is_held = false;
            });
            breaker.changed.notify_waiters();
            return breaker;
        }
        let breaker = Arc::new(CircuitBreaker::new(Arc::clone(consumer), kind, Arc::clone(name), settings));
        breakers.insert(key, Arc::downgrade(&breaker));
        breaker
    }

    /// The breaker of a channel that cannot be used until its settings are set again. `code` and `reason` are shown as the last failure.
    pub fn held(
        &self,
        consumer: &Arc<str>,
        kind: BreakerKind,
        name: &Arc<str>,
        settings: BreakerSettings,
        (code, reason): (&str, &str),
    ) -> Arc<CircuitBreaker> {
        let breaker = self.breaker(consumer, kind, name, settings);
        breaker.change(|state, _| {
            state.breaker.hold();
            state.last_failure = Some(format!("{code}: {reason}"));
            state.last_code = Some(code.to_owned());
            state.is_held = true;
        });
        breaker
    }

    /// What all breakers do now, ordered by consumer, kind and name.
    pub fn read(&self) -> Vec<BreakerReading> {
        let breakers: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        breakers.iter().map(|breaker| breaker.read()).collect()
    }

    /// The steps and channels whose breaker is not closed, as `<consumer>/<name>`, in this order.
    pub fn unavailable(&self) -> Vec<String> {
        let unavailable = self.read().into_iter().filter(|breaker| breaker.state != BreakerState::Closed);
        unavailable.map(|breaker| format!("{}/{}", breaker.consumer, breaker.name)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BreakersByName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CircuitBreaker {
    fn new(consumer: Arc<str>, kind: BreakerKind, name: Arc<str>, settings: BreakerSettings) -> Self {
        let state = SharedBreakerState {
            breaker: Breaker::new(settings, Instant::now()),
            waiting: 0,
            since: Timestamp::now(),
            openings: 0,
            last_failure: None,
            last_code: None,
            is_held: false,
        };
        let gate = GateControl::open(match kind {
            BreakerKind::Step => format!("the service of step {name:?}"),
            BreakerKind::Channel => format!("the server of notification channel {name:?}"),
        });
        CircuitBreaker { consumer, kind, name, state: Mutex::new(state), gate, changed: Notify::new() }
    }

    /// Closed while no delivery may be started because of this breaker.
    pub fn gate(&self) -> Gate {
        self.gate.gate()
    }

    /// Whether the service is called without restriction.
    pub(super) fn is_closed(&self) -> bool {
        self.change(|state, now| {
            state.breaker.advance(now);
            state.breaker.state() == BreakerState::Closed
        })
    }

    /// A call that may be made now, a trial included, and must be made at once: all other deliveries wait for the end of a trial. `None`
    /// if none may be made.
    pub fn try_begin_now(self: &Arc<Self>) -> Option<BreakerPermit> {
        let begun = self.change(|state, now| state.breaker.begin(now));
        begun.ok().map(|ticket| BreakerPermit { breaker: Arc::clone(self), ticket, result: CallResult::Abandoned })
    }

    /// Waits until a call may be made. Cancel-safe.
    pub async fn begin(self: &Arc<Self>) -> BreakerPermit {
        let ticket = self.wait(Breaker::begin).await;
        BreakerPermit { breaker: Arc::clone(self), ticket, result: CallResult::Abandoned }
    }

    /// Waits until a call may be made, which another delivery may begin first. Cancel-safe.
    pub async fn allows(&self) {
        self.wait(Breaker::allows).await;
    }

    async fn wait<T>(&self, attempt: impl Fn(&mut Breaker, Instant) -> Result<T, Wait>) -> T {
        let mut waiting = None;
        loop {
            // Before the state is read, so that no change is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let wait = match self.change(|state, now| attempt(&mut state.breaker, now)) {
                Ok(allowed) => return allowed,
                Err(wait) => wait,
            };
            waiting.get_or_insert_with(|| WaitingGuard::new(self));
            match wait {
                // Cancel-safe: both only wait.
                Wait::Until(until) => tokio::select! {
                    () = sleep_until(until) => {}
                    () = changed => {}
                },
                Wait::ForChange => changed.await,
            }
        }
    }

    fn read(&self) -> BreakerReading {
        self.change(|state, now| state.breaker.advance(now));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (calls, failures) = state.breaker.counts(Instant::now());
        BreakerReading {
            consumer: Arc::clone(&self.consumer),
            kind: self.kind,
            name: Arc::clone(&self.name),
            state: state.breaker.state(),
            since: state.since,
            openings: state.openings,
            calls,
            failures,
            waiting: state.waiting,
            last_failure: state.last_failure.clone(),
            last_code: state.last_code.clone(),
        }
    }

    /// Changes the state, sets the gate accordingly, and logs what became of the breaker.
    fn change<T>(&self, change: impl FnOnce(&mut SharedBreakerState, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.breaker.state();
        let result = change(&mut state, now);
        let after = state.breaker.state();
        if before != after {
            // Trials and the ramp-up are part of the time in which the service is unavailable.
            if before == BreakerState::Closed || after == BreakerState::Closed {
                state.since = Timestamp::now();
            }
            state.openings += u64::from(after == BreakerState::Open);
        }
        // Under the lock, so that the gate never shows an earlier state.
        self.gate.set(state.breaker.gate(state.waiting));
        let (last_failure, is_held) = (state.last_failure.clone(), state.is_held);
        drop(state);
        if before != after && !is_held {
            self.log(after, last_failure);
        }
        result
    }

    fn log(&self, state: BreakerState, last_failure: Option<String>) {
        let (consumer, of, name) = (&self.consumer, self.kind.as_str(), &self.name);
        match state {
            BreakerState::Open => {
                let Some(due) = OPENED.occurred((consumer, self.kind, name)) else { return };
                let repeated = due.repeated;
                warn!(
                    %consumer, of, %name, last_failure, repeated,
                    "a circuit breaker is open: the service fails too often and is not called; unless a fallback takes over, the \
                     consumer's intake stops"
                );
            }
            BreakerState::HalfOpen | BreakerState::RampUp => {}
            BreakerState::Closed => {
                let openings = OPENED.ended((consumer, self.kind, name));
                info!(%consumer, of, %name, openings, "a circuit breaker is closed: the service works again");
            }
        }
    }
}

/// A call that may be made. Dropping it without an end abandons the call.
#[derive(Debug)]
pub struct BreakerPermit {
    breaker: Arc<CircuitBreaker>,
    ticket: Ticket,
    result: CallResult,
}

impl BreakerPermit {
    /// The call has ended: with this failure, or without one.
    pub fn ended(mut self, failure: Option<&StepFailure>) {
        let unavailable = failure.filter(|failure| failure.is_unavailable());
        if let Some(failure) = unavailable {
            self.breaker.change(|state, _| {
                state.last_failure = Some(failure.to_string());
                state.last_code = Some(failure.failure.code.clone());
            });
        }
        self.result = if unavailable.is_some() { CallResult::Failed } else { CallResult::Answered };
    }
}

impl Drop for BreakerPermit {
    fn drop(&mut self) {
        self.breaker.change(|state, now| state.breaker.end(self.ticket, self.result, now));
        self.breaker.changed.notify_waiters();
    }
}

/// Counts a delivery as waiting until it is dropped.
struct WaitingGuard<'a>(&'a CircuitBreaker);

impl<'a> WaitingGuard<'a> {
    fn new(breaker: &'a CircuitBreaker) -> Self {
        breaker.change(|state, _| state.waiting += 1);
        WaitingGuard(breaker)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.change(|state, _| state.waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::recovery::{Failure, FailureKind};
    use crate::steps::FailureCause;

    const SECOND: Duration = Duration::from_secs(1);
    const SETTINGS: BreakerSettings =
        BreakerSettings { failures: 0.5, window: Duration::from_secs(30), open: Duration::from_secs(10) };

    fn down() -> StepFailure {
        StepFailure::new(Failure::new(FailureKind::Transient, "http_503", "closed"), FailureCause::Unanswered)
    }

    fn breaker(breakers: &CircuitBreakers) -> Arc<CircuitBreaker> {
        breakers.breaker(&"order".into(), BreakerKind::Step, &"charge".into(), SETTINGS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_that_is_held_lets_no_call_through_until_its_settings_are_set_again() {
        let breakers = CircuitBreakers::default();
        let fault = ("templates_faulty", "de/processed.txt:3: unknown variable");
        let held = breakers.held(&"order".into(), BreakerKind::Step, &"charge".into(), SETTINGS, fault);
        tokio::time::advance(100 * SETTINGS.open).await;
        assert!(held.try_begin_now().is_none() && !held.gate().is_passable());
        let reading = &breakers.read()[0];
        assert_eq!((reading.state, reading.last_code.as_deref()), (BreakerState::Open, Some("templates_faulty")));
        let mut waiting = std::pin::pin!(held.begin());
        assert!(waiting.as_mut().now_or_never().is_none());
        breaker(&breakers);
        waiting.await.ended(None);
        assert!(held.gate().is_open() && held.is_closed());
    }

    async fn open(breaker: &Arc<CircuitBreaker>) {
        for _ in 0..10 {
            breaker.begin().await.ended(Some(&down()));
        }
        assert_eq!(breaker.read().state, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn of_all_that_wait_one_tries_the_service_at_a_time() {
        let breakers = CircuitBreakers::default();
        let breaker = breaker(&breakers);
        open(&breaker).await;
        let begun = Instant::now();
        let (calls, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let (breaker, calls) = (Arc::clone(&breaker), calls.clone());
                tokio::spawn(async move {
                    let permit = breaker.begin().await;
                    calls.send(Instant::now() - begun).unwrap();
                    // The service is away for a minute.
                    let works = begun.elapsed() >= 60 * SECOND;
                    tokio::time::sleep(SECOND / 10).await;
                    permit.ended((!works).then(down).as_ref());
                })
            })
            .collect();
        tokio::time::sleep(5 * SECOND).await;
        assert!(receiver.try_recv().is_err());
        assert_eq!(breaker.read().waiting, 100);
        let opened = breaker.read().since;
        tokio::time::sleep(30 * SECOND).await;
        assert!(
            breaker.read().openings > 1 && breaker.read().since == opened,
            "trials that fail do not hide how long it lasts"
        );
        for waiting in waiting {
            waiting.await.unwrap();
        }
        let mut tries = Vec::new();
        while let Ok(at) = receiver.try_recv() {
            tries.push(at.as_secs());
        }
        assert_eq!(tries[..7], [10, 20, 30, 40, 50, 60, 60], "one every ten seconds, then ever more");
        assert_eq!((tries.len(), breaker.read().state, breaker.read().openings), (100, BreakerState::Closed, 6));
        assert!(begun.elapsed() < 62 * SECOND, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_intake_is_closed_while_it_is_open_and_a_reload_keeps_that() {
        let breakers = CircuitBreakers::default();
        let first = breaker(&breakers);
        assert!(first.gate().is_open() && breakers.unavailable().is_empty());
        open(&first).await;
        let reloaded = breaker(&breakers);
        drop(first);
        assert!(!reloaded.is_closed() && !reloaded.gate().is_passable());
        assert_eq!(breakers.unavailable(), ["order/charge"]);
        assert!(breakers.read()[0].last_failure.as_ref().is_some_and(|failure| failure.contains("http_503")));
        reloaded.gate().passable().await;
        let permit = reloaded.begin().now_or_never().expect("it tries the service");
        assert!(!reloaded.gate().is_passable(), "one call is enough");
        drop(permit);
        assert!(reloaded.gate().is_passable(), "it was abandoned");
        drop(reloaded);
        assert!(breakers.read().is_empty(), "it ends with its last handler");
        assert!(breaker(&breakers).is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_waits_tries_the_service_instead_of_a_new_one() {
        let breakers = CircuitBreakers::default();
        let breaker = breaker(&breakers);
        open(&breaker).await;
        let mut waiting = Box::pin(breaker.begin());
        assert!(waiting.as_mut().now_or_never().is_none());
        tokio::time::sleep(11 * SECOND).await;
        assert!(!breaker.gate().is_passable());
        drop(waiting);
        assert!(breaker.gate().is_passable(), "it was released");
        assert_eq!(breaker.read().waiting, 0);
    }
}
