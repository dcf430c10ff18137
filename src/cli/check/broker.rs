//! `orderd check --connect`: connects to the broker and compares it with the configuration. It changes nothing.

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::super::Exit;
use crate::amqp::{ConnectError, Connector, DeniedPermission, IdentityError};
use crate::chain::chain;
use crate::config::{Address, Config};
use crate::management::{ManagementClient, ManagementError};
use crate::reconcile::audit::{Audit, audit};
use crate::topology::Object;

/// How long to wait for the effective policies of queues. The broker reports them within ten seconds of a queue's
/// declaration (measured).
const POLICY_DEADLINE: Duration = Duration::from_secs(15);

/// What the broker reports. As JSON:
///
/// ```json
/// {"addresses": [{"address": "127.0.0.1:5672", "error": null}],
///  "amqp": {"error": null}, "user": {"name": "orderd", "error": null},
///  "denied": ["publish to exchange \"orders.retry\" with key \"\""],
///  "management": {"url": "http://127.0.0.1:15672", "error": null},
///  "missing": [{"kind": "queue", "name": "order_queue"}],
///  "mismatches": [{"object": {"kind": "queue", "name": "order_queue"}, "argument": "x-delivery-limit",
///                  "expected": 20, "actual": 5}],
///  "dangerous_policies": [{"policies": ["mine"], "queues": ["order_queue"],
///                          "settings": [{"key": "overflow", "value": "drop-head", "effect": "…", "queues": ["order_queue"]}]}],
///  "short_consumer_timeouts": [{"queue": "order_queue", "consumer_timeout_ms": 120000, "longest_hold_ms": 360000}],
///  "unknown_policies": ["order_queue"],
///  "extra_bindings": [{"kind": "binding", "exchange": "orders", "queue": "order_queue", "routing_key": "old"}]}
/// ```
///
/// The lists are null if the management API did not answer.
#[derive(Debug)]
pub struct BrokerReport {
    /// Each address of the configuration.
    pub addresses: Vec<AddressReport>,
    /// What orderd's user may not do; an error if the broker could not be asked by AMQP.
    pub denied: Result<Vec<DeniedPermission>, ConnectError>,
    /// The broker's name of orderd's user; `None` if that cannot be found out yet, for example because no exchange exists.
    pub user: Option<Result<String, IdentityError>>,
    /// The management API's address.
    pub management_url: String,
    /// How the broker differs from the configuration.
    pub audit: Result<Audit, ManagementError>,
}

/// The result of connecting to one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressReport {
    /// `host:port`.
    pub address: String,
    /// Why it does not accept connections; `None` if it does.
    pub error: Option<String>,
}

/// Asks the broker.
pub(super) async fn ask(config: &Config) -> BrokerReport {
    let mut addresses = Vec::new();
    for address in &config.broker.addresses {
        addresses.push(connect(address, config.broker.connect_timeout).await);
    }
    let management_url = config.management.urls.join(", ");
    let connector = Connector::new(config.broker.clone());
    let denied = connector.denied_permissions(&config.required_permissions()).await;
    let user = match &denied {
        Ok(denied) if denied.is_empty() => {
            Some(connector.identify(&config.names().retry).await.map(|name| name.to_string()))
        }
        Ok(_) | Err(_) => None,
    };
    let user = user.filter(|user| user.as_ref().err().is_none_or(IdentityError::is_permanent));
    BrokerReport { addresses, denied, user, management_url, audit: ask_management(config).await }
}

async fn connect(address: &Address, deadline: Duration) -> AddressReport {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let error = match tokio::time::timeout(deadline, connecting).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no connection within {}", crate::config::duration::format(deadline))),
    };
    AddressReport { address: address.to_string(), error }
}

async fn ask_management(config: &Config) -> Result<Audit, ManagementError> {
    let topology = config.topology();
    let client = ManagementClient::new(&config.management, &config.broker.virtual_host)?;
    let observed = client.observe_with_policies(&topology, POLICY_DEADLINE).await?;
    Ok(audit(&topology, &observed).with_consumer_timeouts(&config.longest_holds(), &observed))
}

impl BrokerReport {
    /// `true` if no address accepts connections.
    fn is_unreachable(&self) -> bool {
        self.addresses.iter().all(|address| address.error.is_some())
    }

    /// What prevents orderd from running or is missing, one line each. `declare`: whether orderd declares what is missing.
    pub fn problems(&self, declare: bool) -> Vec<String> {
        let mut problems = Vec::new();
        if self.is_unreachable() {
            problems.extend(self.addresses.iter().filter_map(|address| {
                Some(format!("cannot connect to {}: {}", address.address, address.error.as_deref()?))
            }));
        }
        match &self.denied {
            Ok(denied) => problems.extend(denied.iter().map(|denied| {
                format!(
                    "the user may not {}: {} (`orderd check --permissions` prints the commands that grant it)",
                    denied.permission, denied.reply
                )
            })),
            Err(_) if self.is_unreachable() => {}
            Err(error) => problems.push(chain(error)),
        }
        problems.extend(self.user.iter().filter_map(|user| user.as_ref().err()).map(|error| chain(error)));
        match &self.audit {
            Ok(audit) => {
                problems.extend(audit.mismatches.iter().map(ToString::to_string));
                problems.extend(audit.dangerous_policies.iter().map(ToString::to_string));
                problems.extend(audit.short_consumer_timeouts.iter().map(|short| {
                    format!(
                        "{short}: set a longer consumer_timeout on the broker, or a shorter timeout of the consumer"
                    )
                }));
                let remedy = |object: &str| match declare {
                    true => format!("orderd declares {object} at its start, or `orderd reload` does if it runs"),
                    false => format!("topology.declare is false, so create {object} yourself"),
                };
                problems.extend(match &audit.missing[..] {
                    [] | [_] | [_, _] | [_, _, _] => {
                        let missing = audit.missing.iter();
                        missing.map(|object| format!("{object} is missing: {}", remedy("it"))).collect::<Vec<_>>()
                    }
                    // The report lists them.
                    [first, rest @ ..] => {
                        vec![format!("{first} and {} other objects are missing: {}", rest.len(), remedy("them"))]
                    }
                });
            }
            Err(error) => problems.push(chain(error)),
        }
        problems
    }

    /// The broker's name of orderd's user, if it is known.
    pub fn user_name(&self) -> Option<&str> {
        self.user.as_ref()?.as_deref().ok()
    }

    /// The exit code: 69 if the broker is unreachable, 78 if it contradicts the configuration or something is missing.
    pub fn exit(&self) -> Exit {
        match &self.denied {
            _ if self.is_unreachable() => return Exit::Unavailable,
            Ok(denied) if !denied.is_empty() => return Exit::Config,
            Err(error) if error.is_permanent() => return Exit::Config,
            Err(_) => return Exit::Unavailable,
            Ok(_) => {}
        }
        if matches!(self.user, Some(Err(_))) {
            return Exit::Config;
        }
        match &self.audit {
            Err(
                ManagementError::Refused { .. } | ManagementError::NoVirtualHost { .. } | ManagementError::Setup { .. },
            ) => Exit::Config,
            Err(ManagementError::Tls { error, .. }) if error.is_permanent() => Exit::Config,
            Err(
                ManagementError::Unreachable { .. }
                | ManagementError::Tls { .. }
                | ManagementError::Status { .. }
                | ManagementError::TooLong { .. }
                | ManagementError::Malformed { .. },
            ) => Exit::Unavailable,
            Ok(audit)
                if audit.forbids_start() || !audit.missing.is_empty() || !audit.short_consumer_timeouts.is_empty() =>
            {
                Exit::Config
            }
            Ok(_) => Exit::Done,
        }
    }
}

fn object(object: &Object) -> Value {
    match object {
        Object::Exchange(name) => json!({"kind": "exchange", "name": name}),
        Object::Queue(name) => json!({"kind": "queue", "name": name}),
        Object::Binding { exchange, queue, routing_key } => {
            json!({"kind": "binding", "exchange": exchange, "queue": queue, "routing_key": routing_key})
        }
    }
}

/// Parses a value that is JSON text.
fn parsed(json: Option<&str>) -> Value {
    json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or(Value::Null)
}

impl Serialize for BrokerReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("addresses", &self.addresses)?;
        let error = self.denied.as_ref().err().map(|error| chain(error));
        map.serialize_entry("amqp", &json!({"error": error}))?;
        let error = self.user.as_ref().and_then(|user| user.as_ref().err()).map(|error| chain(error));
        map.serialize_entry("user", &json!({"name": self.user_name(), "error": error}))?;
        let denied = self.denied.as_ref().ok();
        let permissions =
            denied.map(|denied| denied.iter().map(|denied| denied.permission.to_string()).collect::<Vec<_>>());
        map.serialize_entry("denied", &permissions)?;
        let error = self.audit.as_ref().err().map(|error| chain(error));
        map.serialize_entry("management", &json!({"url": self.management_url, "error": error}))?;
        let audit = self.audit.as_ref().ok();
        let objects = |objects: &[Object]| objects.iter().map(object).collect::<Vec<_>>();
        map.serialize_entry("missing", &audit.map(|audit| objects(&audit.missing)))?;
        map.serialize_entry("mismatches", &audit.map(mismatches))?;
        map.serialize_entry("dangerous_policies", &audit.map(policies))?;
        map.serialize_entry("short_consumer_timeouts", &audit.map(consumer_timeouts))?;
        map.serialize_entry("unknown_policies", &audit.map(|audit| &audit.unknown_policies))?;
        map.serialize_entry("extra_bindings", &audit.map(|audit| objects(&audit.extra_bindings)))?;
        map.end()
    }
}

fn mismatches(audit: &Audit) -> Vec<Value> {
    let mismatch = |found: &crate::reconcile::audit::Mismatch| {
        json!({
            "object": object(&found.object),
            "argument": found.argument,
            "expected": parsed(found.expected.as_deref()),
            "actual": parsed(found.actual.as_deref()),
        })
    };
    audit.mismatches.iter().map(mismatch).collect()
}

fn consumer_timeouts(audit: &Audit) -> Vec<Value> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let short = |found: &crate::reconcile::ShortConsumerTimeout| {
        json!({
            "queue": found.queue,
            "consumer_timeout_ms": millis(found.consumer_timeout),
            "longest_hold_ms": millis(found.longest_hold),
        })
    };
    audit.short_consumer_timeouts.iter().map(short).collect()
}

fn policies(audit: &Audit) -> Vec<Value> {
    let policy = |found: &crate::reconcile::audit::DangerousPolicy| json!({"policies": found.policies, "queues": found.queues(), "settings": found.settings});
    audit.dangerous_policies.iter().map(policy).collect()
}
