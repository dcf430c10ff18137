//! TLS and client certificates: on a broker that supports both, renewed while orderd runs, and with every mismatch.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::pause::send_command;
use crate::support::certificates::{CertificateAuthority, Validity};
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};
use crate::support::{Node, http};

const CONFIG: i32 = 78;
const ORDERS: u64 = 1000;
/// The common name in the client certificate, which RabbitMQ takes as the user name.
const USER: &str = "orderd-tls";

/// Writes the broker's TLS configuration. `strict`: it requires a client certificate, and does not offer EXTERNAL.
fn write_broker_conf(directory: &Path, strict: bool) {
    let file = |name: &str| directory.join(name).display().to_string();
    let files = |prefix: &str| {
        format!(
            "{prefix}.cacertfile = {}\n{prefix}.certfile = {}\n{prefix}.keyfile = {}\n",
            file("ca.pem"),
            file("server.pem"),
            file("server.key")
        )
    };
    let external = "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n";
    let text = format!(
        "{}{}ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = {strict}\n{}",
        files("ssl_options"),
        files("management.ssl"),
        if strict { "" } else { external }
    );
    fs::write(directory.join("rabbitmq.conf"), text).unwrap();
}

/// A test environment whose orderd uses TLS for the broker and the management API.
fn env<'a>(node: &'a Node, directory: &Path) -> TestEnv<'a> {
    TestEnv::new(node)
        .set("log.level", "info")
        .set("broker.addresses", &format!("localhost:{}", node.amqps_port))
        .set("broker.tls.ca_file", directory.join("ca.pem").to_str().unwrap())
        .set("management.url", &format!("https://localhost:{}", node.management_tls_port))
}

trait Identified {
    fn with_certificate(self, directory: &Path, name: &str) -> Self;
}

impl Identified for TestEnv<'_> {
    fn with_certificate(self, directory: &Path, name: &str) -> Self {
        self.set("broker.tls.certificate_file", directory.join(format!("{name}.pem")).to_str().unwrap())
            .set("broker.tls.key_file", directory.join(format!("{name}.key")).to_str().unwrap())
    }
}

fn flood(env: &TestEnv<'_>, name: &str) {
    let orders = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("{name}-{n}"))));
    env.raw().publish_all("orders", orders);
}

/// What the broker knows of orderd's connections in a virtual host, each with all its fields.
fn connections(env: &TestEnv<'_>) -> Vec<Value> {
    let (_, found) = env.vhost.node.management("GET", &format!("/vhosts/{}/connections", env.vhost.name), "");
    let of_orderd = |one: &&Value| {
        one["client_properties"]["connection_name"].as_str().is_some_and(|name| name.starts_with("orderd "))
    };
    found.as_array().map(|found| found.iter().filter(of_orderd).cloned().collect()).unwrap_or_default()
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
}

#[test]
fn own_node_tls_works_is_renewed_and_fails_with_clear_errors() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let directory = directory.path();
    let authority = CertificateAuthority::new(directory, "ca");
    authority.issue_server_certificate("server", Validity::Current);
    write_broker_conf(directory, false);
    let node = Node::own_with_tls("tls", directory);

    orders_are_processed_over_tls_and_idle_connections_live(&node, directory);
    a_replaced_certificate_is_in_use_from_the_next_connection_on(&node, directory, &authority);
    messages_of_an_earlier_run_are_orderds_own_whatever_the_broker_calls_its_user(&node, directory);
    each_tls_mismatch_has_its_own_error(&node, directory, &authority);
    an_expired_server_certificate_is_reported(&node, directory, &authority);

    write_broker_conf(directory, true);
    node.kill();
    node.restart();
    a_required_client_certificate_is_sent_or_reported_missing(&node, directory, &authority);
}

fn orders_are_processed_over_tls_and_idle_connections_live(node: &Node, directory: &Path) {
    let env = env(node, directory).set("broker.heartbeat", "4s");
    let mut orderd = env.start();
    flood(&env, "tls");
    env.ledger().await_settled(ORDERS);
    wait_until("the broker lists its connections", || connections(&env).len() >= 6);
    for connection in connections(&env) {
        assert_eq!(connection["ssl"], true, "{connection}");
        assert!(connection["ssl_protocol"].as_str().unwrap().starts_with("tlsv1."), "{connection}");
    }
    wait_until("the management API is asked over TLS", || status(&orderd)["broker"]["api"]["state"] == "fresh");

    // Silent but for heartbeats, several of which each connection must show. A connection whose frames are stuck
    // is closed by the broker within two.
    let names = |found: &[Value]| found.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let octets = |found: &[Value]| found.iter().map(|one| one["recv_oct"].as_u64().unwrap_or(0)).collect::<Vec<_>>();
    let standing = connections(&env);
    let (before, mut last) = (names(&standing), octets(&standing));
    for beat in 0..3 {
        wait_until(&format!("heartbeat {beat} arrives on each connection"), || {
            let found = connections(&env);
            assert_eq!(names(&found), before, "a connection was lost while idle");
            octets(&found).iter().zip(&last).all(|(now, then)| now > then)
        });
        last = octets(&connections(&env));
    }
    assert_eq!(
        orderd.log_lines("publishing connection lost").len() + orderd.log_lines("lost the subscription").len(),
        0
    );

    // A lost connection is replaced.
    flood(&env, "again");
    env.vhost.close_connections();
    env.ledger().await_settled(2 * ORDERS);
    assert_eq!(orderd.stop(), 0);
}

/// The daemon's status.
fn status(orderd: &OrderdProcess) -> Value {
    http::json(orderd.admin_address(), "/api/v1/status")
}

fn a_replaced_certificate_is_in_use_from_the_next_connection_on(
    node: &Node,
    directory: &Path,
    authority: &CertificateAuthority,
) {
    authority.issue_client_certificate("client", USER, 0x1001);
    let env = env(node, directory).with_certificate(directory, "client").set("broker.mechanism", "external");
    // This user needs no password.
    let user = format!("/users/{USER}");
    assert_eq!(node.management("PUT", &user, r#"{"password_hash":"","tags":""}"#).0, 201);
    let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
    node.management("PUT", &format!("/permissions/{}/{USER}", env.vhost.name), everything);
    let mut orderd = env.start();
    flood(&env, "mtls");
    env.ledger().await_settled(ORDERS);
    wait_until("the broker lists its connections", || connections(&env).len() >= 6);
    assert!(connections(&env).iter().all(|one| one["user"] == USER && one["auth_mechanism"] == "EXTERNAL"));
    assert!(connections(&env).iter().all(|one| shows_serial(one, "1001")), "{:#?}", connections(&env));

    let private = fs::read_to_string(authority.file("client", "key")).unwrap();
    let line = private.lines().nth(1).unwrap();
    assert!(!(orderd.output() + &status(&orderd).to_string()).contains(line), "the private key is shown");

    // The key does not match the certificate: the last good pair stays in use, and an error is logged once.
    let key = fs::read(authority.file("client", "key")).unwrap();
    authority.issue_client_certificate("client", USER, 0x1002);
    let renewed = fs::read(authority.file("client", "key")).unwrap();
    fs::write(authority.file("client", "key"), &key).unwrap();
    env.vhost.close_connections();
    wait_until("the bad pair is reported", || {
        orderd.has_logged("cannot use the current certificate files; still using the last good ones")
    });
    flood(&env, "bad-pair");
    env.ledger().await_settled(2 * ORDERS);
    let lines = orderd.log_lines("cannot use the current certificate files; still using the last good ones");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_says(lines[0]["error"].as_str().unwrap(), &["key_file", "client.key", "client.pem"]);

    // With the matching key, orderd uses the new certificate.
    fs::write(authority.file("client", "key"), renewed).unwrap();
    env.vhost.close_connections();
    wait_until("the broker sees the new certificate on every connection", || {
        let found = connections(&env);
        found.len() >= 6 && found.iter().all(|one| shows_serial(one, "1002"))
    });
    flood(&env, "renewed");
    env.ledger().await_settled(3 * ORDERS);
    let lines = orderd.log_lines("using a new client certificate");
    assert_eq!(lines.iter().map(|line| line["serial"].as_str().unwrap()).collect::<Vec<_>>(), ["1002"]);
    assert_eq!(orderd.stop(), 0);
}

/// The user is that of the certificate, and the configuration says `guest`. Sales and failed orders that one run leaves in the
/// queues are counted and retried by the next one, from its first delivery on. Those of `guest` are not.
fn messages_of_an_earlier_run_are_orderds_own_whatever_the_broker_calls_its_user(node: &Node, directory: &Path) {
    let env = env(node, directory)
        .with_certificate(directory, "client")
        .set("broker.mechanism", "external")
        .set("consumers.priority.retry.immediate", "0")
        .set("consumers.priority.retry.delays", r#"["300ms"]"#);
    let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
    node.management("PUT", &format!("/permissions/{}/{USER}", env.vhost.name), everything);
    let mut first = env.start_with(&[("consumers.priority.faults.transient", "1.0")]);
    let user = first.log_lines("the broker knows orderd's user by this name");
    assert_eq!(user.iter().map(|line| line["user"].as_str().unwrap()).collect::<Vec<_>>(), [USER]);
    for consumer in ["analytics", "failed"] {
        assert_eq!(send_command(&first, "pause", consumer).0, 200);
    }
    let mut raw = env.raw();
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order("sold"));
    raw.publish_to("orders", "order.priority.created", &Properties::persistent(), &order("retried"));
    wait_until("a sale and a failed order are queued", || {
        raw.depth("analytics_queue") == 1 && raw.depth("failed_order_queue") == 1
    });
    assert_eq!(first.stop(), 0);
    let forged = br#"{"event":"processed","order_id":"forged","product":"Yacht","quantity":1,"price":"9","total":"9",
        "currency":"EUR","at":"2026-11-22T08:00:00Z"}"#;
    let guests = Properties::persistent().text("user_id", "guest").text("message_id", "forged/analytics/processed");
    raw.publish_to("orders", "order.analytics.processed", &guests, forged);
    fs::remove_dir_all(env.ledger_directory().join("paused")).unwrap();

    let mut second = env.start();
    let ledger = env.ledger();
    wait_until("both orders are sold", || ledger.number("SELECT count(*) FROM events WHERE kind = 'analytics'") == 3);
    assert_eq!(ledger.rows("SELECT product, orders FROM sales WHERE granularity = 'day'"), ["Laptop|2"]);
    assert_eq!(ledger.number("SELECT count(*) FROM dead_letters"), 0);
    let mut check = env.command(&["check", "--connect", "--format", "json"]);
    assert_eq!(check.wait_for_exit(), 0, "{}", check.output());
    let report: Value = serde_json::from_str(&check.stdout()).unwrap();
    assert_eq!(
        (&report["connected"]["user"]["name"], &report["warnings"]),
        (&Value::from(USER), &Value::from(vec![0; 0]))
    );
    assert_eq!(second.stop(), 0);
}

fn shows_serial(connection: &Value, serial: &str) -> bool {
    connection["peer_cert_subject"].as_str().is_some_and(|subject| subject.contains(&format!("serial {serial}")))
}

fn each_tls_mismatch_has_its_own_error(node: &Node, directory: &Path, authority: &CertificateAuthority) {
    let other = CertificateAuthority::new(directory, "other");
    let stranger = env(node, directory).set("broker.tls.ca_file", other.file("other", "pem").to_str().unwrap());
    assert_says(&stranger.spawn().startup_error(), &["[broker.tls]", "ca_file", "not signed"]);
    let misnamed = env(node, directory).set("broker.tls.server_name", "rabbit.internal");
    assert_says(&misnamed.spawn().startup_error(), &["rabbit.internal", "localhost", "server_name"]);
    let plain_port = env(node, directory).set("broker.addresses", &format!("localhost:{}", node.amqp_port));
    assert_says(&plain_port.spawn().startup_error(), &["does not speak TLS", "5671"]);
    let tls_port = TestEnv::new(node).set("broker.addresses", &format!("localhost:{}", node.amqps_port));
    assert_says(&tls_port.spawn().startup_error(), &["speaks TLS", "[broker.tls]"]);
    let password = env(node, directory).set("broker.password", "not-it");
    assert_says(&password.spawn().startup_error(), &["refuses user \"guest\""]);
    authority.issue_client_certificate("nobody", "nobody", 7);
    let nobody = env(node, directory).with_certificate(directory, "nobody").set("broker.mechanism", "external");
    assert_says(&nobody.spawn().startup_error(), &["refuses the certificate of ", "ACCESS_REFUSED"]);
    other.issue_client_certificate("foreign", USER, 8);
    let foreign = env(node, directory).with_certificate(directory, "foreign").set("broker.mechanism", "external");
    assert_says(&foreign.spawn().startup_error(), &["certificate_file", "rejects"]);
    // A mismatch with the management API alone is only a warning: orderd starts without it.
    let untrusting = env(node, directory)
        .set("management.tls.ca_file", other.file("other", "pem").to_str().unwrap())
        .set("management.poll_every", "200ms");
    let mut orderd = untrusting.start();
    let lines =
        orderd.log_lines("cannot ask the management API: queue arguments, bindings and policies are not compared");
    assert_says(lines[0]["error"].as_str().unwrap(), &["cannot establish TLS with the management API", "ca_file"]);
    assert_eq!(orderd.stop(), 0);
    let mut check = untrusting.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), CONFIG, "{}", check.output());
}

fn an_expired_server_certificate_is_reported(node: &Node, directory: &Path, authority: &CertificateAuthority) {
    let env = env(node, directory);
    let mut orderd = env.start();
    authority.issue_server_certificate("server", Validity::Expired);
    // Erlang remembers files for two minutes.
    node.ctl(&["eval", "ssl:clear_pem_cache()."]);
    assert_says(&env.spawn().startup_error(), &["expired", "2021-01-01", "renew it on the broker"]);
    // A running daemon keeps trying, and shows the reason in its status.
    env.vhost.close_connections();
    wait_until("the status shows the reason", || {
        let checks = status(&orderd)["checks"].clone();
        checks.as_array().unwrap().iter().any(|check| check["detail"].as_str().unwrap().contains("expired"))
    });
    authority.issue_server_certificate("server", Validity::Current);
    node.ctl(&["eval", "ssl:clear_pem_cache()."]);
    flood(&env, "renewed");
    env.ledger().await_settled(ORDERS);
    assert_eq!(orderd.stop(), 0);
}

fn a_required_client_certificate_is_sent_or_reported_missing(
    node: &Node,
    directory: &Path,
    authority: &CertificateAuthority,
) {
    let nobody = env(node, directory);
    assert_says(&nobody.spawn().startup_error(), &["requires a client certificate", "certificate_file and key_file"]);
    authority.issue_client_certificate("client", USER, 9);
    let external = env(node, directory).with_certificate(directory, "client").set("broker.mechanism", "external");
    assert_says(&external.spawn().startup_error(), &["EXTERNAL", "PLAIN", "rabbitmq_auth_mechanism_ssl"]);
    let both = env(node, directory).with_certificate(directory, "client");
    let mut orderd = both.start();
    flood(&both, "both");
    both.ledger().await_settled(ORDERS);
    assert_eq!(orderd.stop(), 0);
}
