//! The observable side of the daemon: the status registry, the admin server, the notifications to the service manager, the
//! invariant check and the poller of the management API. They start before everything else and end last.
//!
//! It never processes a message, and its failures never stop the processing.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use super::reconciliation;
use super::service_status::ServiceStatus;
use crate::admin::{AdminServer, BoundListener};
use crate::amqp::{ConfirmingPublisher, Redeclaration};
use crate::config::{CommandToken, Config};
use crate::control::Control;
use crate::dead_letters::LetterActionsHandle;
use crate::ledger::Ledger;
use crate::reconcile::BrokerView;
use crate::shutdown::Shutdown;
use crate::status::{RegisteredConsumer, StatusRegistry, check_invariants};
use crate::systemd::ServiceNotifier;

/// Everything that shows the state of the daemon, from before the ledger is opened until everything else has ended.
pub(super) struct Observability {
    pub status_registry: Arc<StatusRegistry>,
    /// What the admin server does with dead letters, once the collectors are started.
    pub actions: LetterActionsHandle,
    admin: Option<AdminServer>,
    invariant_check: JoinHandle<()>,
    publisher: Arc<OnceLock<Arc<ConfirmingPublisher>>>,
    broker_view: watch::Sender<Arc<BrokerView>>,
    /// Runs once there is a publisher.
    poller: Option<AbortOnDropHandle<()>>,
    shutdown: Shutdown,
}

impl Observability {
    /// Starts everything but the poller. `path` is the configuration file, for display; `control` receives the commands of
    /// the admin server.
    pub fn start(
        config: &Config,
        path: String,
        bound: Option<BoundListener>,
        control: Control,
        shutdown: &Shutdown,
        service: &ServiceNotifier,
    ) -> Self {
        let publisher = Arc::new(OnceLock::new());
        let (broker_view, view) = watch::channel(Arc::default());
        let registry = StatusRegistry::new(path, Arc::clone(&publisher), view, shutdown.clone(), service.health());
        let registry = Arc::new(registry);
        let consumers = config.consumers.iter();
        let registered =
            consumers.map(|(name, settings)| RegisteredConsumer::new(name, settings, registry.counters(name)));
        registry.set_consumers(registered.collect());
        service.attach(Arc::new(ServiceStatus(Arc::clone(&registry))));
        let actions = LetterActionsHandle::default();
        let admin = bound.map(|bound| {
            let command_token = CommandToken::in_directory(&config.ledger.directory);
            let ledger = config.ledger.location().reader();
            bound.serve(Arc::clone(&registry), ledger, control, actions.clone(), command_token)
        });
        let invariant_check = tokio::spawn(check_invariants(Arc::clone(&registry), shutdown.clone()));
        // Building a poller puts its initial state into the view: off, or pending.
        drop(reconciliation::poller(
            config,
            Arc::clone(&registry),
            Arc::clone(&publisher),
            broker_view.clone(),
            Redeclaration::default(),
        ));
        Observability {
            status_registry: registry,
            actions,
            admin,
            invariant_check,
            publisher,
            broker_view,
            poller: None,
            shutdown: shutdown.clone(),
        }
    }

    /// The ledger is open: includes it in the status.
    pub fn ledger_opened(&self, ledger: &Arc<dyn Ledger>) {
        self.status_registry.set_ledger(ledger.clone());
    }

    /// Replaces the users of the admin server.
    pub fn set_admin_users(&self, config: &Config) {
        if let Some(admin) = &self.admin {
            admin.set_users(&config.admin.users);
        }
    }

    /// The topology is declared or checked and the pools are started: includes the publisher in the status, and starts to
    /// poll the management API.
    pub async fn pools_started(&mut self, config: &Config, publisher: &Arc<ConfirmingPublisher>) {
        self.status_registry.set_publisher(Arc::clone(publisher));
        self.restart_poller(config).await;
    }

    /// Replaces the poller by one for this configuration. The last view of the broker remains until there is a new one.
    pub async fn restart_poller(&mut self, config: &Config) {
        if let Some(former) = self.poller.take() {
            former.abort();
            let _ = former.await;
        }
        let registry = Arc::clone(&self.status_registry);
        let (publisher, view) = (Arc::clone(&self.publisher), self.broker_view.clone());
        let redeclaration = self.publisher.get().map(|publisher| publisher.redeclaration().clone()).unwrap_or_default();
        let poller = reconciliation::poller(config, registry, publisher, view, redeclaration);
        self.poller = Some(AbortOnDropHandle::new(tokio::spawn(poller.run(self.shutdown.clone()))));
    }

    /// Waits for the tasks to end, and stops the admin server. To be called after a shutdown has begun.
    pub async fn stop(self) {
        if let Err(died) = self.invariant_check.await {
            error!(error = %died, "the check of the delivery counts died");
        }
        if let Some(poller) = self.poller
            && let Err(died) = poller.await
        {
            error!(error = %died, "the poller of the management API died");
        }
        if let Some(admin) = self.admin {
            admin.stop().await;
        }
    }

    /// Logs the counts of each consumer since the start, removed ones included.
    pub fn log_counts(&self) {
        for (consumer, counters) in self.status_registry.all_counters() {
            let counts = counters.counts();
            info!(
                consumer,
                deliveries = counts.deliveries,
                completed = counts.completed,
                duplicates = counts.duplicates,
                cancelled = counts.cancelled,
                prevented = counts.prevented,
                skipped = counts.skipped,
                failed_attempts = counts.failed_attempts,
                forwarded = counts.forwarded,
                retried = counts.retried,
                returned = counts.returned,
                dead_lettered = counts.dead_lettered,
                released = counts.released,
                rejected = counts.rejected,
                restarts = counts.restarts,
                "since start"
            );
        }
    }
}
