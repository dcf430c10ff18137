//! Starts, replaces and ends the task that sends operators' alerts, and reads for it what the daemon shows in its status.
//!
//! The task only reads the daemon's state. If it keeps dying, it pauses; nothing else is affected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::alerts::{self, AlertDeps, AlertScopes, AlertSettings, LocalState};
use crate::config::Config;
use crate::instance;
use crate::ledger::Ledger;
use crate::notify::{Channel, OperatorChannel};
use crate::shutdown::Shutdown;
use crate::status::StatusRegistry;
use crate::supervisor::{RestartPolicy, supervise};

/// How long a task that keeps dying is left stopped.
const COOL_DOWN: Duration = Duration::from_secs(30);

/// The task, if alerts are configured.
pub(super) struct Alerting {
    registry: Arc<StatusRegistry>,
    ledger: Arc<dyn Ledger>,
    /// The file of notifications.
    log: Arc<dyn Channel>,
    shutdown: Shutdown,
    task: Option<AbortOnDropHandle<()>>,
}

impl Alerting {
    /// Starts the task, if the configuration has alerts.
    pub async fn start(
        config: &Config,
        registry: &Arc<StatusRegistry>,
        ledger: &Arc<dyn Ledger>,
        log: Arc<dyn Channel>,
        shutdown: &Shutdown,
    ) -> Self {
        let (registry, ledger, shutdown) = (Arc::clone(registry), Arc::clone(ledger), shutdown.clone());
        let mut this = Alerting { registry, ledger, log, shutdown, task: None };
        this.set(config).await;
        this
    }

    /// Replaces the task by one for this configuration. What is open is in the ledger, so nothing is sent again.
    pub async fn set(&mut self, config: &Config) {
        if let Some(former) = self.task.take() {
            former.abort();
            let _ = former.await;
        }
        let Some(settings) = config.alerts.constructor::<AlertSettings>() else {
            self.registry.alerts().send_replace(None);
            return;
        };
        let channel = OperatorChannel::new(&settings.channel, &self.log, self.registry.breakers());
        let registry = Arc::clone(&self.registry);
        let deps = AlertDeps {
            scopes: scopes(config, self.registry.config_path()),
            state: Arc::new(move || local_state(&registry)),
            ledger: self.ledger.clone(),
            channel: Arc::new(channel),
            status: self.registry.alerts().clone(),
            shutdown: self.shutdown.clone(),
        };
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(run_supervised(settings.clone(), deps))));
    }

    /// Waits for the task to end. Call it only once a shutdown has begun.
    pub async fn finish(self) {
        if let Some(task) = self.task
            && let Err(died) = task.await
        {
            error!(error = %died, "the task that sends alerts died");
        }
    }
}

/// Where alerts of this instance are. The same after a restart.
fn scopes(config: &Config, path: &str) -> AlertScopes {
    let host = instance::name().rsplit_once(':').map_or(instance::name(), |(host, _)| host);
    AlertScopes { broker: format!("virtual host {}", config.broker.virtual_host), instance: format!("{host}, {path}") }
}

fn local_state(registry: &StatusRegistry) -> LocalState {
    let view = registry.broker_view();
    let mut dead_letters = BTreeMap::new();
    for counters in registry.all_counters().values() {
        for ((consumer, reason), count) in counters.read().dead_letters {
            *dead_letters.entry((consumer.to_string(), reason.as_str().to_owned())).or_insert(0) += count;
        }
    }
    LocalState {
        api: view.api.clone(),
        findings: view.findings.clone(),
        breakers: registry.breakers().read(),
        last_reload: registry.last_reload().map(|reload| (reload.at, reload.report)),
        dead_letters,
    }
}

async fn run_supervised(settings: AlertSettings, deps: AlertDeps) {
    let shutdown = deps.shutdown.clone();
    let start = || alerts::run(settings.clone(), deps.clone());
    while let Err(exceeded) = supervise("alerts", RestartPolicy::DEFAULT, &shutdown, || {}, start).await {
        error!(error = %exceeded, pause = ?COOL_DOWN, "the task that sends alerts keeps dying; pausing it");
        deps.status.send_modify(|status| status.get_or_insert_default().problem = Some(exceeded.to_string()));
        if !shutdown.sleep(COOL_DOWN).await {
            return;
        }
    }
}
