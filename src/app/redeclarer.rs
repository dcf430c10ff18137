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

use crate::amqp::{Connector, DeclarationOutcome, RedeclarationRequests};
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
/// The shortest wait after a complete declaration, if the broker says meanwhile that something does not exist.
const MIN_WAIT: Duration = Duration::from_millis(500);
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
            problem: None,
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
    /// The problem of the last declaration, which was logged: a problem is logged once.
    problem: Option<String>,
}

/// One declaration of the topology.
struct Declaration {
    /// What did not exist and was declared.
    restored: Vec<Object>,
    result: DeclarationResult,
}

enum DeclarationResult {
    Complete,
    /// The broker refused a part, for these reasons.
    Refused(String),
    /// The broker was not reached, or gave no clear answer.
    Unreachable(String),
}

impl Declaration {
    fn unreachable(problem: String) -> Self {
        Declaration { restored: Vec::new(), result: DeclarationResult::Unreachable(problem) }
    }
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
                None => self.requests.decline(requests),
                Some(_) if fresh && !requests.something_is_missing => {
                    self.requests.answer(requests, DeclarationOutcome::default());
                }
                Some(topology) => {
                    let Declaration { restored, result } = self.declare(&topology).await;
                    let (complete, problem) = match &result {
                        DeclarationResult::Complete => (true, None),
                        DeclarationResult::Refused(problem) | DeclarationResult::Unreachable(problem) => {
                            (false, Some(problem.clone()))
                        }
                    };
                    self.log(&restored, problem.as_ref());
                    let was_incomplete = std::mem::replace(&mut self.problem, problem.clone()).is_some();
                    let quiet = self.declared_at.is_none_or(|at| at.elapsed() > RETRY_BACKOFF.max * 2);
                    // If nothing was missing, another client may have declared it. If that were believed every time, what no
                    // declaration can repair would be published again and again.
                    let progress = !restored.is_empty() || (complete && (quiet || was_incomplete));
                    self.requests.answer(requests, DeclarationOutcome { restored, problem, repaired: progress });
                    self.failures = if complete && progress { 0 } else { self.failures + 1 };
                    self.declared_at = Some(Instant::now());
                    self.complete_at = self.declared_at.filter(|_| complete);
                    self.wait(&result).await;
                    if !complete {
                        self.connector.redeclaration().request();
                    }
                }
            }
        }
    }

    /// Waits before the next declaration.
    async fn wait(&mut self, result: &DeclarationResult) {
        let wait = RETRY_BACKOFF.wait(self.failures.saturating_sub(1), fastrand::f64());
        let sooner = async {
            tokio::time::sleep(MIN_WAIT).await;
            match result {
                DeclarationResult::Complete => self.requests.not_found().await,
                // A session has begun, so the broker is reachable again.
                DeclarationResult::Unreachable(_) => self.requests.pending().await,
                DeclarationResult::Refused(_) => std::future::pending().await,
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = sooner => {}
        }
    }

    async fn declare(&self, topology: &Topology) -> Declaration {
        let declaring = self.connector.declare_possible(topology.declarations());
        match tokio::time::timeout(DECLARE_TIMEOUT, declaring).await {
            Ok(Ok(declared)) => {
                let problems: Vec<_> = declared.refused.iter().map(|refused| chain(refused)).collect();
                let result = match problems.is_empty() {
                    true => DeclarationResult::Complete,
                    false => DeclarationResult::Refused(problems.join("; ")),
                };
                Declaration { restored: declared.created, result }
            }
            Ok(Err(failed)) => Declaration::unreachable(chain(&failed)),
            Err(_) => Declaration::unreachable(format!("no answer for {DECLARE_TIMEOUT:?}")),
        }
    }

    /// Logs what was declared again, and each problem once until the topology is complete again.
    fn log(&self, restored: &[Object], problem: Option<&String>) {
        if !restored.is_empty() {
            let objects = restored.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            error!(
                count = restored.len(),
                objects, "declared again what was missing on the broker; messages that a deleted queue held are lost"
            );
        }
        match (&self.problem, problem) {
            (None, None) => {}
            (Some(_), None) => info!("the topology is complete again"),
            (before, Some(problem)) if before.as_ref() != Some(problem) => {
                warn!(error = problem, "cannot declare the whole topology again; retrying");
            }
            (_, Some(_)) => {}
        }
    }
}
