//! Declares the topology again while the daemon runs: on each new session with the broker, and when something is missing.
//!
//! An exchange, a queue or the whole virtual host may be deleted at any time. It never deletes or changes anything that
//! exists, and does nothing while `topology.declare` is off.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::amqp::{Connector, RedeclarationRequests};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::topology::{Object, Topology};

/// How long to wait for further requests before declaring: after a broker's restart, all connections come back together.
const COLLECT: Duration = Duration::from_millis(100);
/// A session that begins this soon after a complete declaration does not need another one.
const STILL_FRESH: Duration = Duration::from_secs(5);
/// Waits after a declaration. They grow while declarations are incomplete, or restore nothing although something is reported
/// missing.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(30) };
/// How long one declaration may take.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(60);

/// The task that declares the topology again.
pub(super) struct Redeclarer {
    /// `None` while `topology.declare` is off.
    topology: watch::Sender<Option<Arc<Topology>>>,
    _task: AbortOnDropHandle<()>,
}

impl Redeclarer {
    /// Starts the task. The topology has just been declared.
    pub fn start(config: &Config, connector: &Connector, shutdown: &Shutdown) -> Self {
        let topology = watch::Sender::new(declared_topology(config));
        let task = RedeclarerTask {
            requests: connector.redeclaration().serve(),
            connector: connector.clone(),
            topology: topology.subscribe(),
            complete_at: Some(Instant::now()),
            declared_at: None,
            failures: 0,
            logged: None,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(shutdown.clone())));
        Redeclarer { topology, _task: task }
    }

    /// Declares this configuration's topology from now on.
    pub fn set(&self, config: &Config) {
        self.topology.send_replace(declared_topology(config));
    }
}

fn declared_topology(config: &Config) -> Option<Arc<Topology>> {
    config.topology.declare.then(|| Arc::new(config.topology()))
}

struct RedeclarerTask {
    requests: RedeclarationRequests,
    connector: Connector,
    topology: watch::Receiver<Option<Arc<Topology>>>,
    /// When the whole topology was last declared.
    complete_at: Option<Instant>,
    /// When the topology was last declared, completely or not.
    declared_at: Option<Instant>,
    /// Declarations in a row without success.
    failures: u32,
    /// The last problem that was logged: a problem is logged once.
    logged: Option<String>,
}

/// The result of one declaration.
struct Redeclared {
    /// What did not exist and was declared.
    restored: Vec<Object>,
    /// Why the rest could not be declared; empty if the topology is complete.
    problems: Vec<String>,
}

impl RedeclarerTask {
    async fn run(mut self, shutdown: Shutdown) {
        // Cancel-safe: declarations can be repeated.
        tokio::select! {
            () = self.serve() => {}
            () = shutdown.begun() => {}
        }
    }

    async fn serve(&mut self) {
        loop {
            self.requests.pending().await;
            tokio::time::sleep(COLLECT).await;
            let requests = self.requests.take();
            let topology = self.topology.borrow_and_update().clone();
            let fresh = self.complete_at.is_some_and(|at| at.elapsed() < STILL_FRESH);
            match topology {
                None => self.requests.answer(requests, false, Vec::new()),
                Some(_) if fresh && !requests.something_is_missing => self.requests.answer(requests, true, Vec::new()),
                Some(topology) => {
                    let redeclared = self.declare(&topology).await;
                    let (complete, has_restored) = (redeclared.problems.is_empty(), !redeclared.restored.is_empty());
                    self.log(&redeclared);
                    self.requests.answer(requests, complete, redeclared.restored);
                    let quiet = self.declared_at.is_none_or(|at| at.elapsed() > RETRY_BACKOFF.max * 2);
                    self.failures = if complete && (quiet || has_restored) { 0 } else { self.failures + 1 };
                    self.declared_at = Some(Instant::now());
                    self.complete_at = self.declared_at.filter(|_| complete);
                    let wait = RETRY_BACKOFF.wait(self.failures.saturating_sub(1), fastrand::f64());
                    tokio::time::sleep(wait).await;
                    if !complete {
                        self.connector.redeclaration().request();
                    }
                }
            }
        }
    }

    async fn declare(&self, topology: &Topology) -> Redeclared {
        let declaring = self.connector.declare_possible(topology.declarations());
        match tokio::time::timeout(DECLARE_TIMEOUT, declaring).await {
            Ok(Ok(declared)) => {
                let problems = declared.refused.iter().map(|refused| chain(refused)).collect();
                Redeclared { restored: declared.created, problems }
            }
            Ok(Err(failed)) => Redeclared { restored: Vec::new(), problems: vec![chain(&failed)] },
            Err(_) => Redeclared { restored: Vec::new(), problems: vec![format!("no answer for {DECLARE_TIMEOUT:?}")] },
        }
    }

    /// Logs what was declared again, and each problem once until the topology is complete again.
    fn log(&mut self, redeclared: &Redeclared) {
        let Redeclared { restored, problems } = redeclared;
        if !restored.is_empty() {
            let objects = restored.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            error!(
                count = restored.len(),
                objects, "declared again what was missing on the broker; messages that a deleted queue held are lost"
            );
        }
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        match (&self.logged, &problem) {
            (None, None) => {}
            (Some(_), None) => info!("the topology is complete again"),
            (logged, Some(problem)) if logged.as_ref() != Some(problem) => {
                warn!(error = problem, "cannot declare the whole topology again; retrying");
            }
            (_, Some(_)) => {}
        }
        self.logged = problem;
    }
}
