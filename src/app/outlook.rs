//! What others may see of the daemon: made before anything else, ended when everything else has.
//!
//! It never works on a message and never stops one from being worked on.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokio::task::JoinHandle;
use tracing::{error, info};

use super::standing::Seen;
use super::watching;
use crate::admin::{self, Admin, Bound, Live, Watched};
use crate::amqp::ConfirmingPublisher;
use crate::config::Config;
use crate::ledger::SqliteLedger;
use crate::monitor::Poller;
use crate::service::Service;
use crate::shutdown::Shutdown;

/// What others may see of the daemon: the admin listener, and the watch over its counters. It stands from before
/// the ledger is opened until everything else has ended.
pub(super) struct Outlook {
    pub live: Arc<Live>,
    admin: Option<Admin>,
    watch: JoinHandle<()>,
    /// Until it runs.
    poller: Option<Poller>,
    polling: Option<JoinHandle<()>>,
}

impl Outlook {
    /// Begins to tell.
    pub fn open(
        config: &Config,
        config_path: &Path,
        bound: Option<Bound>,
        shutdown: &Shutdown,
        service: &Service,
    ) -> Self {
        let (consumers, publisher) = (Watched::all(config), Arc::new(OnceLock::new()));
        let poller = watching::poller(config, &consumers, Arc::clone(&publisher));
        let path = config_path.display().to_string();
        let live = Live::new(path, consumers, publisher, poller.view(), shutdown.clone(), service.health());
        let live = Arc::new(live);
        service.watch(Arc::new(Seen(Arc::clone(&live))));
        let admin = bound.map(|bound| bound.serve(Arc::clone(&live), config.ledger.directory.clone()));
        let watch = tokio::spawn(admin::watch(Arc::clone(&live), shutdown.clone()));
        Outlook { live, admin, watch, poller: Some(poller), polling: None }
    }

    /// The ledger is open.
    pub fn records(&self, ledger: &Arc<SqliteLedger>) {
        self.live.set_ledger(Arc::clone(ledger));
    }

    /// The topology is there and the pools are started: begins to ask the broker about itself.
    pub fn started(&mut self, publisher: &Arc<ConfirmingPublisher>, shutdown: &Shutdown) {
        self.live.set_publisher(Arc::clone(publisher));
        self.polling = self.poller.take().map(|poller| tokio::spawn(poller.run(shutdown.clone())));
    }

    /// Waits for its end. To be called once a shutdown has begun.
    pub async fn close(self) {
        if let Err(died) = self.watch.await {
            error!(error = %died, "the watch over the counters died");
        }
        if let Some(polling) = self.polling
            && let Err(died) = polling.await
        {
            error!(error = %died, "the poller of the management API died");
        }
        if let Some(admin) = self.admin {
            admin.stop().await;
        }
    }

    /// Logs what each consumer has done.
    pub fn tell_tallies(&self) {
        for watched in self.live.consumers() {
            let tally = watched.counters.tally();
            info!(
                consumer = watched.name,
                deliveries = tally.deliveries,
                completed = tally.completed,
                duplicates = tally.duplicates,
                failed_attempts = tally.failed_attempts,
                forwarded = tally.forwarded,
                retried = tally.retried,
                parked = tally.parked,
                released = tally.released,
                rejected = tally.rejected,
                restarts = tally.restarts,
                "since start"
            );
        }
    }
}
