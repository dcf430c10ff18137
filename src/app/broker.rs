//! Getting the broker ready: comparing what it has with what it must have, declaring what is missing.
//!
//! It never deletes or changes anything that is there.

use std::time::Duration;

use tracing::{info, warn};

use crate::amqp::{ConnectError, Connector, DeclareError};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::Config;
use crate::management::ManagementClient;
use crate::reconcile::audit::audit;
use crate::shutdown::Shutdown;
use crate::topology::{RequiredPermission, Topology};

/// Waits between attempts to reach the broker at start.
const REACH: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(15) };
/// How long the broker may take to tell the policies of new queues.
const POLICY_PATIENCE: Duration = Duration::from_secs(20);
/// How long a running daemon may take to change the topology.
const EXTEND_WITHIN: Duration = Duration::from_secs(60);

/// Why the topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Declaring or checking failed.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The user may not do all that orderd does.
    #[error(
        "the broker does not let the user {0}; `orderd check --permissions` prints the commands that grant what is needed"
    )]
    Denied(String),
    /// `topology.declare` is off and something is not there.
    #[error("topology.declare is false and the broker lacks: {0}")]
    Missing(String),
    /// Queues or exchanges are there with other arguments, or policies would lose what queues hold.
    #[error("the broker contradicts the configuration, and nothing was changed: {0}")]
    Contradictions(String),
    /// The broker took too long. What it has declared by then stays.
    #[error("the broker did not do what the topology needs within {} s", EXTEND_WITHIN.as_secs())]
    TooSlow,
}

impl TopologyError {
    /// Whether it passes by itself: no person has to change anything.
    pub(super) fn passes(&self) -> bool {
        match self {
            TopologyError::Declare(error) => !error.is_permanent(),
            TopologyError::TooSlow => true,
            TopologyError::Denied(_) | TopologyError::Missing(_) | TopologyError::Contradictions(_) => false,
        }
    }
}

/// Declares or checks the topology, waiting for a broker that cannot be reached yet. `None` when a shutdown came
/// first.
pub(super) async fn prepare(
    link: &Connector,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Option<Policies>, TopologyError> {
    for attempt in 0.. {
        // Dropping the attempt at shutdown is fine: declarations can be repeated.
        let prepared = tokio::select! {
            prepared = try_topology(link, config) => prepared,
            () = shutdown.begun() => return Ok(None),
        };
        match prepared {
            Ok(policies) => return Ok(Some(policies)),
            Err(error) if error.passes() => {
                warn!(error = %chain(&error), attempt, "waiting for the broker");
                if !shutdown.sleep(REACH.wait(attempt, fastrand::f64())).await {
                    return Ok(None);
                }
            }
            Err(final_word) => return Err(final_word),
        }
    }
    unreachable!("the loop above ends by returning")
}

/// Whether the policies in force on the queues have been judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policies {
    /// They are harmless, or there is no management API to ask.
    Judged,
    /// The broker has not told all of them yet.
    Untold,
}

/// Compares before it declares, so that a broker which contradicts the configuration is left as it is.
async fn try_topology(link: &Connector, config: &Config) -> Result<Policies, TopologyError> {
    let topology = config.topology();
    let policies = compare(config, &topology, Duration::ZERO).await?;
    if !config.topology.declare {
        check_permissions(link, &config.needs()).await?;
        missing(link, &topology).await?;
        return Ok(policies);
    }
    let declared = link.declare(topology.declarations()).await?;
    info!(created = declared.created.len(), "topology declared");
    check_permissions(link, &config.work()).await?;
    // A policy may match a queue that was not there before.
    Ok(if declared.created.is_empty() { policies } else { Policies::Untold })
}

/// Asks whether the user may do all that it will have to: it had better be known now than with the first failure.
async fn check_permissions(link: &Connector, needs: &[RequiredPermission]) -> Result<(), TopologyError> {
    let denied = match link.denied_permissions(needs).await {
        Ok(denied) if denied.is_empty() => return Ok(()),
        Ok(denied) => denied,
        // Connected, and then no answer, as under an alarm: those who work will meet it, and wait.
        Err(error @ ConnectError::Lost(_)) => {
            warn!(error = %chain(&error), "cannot ask what the user may do");
            return Ok(());
        }
        Err(error) => return Err(DeclareError::Connect(error).into()),
    };
    let denied: Vec<_> = denied.iter().map(|denied| denied.permission.to_string()).collect();
    Err(TopologyError::Denied(denied.join(", nor ")))
}

/// Adds what a running daemon's new configuration needs, once: whoever asked for it is there to try again.
///
/// New queues are bound to the orders exchange only when the policies that rule them are known to be harmless, so that
/// none gets an order that a policy could delete; at the start such a policy ends the daemon, here it must not. RabbitMQ
/// before 4.3 tells the policies of a new queue only after some seconds.
///
/// # Errors
/// [`TopologyError`]. Queues declared by then stay, unbound.
pub(super) async fn extend(link: &Connector, config: &Config) -> Result<Policies, TopologyError> {
    let extending = async {
        let topology = config.topology();
        let policies = compare(config, &topology, Duration::ZERO).await?;
        if !config.topology.declare {
            check_permissions(link, &config.needs()).await?;
            missing(link, &topology).await?;
            return Ok(policies);
        }
        let (before, bindings) = topology.split_at_order_bindings();
        let created = link.declare(before).await?.created;
        let policies = match (created.is_empty(), policies) {
            (true, Policies::Judged) => Policies::Judged,
            (true, Policies::Untold) | (false, _) => compare(config, &topology, POLICY_PATIENCE).await?,
        };
        link.declare(bindings).await?;
        check_permissions(link, &config.work()).await?;
        info!(?created, "topology extended");
        Ok(policies)
    };
    tokio::time::timeout(EXTEND_WITHIN, extending).await.unwrap_or(Err(TopologyError::TooSlow))
}

/// With `topology.declare` off, everything must be there.
async fn missing(link: &Connector, topology: &Topology) -> Result<(), TopologyError> {
    let missing: Vec<_> =
        link.missing_objects(topology.declarations()).await?.iter().map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(TopologyError::Missing(missing.join(", "))) }
}

/// Asks the management API what is there and which policies rule it, for at most `patience` if it has not told
/// all. Without an answer the start goes on: the broker itself refuses wrong arguments, but says less about
/// them, and policies stay unseen.
async fn compare(config: &Config, topology: &Topology, patience: Duration) -> Result<Policies, TopologyError> {
    let client = ManagementClient::new(&config.management, &config.broker.virtual_host);
    let observed = match client {
        Ok(client) => client.observe_with_policies(topology, patience).await,
        Err(error) => Err(error),
    };
    let audit = match observed {
        Ok(observed) => audit(topology, &observed),
        Err(error) => {
            warn!(
                error = %chain(&error),
                "cannot ask the management API: queue arguments, bindings and policies are not compared"
            );
            return Ok(Policies::Judged);
        }
    };
    if !config.topology.declare && !audit.missing.is_empty() {
        let missing: Vec<_> = audit.missing.iter().map(ToString::to_string).collect();
        return Err(TopologyError::Missing(missing.join(", ")));
    }
    if audit.refuses() {
        let mismatches = audit.mismatches.iter().map(ToString::to_string);
        let contradictions: Vec<_> =
            mismatches.chain(audit.dangerous_policies.iter().map(ToString::to_string)).collect();
        return Err(TopologyError::Contradictions(contradictions.join("; ")));
    }
    Ok(if audit.unknown_policies.is_empty() { Policies::Judged } else { Policies::Untold })
}

/// Judges policies that were not told at the start; a dangerous one ends the daemon. RabbitMQ before 4.3 tells
/// the policies of a new queue only with its first statistics.
pub(super) async fn judge_policies(config: Config, shutdown: Shutdown) -> Result<(), TopologyError> {
    let topology = config.topology();
    // Cancel-safe: it only asks.
    let judged = tokio::select! {
        judged = compare(&config, &topology, POLICY_PATIENCE) => judged,
        () = shutdown.begun() => return Ok(()),
    };
    match judged {
        Ok(Policies::Judged) => Ok(()),
        Ok(Policies::Untold) => {
            warn!("the broker does not tell which policies are in force; check that none drops messages");
            Ok(())
        }
        Err(contradiction) => {
            shutdown.begin();
            Err(contradiction)
        }
    }
}
