//! The topology of the default configuration on a real broker, and the audit of it through the management API.

use std::path::PathBuf;
use std::time::Duration;

use orderd::amqp::Connector;
use orderd::config::{Config, Management, Secret, Sources};
use orderd::handlers;
use orderd::management::ManagementClient;
use orderd::message::ExchangeNames;
use orderd::reconcile::audit::{Audit, audit};
use orderd::topology::Topology;

use crate::support::raw_client::{number, persistent};
use crate::support::{Node, Vhost, eventually, with_deadline};

/// The management API reports a queue's policies within ten seconds of its declaration.
const PATIENCE: Duration = Duration::from_secs(25);

fn topology() -> Topology {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml"));
    let sources = Sources { file: Some(file), ..handlers::sources() };
    Config::load(&sources).unwrap().config.topology()
}

fn client(vhost: &Vhost<'_>) -> ManagementClient {
    let management = Management {
        urls: vec![format!("http://127.0.0.1:{}", vhost.node.management_port)],
        username: "guest".into(),
        password: Secret::new("guest"),
        tls: Default::default(),
        poll_every: None,
    };
    ManagementClient::new(&management, &vhost.name).unwrap()
}

async fn audit_topology(vhost: &Vhost<'_>) -> Audit {
    let topology = topology();
    let observed = with_deadline("answer", client(vhost).observe_with_policies(&topology, PATIENCE)).await.unwrap();
    audit(&topology, &observed)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_can_be_declared_repeatedly_and_matches_the_broker() {
    let node = Node::shared();
    let vhost = node.vhost();
    let (topology, connector) = (topology(), Connector::new(vhost.broker()));
    assert_eq!(audit_topology(&vhost).await.missing.len(), topology.declarations().len());
    let declared = with_deadline("declared", connector.declare(topology.declarations())).await.unwrap();
    assert_eq!(declared.created_queues().len(), topology.queues().count());
    assert_eq!(audit_topology(&vhost).await, Audit::default());
    let again = with_deadline("declared again", connector.declare(topology.declarations())).await.unwrap();
    assert_eq!(again.created, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_would_lose_messages_are_found() {
    let node = Node::shared();
    let vhost = node.vhost();
    with_deadline("declared", Connector::new(vhost.broker()).declare(topology().declarations())).await.unwrap();
    let policy = r#"{"pattern":"^order_queue$","definition":{"overflow":"drop-head"},"apply-to":"queues"}"#;
    let operator = r#"{"pattern":"^dead_letter","definition":{"message-ttl":1000},"apply-to":"queues"}"#;
    node.management("PUT", &format!("/policies/{}/mine", vhost.name), policy);
    node.management("PUT", &format!("/operator-policies/{}/ops", vhost.name), operator);
    eventually("both policies are found", async || {
        let found = audit_topology(&vhost).await.dangerous_policies;
        let settings = found.iter().flat_map(|policy| &policy.settings);
        let keys: Vec<_> = settings.map(|setting| (setting.queues.join(" "), setting.key.as_str())).collect();
        keys == [("order_queue".to_owned(), "overflow"), ("dead_letter_queue".to_owned(), "message-ttl")]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_another_argument_is_reported_with_both_values() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("order_queue", &[number("x-delivery-limit", 5)]);
    let mismatches: Vec<String> = audit_topology(&vhost).await.mismatches.iter().map(ToString::to_string).collect();
    let expected = "queue \"order_queue\": argument \"x-delivery-limit\": expected 20, is 5";
    assert!(mismatches.contains(&expected.to_owned()), "{mismatches:#?}");
}

/// Without a delivery limit, RabbitMQ 4.x drops a message when it is requeued for the 21st time. With a limit of -1,
/// RabbitMQ 3.10 drops it the first time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_lettered_message_survives_being_inspected_many_times() {
    let node = Node::shared();
    let vhost = node.vhost();
    with_deadline("declared", Connector::new(vhost.broker()).declare(topology().declarations())).await.unwrap();
    let mut raw = vhost.raw();
    raw.publish(ExchangeNames::DEAD_LETTER_QUEUE, &persistent(), b"dead_lettered");
    eventually("the message is in the queue", async || vhost.raw().depth(ExchangeNames::DEAD_LETTER_QUEUE) == 1).await;
    let get = format!("/queues/{}/{}/get", vhost.name, ExchangeNames::DEAD_LETTER_QUEUE);
    for round in 0..30 {
        let body = r#"{"count":1,"ackmode":"reject_requeue_true","encoding":"auto"}"#;
        let (_, answer) = node.management("POST", &get, body);
        assert_eq!(answer[0]["payload"], "dead_lettered", "in round {round}");
    }
}
