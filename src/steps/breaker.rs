//! When a step's service is called and when not: the state machine of a circuit breaker. Pure: the caller supplies the time.
//!
//! ```text
//! closed ── too many calls fail ──► open ── time passes ──► half-open: one call
//!   ▲                                ▲                        │ it fails │ it succeeds
//!   │                                └────────────────────────┘          ▼
//!   └───────── enough calls at the same time, or a window ────────── ramp-up: 2, 4, 8, … calls at the same time
//! ```
//! While it ramps up, too many failures open it again. With few calls, the ramp-up ends after the length of the window. The results
//! of calls that began before it opened do not count. One that is held, which is shown as open, lets no call through until its settings are
//! set again.

use tokio::time::Instant;

use super::breaker_settings::{BreakerSettings, MIN_CALLS};
use super::call_window::CallWindow;
use crate::gate::GateState;

/// Calls at the same time when the ramp-up begins.
const FIRST_RAMP: u32 = 2;
/// The ramp-up ends after this many calls at the same time.
const LAST_RAMP: u32 = 32;

/// The state of a breaker, for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// All calls are made.
    Closed,
    /// No call is made.
    Open,
    /// One call tries the service.
    HalfOpen,
    /// The number of calls at the same time grows.
    RampUp,
}

impl BreakerState {
    /// Every state.
    pub const ALL: [BreakerState; 4] =
        [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen, BreakerState::RampUp];

    /// Its name in the status and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
            BreakerState::RampUp => "ramp_up",
        }
    }
}

/// What a call says about the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallResult {
    /// The service answered, also if it refused.
    Answered,
    /// The service does not seem to work.
    Failed,
    /// The call was dropped before its end.
    Abandoned,
}

/// When a call that may not be made now may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// At this time.
    Until(Instant),
    /// When the state changes.
    ForChange,
}

/// A call that may be made; handed back when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    generation: u64,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Breaker {
    settings: BreakerSettings,
    phase: BreakerPhase,
    window: CallWindow,
    /// One more each time it opens and each time it half-opens.
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum BreakerPhase {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        is_tried: bool,
    },
    RampUp {
        limit: u32,
        in_flight: u32,
        answered: u32,
        until: Instant,
    },
    /// No call is made until the settings are set again.
    Held,
}

impl Breaker {
    pub(super) fn new(settings: BreakerSettings, now: Instant) -> Self {
        Breaker { settings, phase: BreakerPhase::Closed, window: CallWindow::new(settings.window, now), generation: 0 }
    }

    /// Changes the settings and keeps the state. One that is open stays so for at most the new time; one that is held closes.
    pub(super) fn set(&mut self, settings: BreakerSettings, now: Instant) {
        if settings.window != self.settings.window {
            self.window = CallWindow::new(settings.window, now);
        }
        match &mut self.phase {
            BreakerPhase::Open { until } => *until = (*until).min(now + settings.open),
            BreakerPhase::Held => self.phase = BreakerPhase::Closed,
            BreakerPhase::Closed | BreakerPhase::HalfOpen { .. } | BreakerPhase::RampUp { .. } => {}
        }
        self.settings = settings;
    }

    /// Lets no call through until the settings are set again.
    pub(super) fn hold(&mut self) {
        self.generation += 1;
        self.phase = BreakerPhase::Held;
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.phase {
            BreakerPhase::Closed => BreakerState::Closed,
            BreakerPhase::Open { .. } | BreakerPhase::Held => BreakerState::Open,
            BreakerPhase::HalfOpen { .. } => BreakerState::HalfOpen,
            BreakerPhase::RampUp { .. } => BreakerState::RampUp,
        }
    }

    /// Whether more deliveries may be started, if this many already wait to make a call.
    pub(super) fn gate(&self, waiting: usize) -> GateState {
        match self.phase {
            BreakerPhase::Closed => GateState::Open,
            // One of those that wait tries the service.
            BreakerPhase::Open { .. } | BreakerPhase::HalfOpen { .. } | BreakerPhase::RampUp { .. } if waiting > 0 => {
                GateState::Closed(None)
            }
            BreakerPhase::Open { until } => GateState::Closed(Some(until)),
            BreakerPhase::Held => GateState::Closed(None),
            BreakerPhase::HalfOpen { is_tried: true } => GateState::Closed(None),
            BreakerPhase::HalfOpen { is_tried: false } | BreakerPhase::RampUp { .. } => GateState::Trial,
        }
    }

    /// Ends a ramp-up that has lasted long enough.
    pub(super) fn advance(&mut self, now: Instant) {
        if let BreakerPhase::RampUp { until, .. } = self.phase
            && now >= until
        {
            self.phase = BreakerPhase::Closed;
        }
    }

    /// Whether a call may be made now; if not, when to ask again.
    pub(super) fn allows(&mut self, now: Instant) -> Result<(), Wait> {
        self.advance(now);
        match self.phase {
            BreakerPhase::Closed | BreakerPhase::HalfOpen { is_tried: false } => Ok(()),
            BreakerPhase::Open { until } if now < until => Err(Wait::Until(until)),
            BreakerPhase::Open { .. } => Ok(()),
            BreakerPhase::HalfOpen { is_tried: true } | BreakerPhase::Held => Err(Wait::ForChange),
            BreakerPhase::RampUp { limit, in_flight, .. } if in_flight < limit => Ok(()),
            BreakerPhase::RampUp { until, .. } => Err(Wait::Until(until)),
        }
    }

    /// Begins a call, if one may be made now.
    pub(super) fn begin(&mut self, now: Instant) -> Result<Ticket, Wait> {
        self.allows(now)?;
        match &mut self.phase {
            // No call is allowed while it is held.
            BreakerPhase::Closed | BreakerPhase::Held => {}
            BreakerPhase::Open { .. } => {
                self.generation += 1;
                self.phase = BreakerPhase::HalfOpen { is_tried: true };
            }
            BreakerPhase::HalfOpen { is_tried } => *is_tried = true,
            BreakerPhase::RampUp { in_flight, .. } => *in_flight += 1,
        }
        Ok(Ticket { generation: self.generation })
    }

    /// Ends a call.
    pub(super) fn end(&mut self, ticket: Ticket, result: CallResult, now: Instant) {
        if ticket.generation != self.generation {
            return;
        }
        self.advance(now);
        match result {
            CallResult::Answered => self.window.add(false, now),
            CallResult::Failed => self.window.add(true, now),
            CallResult::Abandoned => {}
        }
        match (&mut self.phase, result) {
            (BreakerPhase::Closed, _) => {
                if self.fails_too_often(MIN_CALLS, now) {
                    self.open(now);
                }
            }
            // A call begun in this generation has left it only by its end.
            (BreakerPhase::Open { .. } | BreakerPhase::Held, _) => {}
            (BreakerPhase::HalfOpen { .. }, CallResult::Answered) => {
                self.window = CallWindow::new(self.settings.window, now);
                self.window.add(false, now);
                let until = now + self.settings.window;
                self.phase = BreakerPhase::RampUp { limit: FIRST_RAMP, in_flight: 0, answered: 0, until };
            }
            (BreakerPhase::HalfOpen { .. }, CallResult::Failed) => self.open(now),
            (BreakerPhase::HalfOpen { is_tried }, CallResult::Abandoned) => *is_tried = false,
            (BreakerPhase::RampUp { limit, in_flight, answered, until: _ }, result) => {
                *in_flight = in_flight.saturating_sub(1);
                if result == CallResult::Answered {
                    *answered += 1;
                }
                if *answered >= *limit {
                    (*limit, *answered) = (*limit * 2, 0);
                }
                if *limit > LAST_RAMP {
                    self.phase = BreakerPhase::Closed;
                } else if result == CallResult::Failed && self.fails_too_often(1, now) {
                    self.open(now);
                }
            }
        }
    }

    /// Calls and failures within the window.
    pub(super) fn counts(&mut self, now: Instant) -> (u32, u32) {
        self.window.counts(now)
    }

    fn fails_too_often(&mut self, min_calls: u32, now: Instant) -> bool {
        let (calls, failures) = self.window.counts(now);
        calls >= min_calls && f64::from(failures) >= self.settings.failures * f64::from(calls)
    }

    fn open(&mut self, now: Instant) {
        self.generation += 1;
        self.phase = BreakerPhase::Open { until: now + self.settings.open };
        self.window = CallWindow::new(self.settings.window, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const SETTINGS: BreakerSettings =
        BreakerSettings { failures: 0.5, window: Duration::from_secs(30), open: Duration::from_secs(10) };

    /// One line of a table: at a time in seconds, something happens, and then the breaker is in this state.
    enum Do {
        /// So many calls begin and end so.
        Calls(u32, CallResult),
        /// A call begins; its number is used later.
        Begin(usize),
        /// No call may begin.
        Refused,
        /// The call of this number ends so.
        End(usize, CallResult),
    }
    use BreakerState as State;
    use CallResult::{Abandoned, Answered, Failed};
    use Do::{Begin, Calls, End, Refused};

    fn play(settings: BreakerSettings, table: &[(u64, Do, State)]) {
        let start = Instant::now();
        let mut breaker = Breaker::new(settings, start);
        let mut tickets = std::collections::BTreeMap::new();
        for (line, (seconds, action, state)) in table.iter().enumerate() {
            let now = start + Duration::from_secs(*seconds);
            match action {
                Calls(count, result) => (0..*count).for_each(|_| {
                    let ticket = breaker.begin(now).unwrap_or_else(|_| panic!("line {line}: a call may be made"));
                    breaker.end(ticket, *result, now);
                }),
                Begin(number) => {
                    tickets.insert(*number, breaker.begin(now).unwrap_or_else(|_| panic!("line {line}: may begin")));
                }
                Refused => assert!(breaker.begin(now).is_err(), "line {line}: no call may be made"),
                End(number, result) => breaker.end(tickets[number], *result, now),
            }
            assert_eq!(breaker.state(), *state, "line {line}");
        }
    }

    #[test]
    fn it_opens_when_half_of_at_least_ten_calls_fail() {
        play(
            SETTINGS,
            &[(0, Calls(9, Failed), State::Closed), (0, Calls(1, Failed), State::Open), (9, Refused, State::Open)],
        );
        play(
            SETTINGS,
            &[
                (0, Calls(6, Answered), State::Closed),
                (1, Calls(5, Failed), State::Closed),
                (2, Calls(1, Failed), State::Open),
            ],
        );
        play(SETTINGS, &[(0, Calls(1000, Answered), State::Closed), (1, Calls(999, Failed), State::Closed)]);
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        play(
            SETTINGS,
            &[
                (0, Calls(9, Failed), State::Closed),
                (31, Calls(1, Failed), State::Closed),
                (40, Calls(8, Failed), State::Closed),
                (41, Calls(1, Failed), State::Open),
            ],
        );
        // A slow service: fewer calls than needed within any window.
        play(SETTINGS, &(0..20).map(|call| (call * 4, Calls(1, Failed), State::Closed)).collect::<Vec<_>>());
    }

    #[test]
    fn after_a_time_one_call_tries_and_a_failure_opens_it_again() {
        play(
            SETTINGS,
            &[
                (0, Calls(10, Failed), State::Open),
                (10, Begin(1), State::HalfOpen),
                (10, Refused, State::HalfOpen),
                (12, End(1, Failed), State::Open),
                (21, Refused, State::Open),
                (22, Begin(2), State::HalfOpen),
                (23, End(2, Abandoned), State::HalfOpen),
                (23, Begin(3), State::HalfOpen),
                (24, End(3, Answered), State::RampUp),
            ],
        );
    }

    #[test]
    fn it_ramps_up_and_closes_again() {
        let opened = |rest: Vec<(u64, Do, State)>| {
            let start = vec![(0, Calls(10, Failed), State::Open), (10, Calls(1, Answered), State::RampUp)];
            start.into_iter().chain(rest).collect::<Vec<_>>()
        };
        play(
            SETTINGS,
            &opened(vec![
                (10, Begin(1), State::RampUp),
                (10, Begin(2), State::RampUp),
                (10, Refused, State::RampUp),
                (11, End(1, Answered), State::RampUp),
                (11, End(2, Answered), State::RampUp),
                (11, Begin(3), State::RampUp),
                (11, Begin(4), State::RampUp),
                (11, Begin(5), State::RampUp),
                (11, Begin(6), State::RampUp),
                (11, Refused, State::RampUp),
                (12, End(3, Abandoned), State::RampUp),
                (12, Calls(3 + 8 + 16, Answered), State::RampUp),
                (12, Calls(32, Answered), State::RampUp),
                (12, Calls(1, Answered), State::Closed),
                (12, End(4, Failed), State::Closed),
            ]),
        );
        // The first call that fails is half of two.
        play(SETTINGS, &opened(vec![(10, Calls(1, Failed), State::Open)]));
        play(SETTINGS, &opened(vec![(10, Calls(2, Answered), State::RampUp), (10, Calls(1, Failed), State::RampUp)]));
    }

    #[test]
    fn a_ramp_up_with_few_calls_ends_after_a_window() {
        play(
            SETTINGS,
            &[
                (0, Calls(10, Failed), State::Open),
                (10, Calls(1, Answered), State::RampUp),
                (30, Calls(1, Answered), State::RampUp),
                (40, Calls(1, Answered), State::Closed),
            ],
        );
    }

    #[test]
    fn calls_begun_before_it_opened_change_nothing() {
        play(
            SETTINGS,
            &[
                (0, Begin(1), State::Closed),
                (0, Begin(2), State::Closed),
                (0, Begin(3), State::Closed),
                (0, Calls(10, Failed), State::Open),
                (5, End(1, Answered), State::Open),
                (10, Begin(4), State::HalfOpen),
                (11, End(2, Failed), State::HalfOpen),
                (11, End(4, Answered), State::RampUp),
                (12, End(3, Failed), State::RampUp),
            ],
        );
    }

    #[test]
    fn a_change_of_settings_keeps_the_state() {
        let start = Instant::now();
        let mut breaker = Breaker::new(SETTINGS, start);
        (0..10).for_each(|_| {
            let ticket = breaker.begin(start).unwrap();
            breaker.end(ticket, Failed, start);
        });
        assert_eq!(breaker.begin(start), Err(Wait::Until(start + SETTINGS.open)));
        breaker.set(BreakerSettings { open: SECOND, ..SETTINGS }, start);
        assert_eq!(breaker.begin(start), Err(Wait::Until(start + SECOND)));
        breaker.set(BreakerSettings { open: 60 * SECOND, ..SETTINGS }, start);
        assert_eq!(breaker.begin(start), Err(Wait::Until(start + SECOND)));
    }

    #[test]
    fn deliveries_are_started_only_if_none_waits_to_try_the_service() {
        let start = Instant::now();
        let mut breaker = Breaker::new(SETTINGS, start);
        assert_eq!((breaker.gate(0), breaker.gate(9)), (GateState::Open, GateState::Open));
        for _ in 0..10 {
            let ticket = breaker.begin(start).unwrap();
            breaker.end(ticket, Failed, start);
        }
        let until = start + SETTINGS.open;
        assert_eq!((breaker.gate(0), breaker.gate(1)), (GateState::Closed(Some(until)), GateState::Closed(None)));
        let ticket = breaker.begin(until).unwrap();
        assert_eq!(breaker.gate(0), GateState::Closed(None), "a call tries it");
        breaker.end(ticket, Abandoned, until);
        assert_eq!((breaker.gate(0), breaker.gate(1)), (GateState::Trial, GateState::Closed(None)));
        let ticket = breaker.begin(until).unwrap();
        breaker.end(ticket, Answered, until);
        assert_eq!((breaker.gate(0), breaker.gate(1)), (GateState::Trial, GateState::Closed(None)));
    }
}
