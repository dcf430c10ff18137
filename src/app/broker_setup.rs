//! Prepares the broker: compares what exists there with what the configuration needs, then declares what is missing.
//!
//! It never deletes or changes anything that exists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::amqp::{ConnectError, Connector, DeclareError, IdentityError};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::{self, Config};
use crate::management::ManagementClient;
use crate::reconcile::audit::{Audit, audit};
use crate::shutdown::Shutdown;
use crate::topology::{RequiredPermission, Topology};

/// Waits between attempts to reach the broker at the start.
const CONNECT_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(15) };
/// How long the broker may take to report the policies of new queues.
const POLICIES_TIMEOUT: Duration = Duration::from_secs(20);
/// For how long the broker may report a policy that has been deleted: RabbitMQ before 4.3 reports policies together with
/// statistics, which are up to 10 s old.
const DELETED_POLICIES_REPORTED: Duration = Duration::from_secs(12);
/// The wait before the broker is asked again whether such a policy still applies.
const POLICY_POLL: Duration = Duration::from_secs(1);
/// How long the extension of the topology may take while the daemon runs.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Declaring or checking failed.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The user lacks permissions that orderd needs.
    #[error("the user may not {0}; `orderd check --permissions` prints the commands that grant what is needed")]
    Denied(String),
    /// The broker's name of orderd's user, by which orderd recognises its own messages, is unknown.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// `topology.declare` is off and something does not exist.
    #[error("topology.declare is false and the broker lacks: {0}")]
    Missing(String),
    /// Queues or exchanges exist with other arguments, or policies would drop messages from queues.
    #[error("the broker contradicts the configuration, and nothing was changed: {0}")]
    Contradictions(String),
    /// The broker took too long. What was declared before remains.
    #[error("cannot extend the topology: the broker needs longer than {} s", EXTEND_TIMEOUT.as_secs())]
    TooSlow,
}

impl TopologyError {
    /// Whether another attempt may succeed although nobody has changed anything.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            TopologyError::Declare(error) => !error.is_permanent(),
            TopologyError::Identity(error) => !error.is_permanent(),
            TopologyError::TooSlow => true,
            TopologyError::Denied(_) | TopologyError::Missing(_) | TopologyError::Contradictions(_) => false,
        }
    }
}

/// Whether the policies that apply to the queues have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyCheck {
    /// They drop no messages, or the management API did not answer.
    Passed,
    /// The broker has not reported all of them yet.
    Incomplete,
}

/// What one configuration needs on the broker.
pub(super) struct BrokerSetup {
    topology: Topology,
    /// Whether orderd declares; if not, it only checks that everything exists.
    declare: bool,
    /// Checked before consuming, so that a missing permission is reported now and not with the first failed order.
    permissions: Vec<RequiredPermission>,
    /// Those of them without which orders are processed all the same.
    optional_permissions: Vec<RequiredPermission>,
    management: config::Management,
    virtual_host: String,
    retry_exchange: Arc<str>,
    /// For how long a delivery from each queue may be held.
    longest_holds: BTreeMap<String, Duration>,
}

impl BrokerSetup {
    pub fn new(config: &Config) -> Self {
        let declare = config.topology.declare;
        BrokerSetup {
            topology: config.topology(),
            declare,
            // Declaring has already shown that the user may declare.
            permissions: if declare {
                config.collecting_permissions().into_iter().chain(config.processing_permissions()).collect()
            } else {
                config.required_permissions()
            },
            optional_permissions: config.collecting_permissions(),
            management: config.management.clone(),
            virtual_host: config.broker.virtual_host.clone(),
            retry_exchange: config.names().retry,
            longest_holds: config.longest_holds(),
        }
    }

    /// Whether this configuration needs something on the broker that `former` did not, or changes `topology.declare`.
    pub fn extends(&self, former: &BrokerSetup) -> bool {
        let known = former.topology.declarations();
        self.declare != former.declare || self.topology.declarations().iter().any(|step| !known.contains(step))
    }

    /// Declares or checks the topology at the start, then finds out the broker's name of orderd's user: without it, orderd would
    /// take its own messages of an earlier run for forged ones. Waits for a broker that cannot be reached yet. `None` when a shutdown
    /// came first.
    pub async fn prepare(
        &self,
        connector: &Connector,
        shutdown: &Shutdown,
    ) -> Result<Option<PolicyCheck>, TopologyError> {
        for attempt in 0.. {
            // A shutdown may drop the attempt: declarations can be repeated.
            let prepared = tokio::select! {
                prepared = self.prepare_and_identify(connector) => prepared,
                () = shutdown.begun() => return Ok(None),
            };
            match prepared {
                Ok(policies) => return Ok(Some(policies)),
                Err(error) if error.is_temporary() => {
                    warn!(error = %chain(&error), attempt, "waiting for the broker");
                    if !shutdown.sleep(CONNECT_BACKOFF.wait(attempt, fastrand::f64())).await {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop above ends by returning")
    }

    async fn prepare_and_identify(&self, connector: &Connector) -> Result<PolicyCheck, TopologyError> {
        let policies = self.try_prepare(connector).await?;
        let user = connector.identify(&self.retry_exchange).await?;
        info!(%user, "the broker knows orderd's user by this name");
        Ok(policies)
    }

    /// Compares before it declares, so that a broker that contradicts the configuration is left unchanged.
    async fn try_prepare(&self, connector: &Connector) -> Result<PolicyCheck, TopologyError> {
        let policies = self.compare(Duration::ZERO).await?;
        if !self.declare {
            self.check_without_declaring(connector).await?;
            return Ok(policies);
        }
        let declared = connector.declare(self.topology.declarations()).await?;
        info!(created = declared.created_queues().len(), "topology declared");
        self.check_permissions(connector).await?;
        // A policy may match a queue that did not exist at the comparison.
        Ok(if declared.created_queues().is_empty() { policies } else { PolicyCheck::Incomplete })
    }

    /// Declares or checks what a running daemon's new configuration needs. Does not retry: the
    /// reload can be requested again.
    ///
    /// New queues are bound to the orders exchange only after their policies are known to drop no messages, so that no
    /// order enters a queue that a policy could delete it from. (At the start such a policy ends the daemon; here it must
    /// not.) RabbitMQ before 4.3 reports the policies of a new queue only after some seconds.
    ///
    /// # Errors
    /// [`TopologyError`]. Queues declared before remain, without a binding to the orders exchange.
    pub async fn extend(&self, connector: &Connector) -> Result<PolicyCheck, TopologyError> {
        let extending = async {
            let policies = self.compare(Duration::ZERO).await?;
            if !self.declare {
                self.check_without_declaring(connector).await?;
                return Ok(policies);
            }
            let (before, order_bindings) = self.topology.split_at_order_bindings();
            let created = connector.declare(before).await?.created;
            let policies = match (created.is_empty(), policies) {
                (true, PolicyCheck::Passed) => PolicyCheck::Passed,
                (true, PolicyCheck::Incomplete) | (false, _) => self.compare(POLICIES_TIMEOUT).await?,
            };
            connector.declare(order_bindings).await?;
            self.check_permissions(connector).await?;
            info!(?created, "topology extended");
            Ok(policies)
        };
        tokio::time::timeout(EXTEND_TIMEOUT, extending).await.unwrap_or(Err(TopologyError::TooSlow))
    }

    /// Declares again, or checks, what is already in use, and returns every problem. For a reload that changes nothing on the
    /// broker: the topology may have been deleted, or a policy added, since it was declared.
    pub async fn reapply(&self, connector: &Connector) -> Vec<String> {
        // At the same time: a comparison with what is being declared finds nothing that is missing to be wrong.
        let reapplying = async {
            let (mut problems, compared) = tokio::join!(self.declare_again(connector), self.audit(Duration::ZERO));
            match compared.map(|audit| self.evaluate(&audit)) {
                None | Some(Ok(_)) if self.declare => {}
                None | Some(Ok(_)) => {
                    problems.extend(self.check_without_declaring(connector).await.err().map(|error| chain(&error)))
                }
                Some(Err(contradiction)) => problems.push(chain(&contradiction)),
            }
            problems
        };
        let timed_out = |_| vec![chain(&TopologyError::TooSlow)];
        let problems = tokio::time::timeout(EXTEND_TIMEOUT, reapplying).await.unwrap_or_else(timed_out);
        // What was missing before may exist now, also if somebody else has declared it.
        connector.redeclaration().repaired();
        problems
    }

    async fn declare_again(&self, connector: &Connector) -> Vec<String> {
        if !self.declare {
            return Vec::new();
        }
        match connector.declare_possible(self.topology.declarations()).await {
            Ok(declared) => {
                if !declared.created.is_empty() {
                    let restored = joined(&declared.created, ", ");
                    warn!(restored, "declared again what was missing on the broker");
                }
                declared.refused.iter().map(|refused| chain(refused)).collect()
            }
            Err(error) => vec![chain(&error)],
        }
    }

    /// Completes a policy check that was incomplete at the start, and begins a shutdown if a policy would drop messages.
    /// RabbitMQ before 4.3 reports the policies of a new queue only with its first statistics.
    pub async fn complete_policy_check(self, shutdown: Shutdown) -> Result<(), TopologyError> {
        // Cancel-safe: it only reads.
        let compared = tokio::select! {
            compared = self.compare_policies() => compared,
            () = shutdown.begun() => return Ok(()),
        };
        match compared {
            Ok(PolicyCheck::Passed) => Ok(()),
            Ok(PolicyCheck::Incomplete) => {
                warn!("the broker does not report which policies apply to the queues; check that none drops messages");
                Ok(())
            }
            Err(contradiction) => {
                shutdown.begin();
                Err(contradiction)
            }
        }
    }

    async fn check_without_declaring(&self, connector: &Connector) -> Result<(), TopologyError> {
        self.check_permissions(connector).await?;
        let missing = connector.missing_objects(self.topology.declarations()).await?;
        if missing.is_empty() { Ok(()) } else { Err(TopologyError::Missing(joined(&missing, ", "))) }
    }

    async fn check_permissions(&self, connector: &Connector) -> Result<(), TopologyError> {
        let denied = match connector.denied_permissions(&self.permissions).await {
            Ok(denied) if denied.is_empty() => return Ok(()),
            Ok(denied) => denied,
            // The broker accepted the connection but did not answer, as under an alarm. Consumers and the publisher wait
            // until it is over.
            Err(error @ (ConnectError::Lost(_) | ConnectError::Blocked { .. })) => {
                warn!(error = %chain(&error), "cannot check the user's permissions");
                return Ok(());
            }
            Err(error) => return Err(DeclareError::Connect(error).into()),
        };
        let denied = denied.iter().map(|denied| &denied.permission);
        let (optional, denied): (Vec<_>, Vec<_>) =
            denied.partition(|denied| self.optional_permissions.contains(denied));
        if !optional.is_empty() {
            warn!(
                denied = joined(&optional, ", nor "),
                remedy = "`orderd check --permissions` prints the commands that grant it; or set dead_letters.collect = false",
                "the user may not drain the dead letter queues, so dead letters stay there"
            );
        }
        if denied.is_empty() {
            return Ok(());
        }
        Err(TopologyError::Denied(joined(&denied, ", nor ")))
    }

    /// Reads from the management API what exists and which policies apply to it, and compares it with the topology. Waits
    /// for at most `max_wait` until the API reports all policies. If the API does not answer, nothing is compared: the
    /// broker itself refuses wrong arguments, with less detail, and the policies are not known.
    async fn compare(&self, max_wait: Duration) -> Result<PolicyCheck, TopologyError> {
        self.audit_of_lasting_policies(max_wait).await.map_or(Ok(PolicyCheck::Passed), |audit| self.evaluate(&audit))
    }

    /// Like [`BrokerSetup::audit`], but a dangerous policy counts only if the broker still reports it after the time for which
    /// it may report a deleted one.
    async fn audit_of_lasting_policies(&self, max_wait: Duration) -> Option<Audit> {
        let mut audit = self.audit(max_wait).await?;
        let deadline = tokio::time::Instant::now() + DELETED_POLICIES_REPORTED;
        if let Some(policy) = audit.dangerous_policies.first() {
            warn!(%policy, "a policy would lose messages; asking again, since it may have been deleted meanwhile");
        }
        while !audit.dangerous_policies.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(POLICY_POLL).await;
            // Without an answer, what was reported last counts.
            if let Some(again) = self.audit(max_wait).await {
                audit = again;
            }
        }
        Some(audit)
    }

    async fn audit(&self, max_wait: Duration) -> Option<Audit> {
        let observed = match ManagementClient::new(&self.management, &self.virtual_host) {
            Ok(client) => client.observe_with_policies(&self.topology, max_wait).await,
            Err(error) => Err(error),
        };
        match observed {
            Ok(observed) => {
                Some(audit(&self.topology, &observed).with_consumer_timeouts(&self.longest_holds, &observed))
            }
            Err(error) => {
                warn!(
                    error = %chain(&error),
                    "cannot ask the management API: queue arguments, bindings and policies are not compared"
                );
                None
            }
        }
    }

    /// Like [`BrokerSetup::compare`], for the policies only: what has been deleted or changed since the start is a finding,
    /// and does not stop the daemon.
    async fn compare_policies(&self) -> Result<PolicyCheck, TopologyError> {
        let Some(audit) = self.audit_of_lasting_policies(POLICIES_TIMEOUT).await else {
            return Ok(PolicyCheck::Passed);
        };
        let policies = Audit {
            dangerous_policies: audit.dangerous_policies,
            unknown_policies: audit.unknown_policies,
            ..Audit::default()
        };
        self.evaluate(&policies)
    }

    fn evaluate(&self, audit: &Audit) -> Result<PolicyCheck, TopologyError> {
        if !self.declare && !audit.missing.is_empty() {
            return Err(TopologyError::Missing(joined(&audit.missing, ", ")));
        }
        if audit.forbids_start() {
            let mismatches = audit.mismatches.iter().map(ToString::to_string);
            let policies = audit.dangerous_policies.iter().map(ToString::to_string);
            return Err(TopologyError::Contradictions(mismatches.chain(policies).collect::<Vec<_>>().join("; ")));
        }
        // Otherwise, it is a finding.
        if self.management.poll_every.is_none() {
            for problem in &audit.short_consumer_timeouts {
                warn!(%problem, "the broker takes deliveries back too early: set a longer consumer_timeout, or a shorter timeout");
            }
        }
        Ok(if audit.unknown_policies.is_empty() { PolicyCheck::Passed } else { PolicyCheck::Incomplete })
    }
}

fn joined(items: &[impl ToString], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
