//! What others may see of the daemon: made before anything else, ended when everything else has.
//!
//! It never works on a message and never stops one from being worked on.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use super::reconciliation;
use super::service_status::ServiceStatus;
use crate::admin::{AdminServer, BoundListener};
use crate::amqp::ConfirmingPublisher;
use crate::config::Config;
use crate::control::Control;
use crate::ledger::Ledger;
use crate::reconcile::BrokerView;
use crate::shutdown::Shutdown;
use crate::status::{self, RegisteredConsumer, StatusRegistry};
use crate::systemd::ServiceNotifier;

/// What others may see of the daemon: the admin listener, and the watch over its counters. It stands from before
/// the ledger is opened until everything else has ended.
pub(super) struct Observability {
    pub live: Arc<StatusRegistry>,
    admin: Option<AdminServer>,
    watch: JoinHandle<()>,
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
    readers: watch::Sender<Arc<BrokerView>>,
    polling: Option<AbortOnDropHandle<()>>,
    shutdown: Shutdown,
}

impl Observability {
    /// Begins to tell. `path` is the configuration's file, `control` the way for those who command.
    pub fn open(
        config: &Config,
        path: String,
        bound: Option<BoundListener>,
        control: Control,
        shutdown: &Shutdown,
        service: &ServiceNotifier,
    ) -> Self {
        let publisher = Arc::new(OnceLock::new());
        let (readers, view) = watch::channel(Arc::default());
        let live = StatusRegistry::new(path, Arc::clone(&publisher), view, shutdown.clone(), service.health());
        let live = Arc::new(live);
        let consumers =
            config.consumers.iter().map(|(name, one)| RegisteredConsumer::new(name, one, live.counters(name)));
        live.show(consumers.collect());
        service.attach(Arc::new(ServiceStatus(Arc::clone(&live))));
        let admin = bound.map(|bound| bound.serve(Arc::clone(&live), config.ledger.location().reader(), control));
        let watch = tokio::spawn(status::watch(Arc::clone(&live), shutdown.clone()));
        // Until it runs, it tells whether it will.
        drop(reconciliation::poller(config, Arc::clone(&live), Arc::clone(&publisher), readers.clone()));
        Observability { live, admin, watch, publisher, readers, polling: None, shutdown: shutdown.clone() }
    }

    /// The ledger is open.
    pub fn records(&self, ledger: &Arc<dyn Ledger>) {
        self.live.set_ledger(ledger.clone());
    }

    /// The topology is there and the pools are started: begins to ask the broker about itself.
    pub async fn started(&mut self, config: &Config, publisher: &Arc<ConfirmingPublisher>) {
        self.live.set_publisher(Arc::clone(publisher));
        self.poll(config).await;
    }

    /// Asks the broker about this configuration from now on. What was told before stays to be seen until more is.
    pub async fn poll(&mut self, config: &Config) {
        if let Some(former) = self.polling.take() {
            former.abort();
            let _ = former.await;
        }
        let poller =
            reconciliation::poller(config, Arc::clone(&self.live), Arc::clone(&self.publisher), self.readers.clone());
        self.polling = Some(AbortOnDropHandle::new(tokio::spawn(poller.run(self.shutdown.clone()))));
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

    /// Logs what each consumer has done, also those that were removed.
    pub fn tell_tallies(&self) {
        for (consumer, counters) in self.live.all_counters() {
            let counts = counters.counts();
            info!(
                consumer,
                deliveries = counts.deliveries,
                completed = counts.completed,
                duplicates = counts.duplicates,
                failed_attempts = counts.failed_attempts,
                forwarded = counts.forwarded,
                retried = counts.retried,
                dead_lettered = counts.dead_lettered,
                released = counts.released,
                rejected = counts.rejected,
                restarts = counts.restarts,
                "since start"
            );
        }
    }
}
