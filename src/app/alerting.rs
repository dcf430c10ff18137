//! Starts, replaces and ends the task that sends operators' alerts, and reads for it what the daemon shows in its status.
//!
//! The task only reads the daemon's state. If it keeps dying, it pauses; nothing else is affected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::alerts::{self, AlertDeps, AlertHistory, AlertScopes, AlertSettings, LocalState, StoredState, unrouted_key};
use crate::config::Config;
use crate::instance;
use crate::ledger::{Ledger, LetterSource};
use crate::metrics::DeadLettersOfCode;
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
    /// What the tasks one after another have counted.
    history: Arc<AlertHistory>,
    /// Stops the task; aborting it would send again what it is sending.
    task: Option<(CancellationToken, AbortOnDropHandle<()>)>,
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
        let mut this = Alerting { registry, ledger, log, shutdown, history: Arc::default(), task: None };
        // What has been dead-lettered since the start of the process counts.
        this.replace(config).await;
        this
    }

    /// Replaces the task by one for this configuration. What is open is in the ledger, so nothing is sent again.
    pub async fn set(&mut self, config: &Config) {
        if self.task.is_none() {
            let counted = dead_letters(&self.registry).into_iter();
            self.history.skip(counted.map(|(key, of_code)| (key, of_code.count)).collect());
        }
        self.replace(config).await;
    }

    async fn replace(&mut self, config: &Config) {
        self.stop().await;
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
            clock: Timestamp::now,
            history: Arc::clone(&self.history),
            stop: CancellationToken::new(),
        };
        let stop = deps.stop.clone();
        let running = tokio::spawn(run_supervised(settings.clone(), deps, self.shutdown.clone()));
        self.task = Some((stop, AbortOnDropHandle::new(running)));
    }

    async fn stop(&mut self) {
        let Some((stop, task)) = self.task.take() else { return };
        stop.cancel();
        if let Err(died) = task.await {
            error!(error = %died, "the task that sends alerts died");
        }
    }

    /// Stops the task. It records what was dead-lettered until now, so call it once all deliveries are settled.
    pub async fn finish(mut self) {
        self.stop().await;
    }
}

/// Where alerts of this instance are. The same after a restart.
fn scopes(config: &Config, path: &str) -> AlertScopes {
    let host = instance::name().rsplit_once(':').map_or(instance::name(), |(host, _)| host);
    AlertScopes { broker: format!("virtual host {}", config.broker.virtual_host), instance: format!("{host}, {path}") }
}

fn local_state(registry: &StatusRegistry) -> LocalState {
    let view = registry.broker_view();
    LocalState {
        api: view.api.clone(),
        findings: view.findings.clone(),
        breakers: registry.breakers().read(),
        last_reload: registry.last_reload().map(|reload| (reload.at, reload.report)),
        dead_letters: dead_letters(registry),
        stored: StoredState {
            unresolved: registry.unresolved_dead_letters(),
            is_current: registry.sees_unresolved_dead_letters(),
        },
    }
}

/// Since the start, by consumer, reason and code, with those that matched no binding.
fn dead_letters(registry: &StatusRegistry) -> BTreeMap<(String, String, String), DeadLettersOfCode> {
    let mut dead_letters = BTreeMap::<_, DeadLettersOfCode>::new();
    for counters in registry.all_counters().values() {
        for ((consumer, reason, code), of_code) in counters.read().dead_letter_codes {
            let key = (consumer.to_string(), reason.as_str().to_owned(), code);
            let all = dead_letters.entry(key).or_default();
            all.count += of_code.count;
            all.last = of_code.last;
        }
    }
    let unrouted = registry.collector(LetterSource::UnroutedQueue).read().stored;
    dead_letters.insert(unrouted_key(), DeadLettersOfCode { count: unrouted, last: String::new() });
    dead_letters
}

async fn run_supervised(settings: AlertSettings, deps: AlertDeps, shutdown: Shutdown) {
    let start = || alerts::run(settings.clone(), deps.clone());
    while let Err(exceeded) = supervise("alerts", RestartPolicy::DEFAULT, &shutdown, || {}, start).await {
        error!(error = %exceeded, pause = ?COOL_DOWN, "the task that sends alerts keeps dying; pausing it");
        deps.status.send_modify(|status| status.get_or_insert_default().problem = Some(exceeded.to_string()));
        // Cancel-safe: both only wait.
        let is_over = tokio::select! {
            has_slept = shutdown.sleep(COOL_DOWN) => !has_slept,
            () = deps.stop.cancelled() => true,
        };
        if is_over {
            return;
        }
    }
}
