//! A gate: whether work that needs a resource may begin now, later, or only as a trial.
//!
//! The code that watches the resource sets the gate, and tasks wait at it before they begin work. It decides nothing.

use std::future::pending;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, select_all};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The state of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateState {
    /// Work may begin.
    Open,
    /// Work may begin, but as little as possible at a time: it shows whether the resource is available again.
    Trial,
    /// No work may begin. From this time on it is as [`GateState::Trial`]; `None`: until the state is set again.
    Closed(Option<Instant>),
}

/// Sets a gate.
#[derive(Debug)]
pub struct GateControl {
    name: Arc<str>,
    state: watch::Sender<GateState>,
}

/// A gate to wait at. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    name: Arc<str>,
    state: watch::Receiver<GateState>,
}

impl GateControl {
    /// An open gate. The name is that of the resource; for the log.
    pub fn open(name: impl Into<Arc<str>>) -> Self {
        GateControl { name: name.into(), state: watch::Sender::new(GateState::Open) }
    }

    /// Sets the state.
    pub fn set(&self, state: GateState) {
        self.state.send_if_modified(|current| std::mem::replace(current, state) != state);
    }

    /// The gate.
    pub fn gate(&self) -> Gate {
        Gate { name: Arc::clone(&self.name), state: self.state.subscribe() }
    }
}

impl Gate {
    /// The name of the resource.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether work may begin without being a trial.
    pub fn is_open(&self) -> bool {
        *self.state.borrow() == GateState::Open
    }

    /// Whether work may begin now.
    pub fn is_passable(&self) -> bool {
        match *self.state.borrow() {
            GateState::Open | GateState::Trial => true,
            GateState::Closed(until) => until.is_some_and(|until| until <= Instant::now()),
        }
    }

    /// Resolves while work may begin without being a trial. Cancel-safe.
    pub async fn opened(&self) {
        self.wait_for(|state| state == GateState::Open).await;
    }

    /// Resolves while work may begin only as a trial, or not at all. Cancel-safe.
    pub async fn not_open(&self) {
        self.wait_for(|state| state != GateState::Open).await;
    }

    /// Resolves while work may begin. Cancel-safe.
    pub async fn passable(&self) {
        while !self.is_passable() {
            let GateState::Closed(until) = *self.state.borrow() else { return };
            let time_passed = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            // Cancel-safe: both only wait.
            tokio::select! {
                () = time_passed => {}
                () = self.wait_for(|state| state != GateState::Closed(until)) => {}
            }
        }
    }

    /// Resolves while no work may begin. Cancel-safe.
    pub async fn closed(&self) {
        self.wait_for(|state| match state {
            GateState::Open | GateState::Trial => false,
            GateState::Closed(until) => until.is_none_or(|until| until > Instant::now()),
        })
        .await;
    }

    async fn wait_for(&self, mut is_wanted: impl FnMut(GateState) -> bool) {
        if self.state.clone().wait_for(|state| is_wanted(*state)).await.is_err() {
            // The control was dropped, so the state cannot change any more.
            pending().await
        }
    }
}

/// Gates of which one that lets work begin is enough. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GateGroup {
    name: Arc<str>,
    gates: Arc<[Gate]>,
}

impl From<Gate> for GateGroup {
    fn from(gate: Gate) -> Self {
        GateGroup { name: Arc::clone(&gate.name), gates: Arc::new([gate]) }
    }
}

impl GateGroup {
    /// At least one gate. The name is that of all of them, for the log.
    pub fn new(name: impl Into<Arc<str>>, gates: Vec<Gate>) -> Self {
        GateGroup { name: name.into(), gates: gates.into() }
    }

    /// The name of the resources.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether work may begin without being a trial.
    pub fn is_open(&self) -> bool {
        self.gates.iter().any(Gate::is_open)
    }

    /// Whether work may begin now.
    pub fn is_passable(&self) -> bool {
        self.gates.iter().any(Gate::is_passable)
    }

    /// Resolves while work may begin without being a trial. Cancel-safe.
    pub async fn opened(&self) {
        self.any(|gate| gate.opened().boxed()).await;
    }

    /// Resolves while work may begin. Cancel-safe.
    pub async fn passable(&self) {
        self.any(|gate| gate.passable().boxed()).await;
    }

    /// Resolves while work may begin only as a trial, or not at all. Cancel-safe.
    pub async fn not_open(&self) {
        while self.is_open() {
            for gate in &*self.gates {
                gate.not_open().await;
            }
        }
    }

    /// Resolves while no work may begin. Cancel-safe.
    pub async fn closed(&self) {
        while self.is_passable() {
            for gate in &*self.gates {
                gate.closed().await;
            }
        }
    }

    async fn any<'g>(&'g self, wait: impl Fn(&'g Gate) -> BoxFuture<'g, ()>) {
        match &*self.gates {
            [] => pending().await,
            [gate] => wait(gate).await,
            gates => drop(select_all(gates.iter().map(wait)).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_group_is_closed_only_while_all_of_its_gates_are() {
        let (email, backup) = (GateControl::open("email"), GateControl::open("backup"));
        let group = GateGroup::new("both", vec![email.gate(), backup.gate()]);
        let closed = || GateState::Closed(None);
        email.set(closed());
        assert!(group.is_open() && group.is_passable());
        assert!(group.closed().now_or_never().is_none() && group.not_open().now_or_never().is_none());
        backup.set(GateState::Trial);
        assert!(!group.is_open() && group.is_passable());
        assert!(group.not_open().now_or_never().is_some() && group.closed().now_or_never().is_none());
        backup.set(closed());
        assert!(group.closed().now_or_never().is_some() && group.passable().now_or_never().is_none());
        let opens_later = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            email.set(GateState::Closed(Some(Instant::now() + Duration::from_secs(5))));
        };
        let begun = Instant::now();
        tokio::join!(group.passable(), opens_later);
        assert_eq!(begun.elapsed().as_secs(), 10);
        email.set(GateState::Open);
        group.opened().await;
        assert!(group.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_is_closed_for_a_time_becomes_a_trial_by_itself() {
        let control = GateControl::open("charge");
        let gate = control.gate();
        assert!(gate.is_open() && gate.closed().now_or_never().is_none());
        let begun = Instant::now();
        control.set(GateState::Closed(Some(begun + Duration::from_secs(10))));
        assert!(gate.closed().now_or_never().is_some() && gate.not_open().now_or_never().is_some());
        gate.passable().await;
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert!(gate.is_passable() && !gate.is_open() && gate.opened().now_or_never().is_none());
        assert!(gate.closed().now_or_never().is_none());
        control.set(GateState::Closed(None));
        let opens_later = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            control.set(GateState::Open);
        };
        tokio::join!(gate.opened(), opens_later);
        assert_eq!(begun.elapsed().as_secs(), 15);
    }
}
