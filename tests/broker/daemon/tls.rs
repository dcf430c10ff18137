//! TLS and client certificates: on a broker that speaks both, replaced while orderd runs, and wrong in every way.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::certificates::{Authority, Until};
use crate::support::shop::{Orderd, Shop, order, until};
use crate::support::{Node, http};

const CONFIG: i32 = 78;
const ORDERS: u64 = 1000;
/// Who the client certificate is for; RabbitMQ takes its common name for the user's.
const USER: &str = "orderd-tls";

/// What RabbitMQ is told about TLS. `strict`: it takes nobody without a certificate, and offers no EXTERNAL.
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

/// A shop whose orderd speaks TLS to broker and management API.
fn shop<'a>(node: &'a Node, directory: &Path) -> Shop<'a> {
    Shop::new(node)
        .set("log.level", "info")
        .set("broker.addresses", &format!("localhost:{}", node.amqps_port))
        .set("broker.tls.ca_file", directory.join("ca.pem").to_str().unwrap())
        .set("management.url", &format!("https://localhost:{}", node.management_tls_port))
}

trait Identified {
    fn with_certificate(self, directory: &Path, name: &str) -> Self;
}

impl Identified for Shop<'_> {
    fn with_certificate(self, directory: &Path, name: &str) -> Self {
        self.set("broker.tls.certificate_file", directory.join(format!("{name}.pem")).to_str().unwrap())
            .set("broker.tls.key_file", directory.join(format!("{name}.key")).to_str().unwrap())
    }
}

fn flood(shop: &Shop<'_>, name: &str) {
    let orders = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("{name}-{n}"))));
    shop.raw().flood("orders", orders);
}

/// What the broker knows of orderd's connections in a virtual host, each with all its fields.
fn connections(shop: &Shop<'_>) -> Vec<Value> {
    let (_, found) = shop.vhost.node.management("GET", &format!("/vhosts/{}/connections", shop.vhost.name), "");
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
fn own_node_tls_is_spoken_renewed_and_refused_with_a_clear_word() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let directory = directory.path();
    let authority = Authority::new(directory, "ca");
    authority.vouch_for_server("server", Until::Long);
    write_broker_conf(directory, false);
    let node = Node::own_with_tls("tls", directory);

    orders_are_processed_over_tls_and_idle_connections_live(&node, directory);
    a_replaced_certificate_is_in_use_from_the_next_connection_on(&node, directory, &authority);
    each_misunderstanding_has_its_own_word(&node, directory, &authority);
    a_server_certificate_that_has_ended_is_told(&node, directory, &authority);

    write_broker_conf(directory, true);
    node.kill();
    node.restart();
    a_broker_that_wants_a_certificate_gets_one_or_says_so(&node, directory, &authority);
}

fn orders_are_processed_over_tls_and_idle_connections_live(node: &Node, directory: &Path) {
    let shop = shop(node, directory).set("broker.heartbeat", "4s");
    let mut orderd = shop.open();
    flood(&shop, "tls");
    shop.book().await_settled(ORDERS);
    until("its connections are told", || connections(&shop).len() >= 6);
    for connection in connections(&shop) {
        assert_eq!(connection["ssl"], true, "{connection}");
        assert!(connection["ssl_protocol"].as_str().unwrap().starts_with("tlsv1."), "{connection}");
    }
    until("the management API is asked over TLS", || status(&orderd)["broker"]["api"]["state"] == "fresh");

    // Silent but for heartbeats, several of which each connection must show. A connection whose frames are stuck
    // is closed by the broker within two.
    let names = |found: &[Value]| found.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let octets = |found: &[Value]| found.iter().map(|one| one["recv_oct"].as_u64().unwrap_or(0)).collect::<Vec<_>>();
    let standing = connections(&shop);
    let (before, mut last) = (names(&standing), octets(&standing));
    for beat in 0..3 {
        until(&format!("heartbeat {beat} arrives on each connection"), || {
            let found = connections(&shop);
            assert_eq!(names(&found), before, "a connection was lost while idle");
            octets(&found).iter().zip(&last).all(|(now, then)| now > then)
        });
        last = octets(&connections(&shop));
    }
    assert_eq!(orderd.lines("publishing connection lost").len() + orderd.lines("lost the subscription").len(), 0);

    // And a connection that is lost is made anew.
    flood(&shop, "again");
    shop.vhost.close_connections();
    shop.book().await_settled(2 * ORDERS);
    assert_eq!(orderd.stop(), 0);
}

/// What the admin listener tells.
fn status(orderd: &Orderd) -> Value {
    http::json(orderd.admin(), "/api/v1/status")
}

fn a_replaced_certificate_is_in_use_from_the_next_connection_on(node: &Node, directory: &Path, authority: &Authority) {
    authority.vouch_for("client", USER, 0x1001);
    let shop = shop(node, directory).with_certificate(directory, "client").set("broker.mechanism", "external");
    // Nobody needs to know a password of this user.
    let user = format!("/users/{USER}");
    assert_eq!(node.management("PUT", &user, r#"{"password_hash":"","tags":""}"#).0, 201);
    let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
    node.management("PUT", &format!("/permissions/{}/{USER}", shop.vhost.name), everything);
    let mut orderd = shop.open();
    flood(&shop, "mtls");
    shop.book().await_settled(ORDERS);
    until("its connections are told", || connections(&shop).len() >= 6);
    assert!(connections(&shop).iter().all(|one| one["user"] == USER && one["auth_mechanism"] == "EXTERNAL"));
    assert!(connections(&shop).iter().all(|one| shows_serial(one, "1001")), "{:#?}", connections(&shop));

    let private = fs::read_to_string(authority.file("client", "key")).unwrap();
    let line = private.lines().nth(1).unwrap();
    assert!(!(orderd.output() + &status(&orderd).to_string()).contains(line), "it tells its key");

    // A key that is not its certificate's: what was good stays in force, and a person is told once.
    let key = fs::read(authority.file("client", "key")).unwrap();
    authority.vouch_for("client", USER, 0x1002);
    let renewed = fs::read(authority.file("client", "key")).unwrap();
    fs::write(authority.file("client", "key"), &key).unwrap();
    shop.vhost.close_connections();
    until("the bad pair is told", || {
        orderd.says("cannot use the current certificate files; still using the last good ones")
    });
    flood(&shop, "bad-pair");
    shop.book().await_settled(2 * ORDERS);
    let told = orderd.lines("cannot use the current certificate files; still using the last good ones");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_says(told[0]["error"].as_str().unwrap(), &["key_file", "client.key", "client.pem"]);

    // With its own key, the new certificate is who orderd is.
    fs::write(authority.file("client", "key"), renewed).unwrap();
    shop.vhost.close_connections();
    until("the broker sees the new certificate on every connection", || {
        let found = connections(&shop);
        found.len() >= 6 && found.iter().all(|one| shows_serial(one, "1002"))
    });
    flood(&shop, "renewed");
    shop.book().await_settled(3 * ORDERS);
    let told = orderd.lines("using a new client certificate");
    assert_eq!(told.iter().map(|line| line["serial"].as_str().unwrap()).collect::<Vec<_>>(), ["1002"]);
    assert_eq!(orderd.stop(), 0);
}

fn shows_serial(connection: &Value, serial: &str) -> bool {
    connection["peer_cert_subject"].as_str().is_some_and(|subject| subject.contains(&format!("serial {serial}")))
}

fn each_misunderstanding_has_its_own_word(node: &Node, directory: &Path, authority: &Authority) {
    let other = Authority::new(directory, "other");
    let stranger = shop(node, directory).set("broker.tls.ca_file", other.file("other", "pem").to_str().unwrap());
    assert_says(&stranger.run().refusal(), &["[broker.tls]", "ca_file", "not signed"]);
    let misnamed = shop(node, directory).set("broker.tls.server_name", "rabbit.internal");
    assert_says(&misnamed.run().refusal(), &["rabbit.internal", "localhost", "server_name"]);
    let plain_port = shop(node, directory).set("broker.addresses", &format!("localhost:{}", node.amqp_port));
    assert_says(&plain_port.run().refusal(), &["does not speak TLS", "5671"]);
    let tls_port = Shop::new(node).set("broker.addresses", &format!("localhost:{}", node.amqps_port));
    assert_says(&tls_port.run().refusal(), &["speaks TLS", "[broker.tls]"]);
    let password = shop(node, directory).set("broker.password", "not-it");
    assert_says(&password.run().refusal(), &["refuses user \"guest\""]);
    authority.vouch_for("nobody", "nobody", 7);
    let nobody = shop(node, directory).with_certificate(directory, "nobody").set("broker.mechanism", "external");
    assert_says(&nobody.run().refusal(), &["refuses the certificate of ", "ACCESS_REFUSED"]);
    other.vouch_for("foreign", USER, 8);
    let foreign = shop(node, directory).with_certificate(directory, "foreign").set("broker.mechanism", "external");
    assert_says(&foreign.run().refusal(), &["certificate_file", "does not accept"]);
    // The management API alone: it is not vital, so that orderd starts and says so.
    let deaf = shop(node, directory)
        .set("management.tls.ca_file", other.file("other", "pem").to_str().unwrap())
        .set("management.poll_every", "200ms");
    let mut orderd = deaf.open();
    let told = orderd.lines("cannot ask the management API: queue arguments, bindings and policies are not compared");
    assert_says(told[0]["error"].as_str().unwrap(), &["no TLS with the management API", "ca_file"]);
    assert_eq!(orderd.stop(), 0);
    let mut check = deaf.command(&["check", "--connect"]);
    assert_eq!(check.exit(), CONFIG, "{}", check.output());
}

fn a_server_certificate_that_has_ended_is_told(node: &Node, directory: &Path, authority: &Authority) {
    let shop = shop(node, directory);
    let mut orderd = shop.open();
    authority.vouch_for_server("server", Until::Past);
    // Erlang remembers files for two minutes.
    node.ctl(&["eval", "ssl:clear_pem_cache()."]);
    assert_says(&shop.run().refusal(), &["expired", "2021-01-01", "renew it on the broker"]);
    // One that runs already goes on trying, and says why in its status.
    shop.vhost.close_connections();
    until("status tells why", || {
        let checks = status(&orderd)["checks"].clone();
        checks.as_array().unwrap().iter().any(|check| check["detail"].as_str().unwrap().contains("expired"))
    });
    authority.vouch_for_server("server", Until::Long);
    node.ctl(&["eval", "ssl:clear_pem_cache()."]);
    flood(&shop, "renewed");
    shop.book().await_settled(ORDERS);
    assert_eq!(orderd.stop(), 0);
}

fn a_broker_that_wants_a_certificate_gets_one_or_says_so(node: &Node, directory: &Path, authority: &Authority) {
    let nobody = shop(node, directory);
    assert_says(&nobody.run().refusal(), &["requires a client certificate", "certificate_file and key_file"]);
    authority.vouch_for("client", USER, 9);
    let external = shop(node, directory).with_certificate(directory, "client").set("broker.mechanism", "external");
    assert_says(&external.run().refusal(), &["EXTERNAL", "PLAIN", "rabbitmq_auth_mechanism_ssl"]);
    let both = shop(node, directory).with_certificate(directory, "client");
    let mut orderd = both.open();
    flood(&both, "both");
    both.book().await_settled(ORDERS);
    assert_eq!(orderd.stop(), 0);
}
