//! Whether workers may start deliveries: not while the ledger cannot record, nor while something else that the handler needs is
//! unavailable, such as an event file or a step's service; and not faster than the consumer's rate limit.
//!
//! All pools watch the same states, so all of them stop, and all continue by themselves.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use tokio::sync::watch;

use super::rate_limiter::RateLimiter;
use crate::files::FileState;
use crate::gate::{Gate, GateGroup};
use crate::ledger::LedgerState;

/// Something besides the ledger that a handler needs for each delivery. None is started while it is unavailable.
#[derive(Debug, Clone)]
pub enum IntakeGate {
    /// A file that it writes. While it cannot be written for long, the subscription is closed.
    EventFile(EventFileGate),
    /// A service that it calls. Only a delivery shows whether it works again, so the subscription is not closed: it is limited to
    /// one delivery.
    Service(GateGroup),
    /// Closed while no delivery can be processed until the handler is replaced. Then the subscription is closed.
    Held(Gate),
}

/// A file that a handler writes.
#[derive(Debug, Clone)]
pub struct EventFileGate {
    /// The state of the file.
    pub file: watch::Receiver<FileState>,
    /// While this one is passable, the file is not needed. Once closed, it stays closed.
    pub unneeded: Option<Gate>,
}

impl EventFileGate {
    fn is_closed(&self) -> bool {
        self.file.borrow().outage.is_some() && self.unneeded.as_ref().is_none_or(|unneeded| !unneeded.is_passable())
    }

    /// Resolves while it is needed and cannot be written. Cancel-safe.
    async fn closed(&self) {
        while !self.is_closed() {
            wait_for(&self.file, |file| file.outage.is_some()).await;
            if let Some(unneeded) = &self.unneeded {
                unneeded.closed().await;
            }
        }
    }
}

impl From<watch::Receiver<FileState>> for EventFileGate {
    fn from(file: watch::Receiver<FileState>) -> Self {
        EventFileGate { file, unneeded: None }
    }
}

/// Whether the services that a handler calls let deliveries begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAccess {
    /// All do.
    Open,
    /// One at a time, to find out whether this one is available again.
    Trial(String),
    /// None, because of this one.
    Closed(String),
}

/// The states that decide. Clones watch the same ones.
#[derive(Debug, Clone)]
pub struct Intake {
    ledger: watch::Receiver<LedgerState>,
    files: Arc<[EventFileGate]>,
    held: Arc<[Gate]>,
    services: Arc<[GateGroup]>,
    rate_limiter: Arc<RateLimiter>,
}

impl Intake {
    /// Open while this ledger can record and all gates are.
    pub fn new(ledger: watch::Receiver<LedgerState>, gates: Vec<IntakeGate>, rate_limiter: Arc<RateLimiter>) -> Self {
        let (mut files, mut services, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for gate in gates {
            match gate {
                IntakeGate::EventFile(file) => files.push(file),
                IntakeGate::Service(gate) => services.push(gate),
                IntakeGate::Held(gate) => held.push(gate),
            }
        }
        Intake { ledger, files: files.into(), held: held.into(), services: services.into(), rate_limiter }
    }

    /// The consumer's rate limit.
    pub(super) fn rate_limiter(&self) -> &RateLimiter {
        &self.rate_limiter
    }

    /// Resolves while deliveries may be started, apart from the rate limit. Cancel-safe.
    pub(super) async fn opened(&self) {
        loop {
            self.outage_ended().await;
            let Some(closed) = self.services.iter().find(|gate| !gate.is_passable()) else { return };
            closed.passable().await;
        }
    }

    /// Resolves while no delivery may be started. Cancel-safe.
    pub(super) async fn closed(&self) {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = self.outage() => {}
            () = any(self.services.iter().map(GateGroup::closed)) => {}
        }
    }

    /// Resolves while the ledger can record, the event file can be written, and deliveries are not held. Cancel-safe.
    pub(super) async fn outage_ended(&self) {
        loop {
            wait_for(&self.ledger, |state| !is_unavailable(state)).await;
            if let Some(held) = self.held.iter().find(|gate| !gate.is_passable()) {
                held.passable().await;
            } else if let Some(closed) = self.files.iter().find(|gate| gate.is_closed()) {
                wait_for(&closed.file, |file| file.outage.is_none()).await;
            } else {
                return;
            }
        }
    }

    /// Resolves while the ledger cannot record, the event file cannot be written, or deliveries are held. Cancel-safe.
    async fn outage(&self) {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = wait_for(&self.ledger, is_unavailable) => {}
            () = any(self.files.iter().map(EventFileGate::closed)) => {}
            () = any(self.held.iter().map(Gate::closed)) => {}
        }
    }

    /// Resolves once such an outage has lasted this long without a break. Not cancel-safe: it starts
    /// again.
    pub(super) async fn outage_for(&self, duration: Duration) {
        loop {
            self.outage().await;
            if tokio::time::timeout(duration, self.outage_ended()).await.is_err() {
                return;
            }
        }
    }

    /// What the services allow now.
    pub fn service_access(&self) -> ServiceAccess {
        let name = |gate: &GateGroup| gate.name().to_owned();
        if let Some(closed) = self.services.iter().find(|gate| !gate.is_passable()) {
            return ServiceAccess::Closed(name(closed));
        }
        let trial = self.services.iter().find(|gate| !gate.is_open());
        trial.map_or(ServiceAccess::Open, |trial| ServiceAccess::Trial(name(trial)))
    }

    /// Whether a service may be unavailable: deliveries are started one at a time, to find out.
    pub(super) fn is_trial(&self) -> bool {
        self.services.iter().any(|gate| !gate.is_open())
    }

    /// Resolves while all services are available. Cancel-safe.
    pub(super) async fn trial_ended(&self) {
        while self.is_trial() {
            join_all(self.services.iter().map(GateGroup::opened)).await;
        }
    }

    /// Resolves once some service has not been available for this long, and returns which. Trials do not count as a break: a service that
    /// fails each of them is as unavailable as before. Not cancel-safe: it starts again.
    pub(super) async fn trial_for(&self, duration: Duration) -> &str {
        loop {
            any(self.services.iter().map(GateGroup::not_open)).await;
            let unavailable = self.services.iter().find(|gate| !gate.is_open());
            if tokio::time::timeout(duration, self.trial_ended()).await.is_err() {
                let still = self.services.iter().find(|gate| !gate.is_open()).or(unavailable);
                return still.map_or("", GateGroup::name);
            }
        }
    }
}

fn is_unavailable(state: &LedgerState) -> bool {
    matches!(state, LedgerState::Unavailable(_))
}

/// Resolves when one of these does; never if there are none.
async fn any(waits: impl Iterator<Item = impl Future<Output = ()>>) {
    let waits: Vec<_> = waits.map(Box::pin).collect();
    if waits.is_empty() {
        return pending().await;
    }
    select_all(waits).await;
}

/// Resolves while a state is as wanted.
async fn wait_for<T>(state: &watch::Receiver<T>, is_wanted: impl FnMut(&T) -> bool) {
    if state.clone().wait_for(is_wanted).await.is_err() {
        // The sender was dropped, so the state cannot change any more.
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use jiff::Timestamp;

    use super::*;
    use crate::files::{FileOutage, FileOutageCause};
    use crate::gate::{GateControl, GateState};
    use crate::ledger::{Outage, OutageCause};

    fn intake(ledger: &watch::Receiver<LedgerState>, gates: Vec<IntakeGate>) -> Intake {
        Intake::new(ledger.clone(), gates, Arc::default())
    }

    fn is_open(intake: &Intake) -> bool {
        let (opened, closed) = (intake.opened().now_or_never(), intake.closed().now_or_never());
        assert_ne!(opened, closed, "it is either open or closed");
        opened.is_some()
    }

    #[tokio::test]
    async fn no_delivery_is_started_while_the_ledger_or_the_event_file_cannot_be_written() {
        let (ledger, ledger_state) = watch::channel(LedgerState::Recording);
        let (file, file_state) =
            watch::channel(FileState { path: "/var/lib/orderd/analytics.jsonl".into(), outages: 0, outage: None });
        let writes_file = intake(&ledger_state, vec![IntakeGate::EventFile(file_state.into())]);
        let writes_none = intake(&ledger_state, Vec::new());
        let since = Timestamp::now();
        let fill_disk = || {
            let (cause, detail) = (FileOutageCause::DiskFull, String::new());
            file.send_modify(|file| file.outage = Some(FileOutage { cause, detail, since }));
        };
        assert_eq!([is_open(&writes_file), is_open(&writes_none)], [true, true]);
        fill_disk();
        assert_eq!([is_open(&writes_file), is_open(&writes_none)], [false, true]);
        let (cause, detail) = (OutageCause::DiskFull, String::new());
        ledger.send_replace(LedgerState::Unavailable(Outage { cause, detail, since }));
        assert_eq!([is_open(&writes_file), is_open(&writes_none)], [false, false]);
        file.send_modify(|file| file.outage = None);
        assert_eq!([is_open(&writes_file), is_open(&writes_none)], [false, false]);
        let mut opened = std::pin::pin!(writes_file.opened());
        assert!(opened.as_mut().now_or_never().is_none());
        fill_disk();
        ledger.send_replace(LedgerState::Recording);
        assert!(opened.as_mut().now_or_never().is_none(), "the file became unavailable while it waited for the ledger");
        file.send_modify(|file| file.outage = None);
        opened.await;
    }

    #[tokio::test]
    async fn a_file_that_is_not_needed_yet_stops_nothing_until_it_is() {
        let (_ledger, ledger_state) = watch::channel(LedgerState::Recording);
        let (cause, detail) = (FileOutageCause::DiskFull, String::new());
        let outage = Some(FileOutage { cause, detail, since: Timestamp::now() });
        let (file, state) = watch::channel(FileState { path: "/notifications.jsonl".into(), outages: 1, outage });
        let unneeded = GateControl::open("the file");
        let gate = EventFileGate { file: state, unneeded: Some(unneeded.gate()) };
        let intake = intake(&ledger_state, vec![IntakeGate::EventFile(gate)]);
        assert!(is_open(&intake));
        let mut closed = std::pin::pin!(intake.closed());
        assert!(closed.as_mut().now_or_never().is_none());
        unneeded.set(GateState::Closed(None));
        closed.await;
        assert!(!is_open(&intake));
        file.send_modify(|file| file.outage = None);
        assert!(is_open(&intake));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_fails_every_trial_is_unavailable_all_the_time() {
        let (_ledger, ledger_state) = watch::channel(LedgerState::Recording);
        let (charge, ship) = (GateControl::open("charge"), GateControl::open("ship"));
        let gates = vec![IntakeGate::Service(charge.gate().into()), IntakeGate::Service(ship.gate().into())];
        let intake = intake(&ledger_state, gates);
        assert!(is_open(&intake) && !intake.is_trial());
        charge.set(GateState::Closed(None));
        assert!(!is_open(&intake) && intake.is_trial());
        let flapping = async {
            for _ in 0..1_000 {
                charge.set(GateState::Trial);
                assert!(is_open(&intake) && intake.is_trial());
                tokio::time::sleep(Duration::from_secs(1)).await;
                charge.set(GateState::Closed(None));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            name = intake.trial_for(Duration::from_secs(300)) => assert_eq!(name, "charge"),
            () = flapping => panic!("it was not noticed"),
        }
        charge.set(GateState::Open);
        intake.trial_ended().await;
        assert!(intake.outage_ended().now_or_never().is_some());
    }
}
