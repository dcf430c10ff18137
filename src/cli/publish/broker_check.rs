//! Checks, before the first line is published, that the broker is reachable, that the exchange exists and that the user may
//! publish to it. If not, publishing would wait forever.
//!
//! It publishes and declares nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::super::{Exit, print_error};
use super::routing_keys;
use crate::amqp::{Connector, DeclareError, DeniedPermission};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::config::{Config, duration};
use crate::topology::{Declaration, RequiredPermission};

/// Waits between attempts to reach the broker.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(2) };
/// The least time for an attempt to reach the broker.
const MIN_ATTEMPT: Duration = Duration::from_millis(100);

/// Why nothing is published.
enum Refusal {
    /// The broker may answer another attempt.
    Temporary(String),
    Permanent(String, Exit),
}

/// Repeats the check for `broker.connect_timeout` while the broker cannot be reached. Prints why nothing is published.
pub(super) async fn check(config: &Config, routing_key: Option<&str>) -> Result<(), Exit> {
    let limit = config.broker.connect_timeout;
    let deadline = Instant::now() + limit;
    let mut attempt = 0;
    loop {
        let mut broker = config.broker.clone();
        broker.connect_timeout = deadline.saturating_duration_since(Instant::now()).max(MIN_ATTEMPT);
        let (problem, exit) = match check_once(&Connector::new(broker), config, routing_key).await {
            Ok(()) => return Ok(()),
            Err(Refusal::Temporary(problem)) => (problem, None),
            Err(Refusal::Permanent(problem, exit)) => (problem, Some(exit)),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(exit) = exit.or(left.is_zero().then_some(Exit::Unavailable)) {
            print_error(&problem);
            return Err(exit);
        }
        if attempt == 0 {
            print_error(&format!("{problem}; trying again for up to {}", duration::format(limit)));
        }
        tokio::time::sleep(BACKOFF.wait(attempt, fastrand::f64()).min(left)).await;
        attempt += 1;
    }
}

async fn check_once(connector: &Connector, config: &Config, routing_key: Option<&str>) -> Result<(), Refusal> {
    let exchange = config.names().orders;
    let topology = config.topology();
    let declaration = topology.exchanges().filter(|known| *known.name == *exchange).cloned().map(Declaration::Exchange);
    match connector.missing_objects(&declaration.collect::<Vec<_>>()).await {
        Ok(missing) if missing.is_empty() => check_permission(connector, config, routing_key).await,
        Ok(_) => {
            let problem = format!("exchange {exchange:?} does not exist; `orderd run` declares it");
            Err(Refusal::Permanent(problem, Exit::Config))
        }
        // RabbitMQ 4.3 requires a permission even for a passive declaration.
        Err(DeclareError::AccessRefused { .. }) => check_permission(connector, config, routing_key).await,
        Err(DeclareError::Connect(error)) if error.is_permanent() => {
            Err(Refusal::Permanent(chain(&error), Exit::Config))
        }
        Err(DeclareError::Connect(error)) => Err(Refusal::Temporary(chain(&error))),
        Err(error) if error.is_permanent() => Err(Refusal::Permanent(chain(&error), Exit::Config)),
        Err(error) => Err(Refusal::Temporary(chain(&error))),
    }
}

/// Checks that the user may publish with at least one of the routing keys that lines can get. If only some are allowed,
/// the broker refuses the other lines one by one.
async fn check_permission(connector: &Connector, config: &Config, routing_key: Option<&str>) -> Result<(), Refusal> {
    let exchange = config.names().orders;
    let keys = routing_keys(routing_key);
    let permission =
        |key: &&str| RequiredPermission::Publish { exchange: exchange.to_string(), routing_key: (*key).to_owned() };
    match connector.denied_permissions(&keys.iter().map(permission).collect::<Vec<_>>()).await {
        Ok(denied) if denied.len() == keys.len() => {
            let DeniedPermission { permission, reply } = &denied[0];
            let problem = format!(
                "user {:?} may not {permission}: {reply}; `orderd check --permissions` prints the commands for a producer's \
                 user, and ORDERD_BROKER__USERNAME and ORDERD_BROKER__PASSWORD_FILE name it",
                config.broker.username
            );
            Err(Refusal::Permanent(problem, Exit::Config))
        }
        // A broker that has an alarm or does not answer now may accept the lines later.
        Ok(_) | Err(_) => Ok(()),
    }
}
