//! Whether workers may start deliveries: not while the ledger cannot record, nor, if they write an event file, while that
//! cannot be written. All pools watch the same states, so all of them stop, and all continue by themselves.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;

use crate::files::FileState;
use crate::ledger::LedgerState;

/// The states that decide. Clones watch the same ones.
#[derive(Debug, Clone)]
pub struct Intake {
    ledger: watch::Receiver<LedgerState>,
    event_file: Option<watch::Receiver<FileState>>,
}

impl Intake {
    /// Open while this ledger can record and this event file, if there is one, can be written.
    pub fn new(ledger: watch::Receiver<LedgerState>, event_file: Option<watch::Receiver<FileState>>) -> Self {
        Intake { ledger, event_file }
    }

    /// Resolves while deliveries may be started. Cancel-safe.
    pub(super) async fn opened(&self) {
        loop {
            wait_for(&self.ledger, |state| !is_unavailable(state)).await;
            let Some(event_file) = &self.event_file else { return };
            if event_file.borrow().outage.is_none() {
                return;
            }
            wait_for(event_file, |file| file.outage.is_none()).await;
        }
    }

    /// Resolves while no delivery may be started. Cancel-safe.
    pub(super) async fn closed(&self) {
        let file_is_unavailable = async {
            match &self.event_file {
                Some(event_file) => wait_for(event_file, |file| file.outage.is_some()).await,
                None => pending().await,
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            () = wait_for(&self.ledger, is_unavailable) => {}
            () = file_is_unavailable => {}
        }
    }

    /// Resolves once no delivery could be started for this long without a break. Not cancel-safe: it begins anew.
    pub(super) async fn closed_for(&self, duration: Duration) {
        loop {
            self.closed().await;
            if tokio::time::timeout(duration, self.opened()).await.is_err() {
                return;
            }
        }
    }
}

fn is_unavailable(state: &LedgerState) -> bool {
    matches!(state, LedgerState::Unavailable(_))
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
    use crate::ledger::{Outage, OutageCause};

    #[tokio::test]
    async fn no_delivery_is_started_while_the_ledger_or_the_event_file_cannot_be_written() {
        let (ledger, ledger_state) = watch::channel(LedgerState::Recording);
        let (file, file_state) =
            watch::channel(FileState { path: "/var/lib/orderd/analytics.jsonl".into(), outages: 0, outage: None });
        let (writes_file, writes_none) =
            (Intake::new(ledger_state.clone(), Some(file_state)), Intake::new(ledger_state, None));
        let is_open = |intake: &Intake| {
            let (opened, closed) = (intake.opened().now_or_never(), intake.closed().now_or_never());
            assert_ne!(opened, closed, "it is either open or closed");
            opened.is_some()
        };
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
}
