//! The shop of `examples/`: its producers and services in Python, Node.js and shell, with its configuration.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{LedgerReader, TestEnv, wait_until};
use crate::support::{Node, free_address, http};

/// A path in the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Installs the libraries of the examples.
fn install() {
    let output = Command::new("bash").arg(path("tests/support/examples.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An HTTP service of the shop; killed when dropped.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start(mut command: Command, address: SocketAddr, data: &Path) -> Service {
        command.env("HOST", address.ip().to_string()).env("PORT", address.port().to_string()).env("SHOP_DATA", data);
        let mut child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        wait_until("the service accepts connections", || {
            assert_eq!(child.try_wait().unwrap(), None, "{command:?} exited instead");
            TcpStream::connect(address).is_ok()
        });
        Service { child, address }
    }

    /// Calls a step. Returns the status and the body.
    fn call(&self, path: &str, key: &str, body: &str) -> (u16, String) {
        let (address, length) = (self.address, body.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        let response = http::send(address, &request);
        (response.status, response.body)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn charge(address: SocketAddr, data: &Path) -> Service {
    let mut command = Command::new("python3");
    command.arg(path("examples/python/charge.py")).stderr(Stdio::null());
    Service::start(command, address, data)
}

fn reserve(address: SocketAddr, data: &Path) -> Service {
    let mut command = Command::new("node");
    command.arg(path("examples/node/reserve.js"));
    Service::start(command, address, data)
}

/// Runs a program with this standard input. It must exit with 0.
fn run(command: &mut Command, input: &str) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
}

/// The keys that the service in Python has kept.
fn charges(data: &Path) -> Vec<String> {
    let database = Connection::open(data.join("charges.db")).unwrap();
    let mut query = database.prepare("SELECT key FROM answers ORDER BY key").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// The keys that the service in Node.js has kept.
fn reservations(data: &Path) -> Vec<String> {
    let files = fs::read_dir(data.join("reservations")).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let key = |json: Vec<u8>| serde_json::from_slice::<Value>(&json).unwrap()["key"].as_str().unwrap().to_owned();
    let mut keys: Vec<String> = files.map(key).collect();
    keys.sort();
    keys
}

#[test]
fn the_example_shop_charges_reserves_and_ships_the_orders_of_all_producers_and_undoes_what_fails() {
    install();
    let node = Node::shared();
    let directory = |env: &TestEnv<'_>, name: &str| env.directory.path().join(name);
    let (charge_at, reserve_at) = (free_address(), free_address());
    let config = fs::read_to_string(path("examples/shop.toml")).unwrap();
    let config = config.replace("127.0.0.1:8081", &charge_at.to_string());
    let config = config.replace("127.0.0.1:8082", &reserve_at.to_string());
    let data = tempfile::tempdir().unwrap();
    let data = data.path();
    // As the page says for another $SHOP_DATA.
    let environment = format!("environment = {{ SHOP_DATA = {:?} }}", data.to_str().unwrap());
    let config = config.replace("command = [\"ship.sh\"]\n", &format!("command = [\"ship.sh\"]\n{environment}\n"));
    let config = config.replace("\"cancel\"], ", &format!("\"cancel\"], {environment}, "));
    let env = TestEnv::new(&node).unset("consumers.priority.retry.delays").with_config(&config);
    let programs = Path::new(env!("CARGO_BIN_EXE_orderd")).parent().unwrap();
    let paths = [path("examples/shell"), programs.to_owned()].map(|path| path.to_str().unwrap().to_owned()).join(":");
    let paths = paths + ":" + &std::env::var("PATH").unwrap();
    let env_home = directory(&env, "home");
    let env = env.with_env("HOME", env_home.to_str().unwrap()).with_env("PATH", &paths);
    let (_charge, _reserve) = (charge(charge_at, data), reserve(reserve_at, data));
    let mut orderd = env.start();
    let mut raw = env.raw();
    raw.declare("copies", &[]);
    for key in ["order.normal.*", "order.priority.*"] {
        raw.bind("copies", "orders", key);
    }

    let url = format!("amqp://guest:guest@127.0.0.1:{}/{}", node.amqp_port, env.vhost.name);
    let orders = fs::read_to_string(path("examples/orders.ndjson")).unwrap();
    let python = path("target/examples/python/bin/python");
    run(Command::new(python).arg(path("examples/python/producer.py")).env("AMQP_URL", &url), &orders);
    // The first order again, and all orders under other ids.
    let again = orders.lines().next().unwrap().to_owned() + "\n" + &orders.replace("web-", "js-");
    run(Command::new("node").arg(path("target/examples/node/producer.js")).env("AMQP_URL", &url), &again);
    let shell = ["sh-1", "Mouse", "2", "24.95", "ada@example.com"];
    run(env.script(path("examples/shell/producer.sh")).args(shell), "");

    let copies = raw.drain("copies");
    let ids = |copies: Vec<Properties>| copies.into_iter().map(|it| it.texts["message_id"].clone()).collect::<Vec<_>>();
    let copies: Vec<_> = copies.iter().map(|copy| copy.properties()).collect();
    assert!(
        copies.iter().all(|copy| copy.delivery_mode == Some(2) && copy.texts["content_type"] == "application/json")
    );
    let web = (1..=5).map(|n| format!("web-100{n}"));
    let js = (1..=5).map(|n| format!("js-100{n}"));
    let expected: Vec<_> = web.chain(["web-1001".to_owned()]).chain(js).chain(["sh-1".to_owned()]).collect();
    assert_eq!(ids(copies), expected, "each producer returns once its orders are confirmed");

    let ledger = env.ledger();
    let processed = |ledger: &LedgerReader| ledger.rows("SELECT id FROM orders WHERE status = 'processed' ORDER BY id");
    wait_until("5 orders are processed", || processed(&ledger).len() == 5);
    let dead = "SELECT identity, reason, failure_code FROM dead_letters ORDER BY identity";
    wait_until("6 orders are dead-lettered", || ledger.rows(dead).len() == 6);
    let sent = "SELECT count(*) FROM events WHERE id LIKE '%/ship/event/1' AND name = 'email'";
    wait_until("5 notifications about parcels are sent", || ledger.number(sent) == 5);
    assert_eq!(processed(&ledger), ["js-1001", "js-1002", "sh-1", "web-1001", "web-1002"]);
    let dead_letters = ledger.rows(dead);
    for (index, prefix) in ["js", "web"].into_iter().enumerate() {
        let codes = ["1003|permanent|http_402", "1004|permanent|http_409", "1005|permanent|command_rejected"];
        let expected = codes.map(|code| format!("{prefix}-{code}"));
        assert_eq!(dead_letters[3 * index..][..3], expected);
    }

    // What the services have kept: the charges of orders that failed later are refunded, and no other ones.
    let keys = |step: &str, ids: &[&str]| {
        let of = |id: &&str| [format!("js-100{id}/{step}"), format!("web-100{id}/{step}")];
        let undo = ids.iter().filter(|id| **id > "2").flat_map(of).map(|key| key + "/undo");
        let mut keys: Vec<_> = ids.iter().flat_map(of).chain(undo).chain([format!("sh-1/{step}")]).collect();
        keys.sort();
        keys
    };
    assert_eq!(charges(data), keys("charge", &["1", "2", "4", "5"]));
    assert_eq!(reservations(data), keys("reserve", &["1", "2", "5"]));
    assert_eq!(fs::read_dir(data.join("parcels")).unwrap().count(), 5);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn the_example_services_answer_a_known_idempotency_key_with_their_first_answer_also_after_a_restart() {
    install();
    let data = tempfile::tempdir().unwrap();
    let data = data.path();
    let body = r#"{"order": {"id": "a", "total": "20.00", "items": [{"product": "Pen", "quantity": 2}]}, "message": {}, "steps": {}}"#;
    let dearer = body.replace("20.00", "30.00").replace("2}", "7}");
    for (start, path) in [(charge as fn(SocketAddr, &Path) -> Service, "/charge"), (reserve, "/reserve")] {
        let (undo, address) = (if path == "/charge" { "/refund" } else { "/release" }, free_address());
        let service = start(address, data);
        let first = service.call(path, "a/step", body);
        assert_eq!((first.0, service.call(path, "a/step", &dearer)), (200, first.clone()), "{path}");
        assert_ne!(service.call(path, "b/step", &dearer), first, "{path}");
        drop(service);
        let service = start(address, data);
        assert_eq!(service.call(path, "a/step", &dearer), first, "{path}");
        let undone = service.call(undo, "a/step/undo", body);
        assert!(undone.0 == 200 && ["20.00", "2"].iter().any(|amount| undone.1.contains(amount)), "{undone:?}");
        assert_eq!(service.call(undo, "a/step/undo", body), undone);
        assert_eq!(service.call(undo, "unknown/step/undo", body).0, 200, "nothing to undo is no error");
        assert_eq!(service.call("/other", "a/step", body).0, 404);
    }

    let ship = |key: &str, body: &str| {
        let mut command = Command::new(path("examples/shell/ship.sh"));
        command.env("SHOP_DATA", data).env("IDEMPOTENCY_KEY", key).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        // It need not read its input.
        let _ = child.stdin.take().unwrap().write_all(body.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let first = ship("a/ship", body);
    assert_eq!(serde_json::from_str::<Value>(&first.1).unwrap()["parcel"], "parcel-a/ship");
    assert_eq!((first.0, ship("a/ship", "{}")), (Some(0), first.clone()));
    assert_eq!(
        ship("b/ship", &body.replace("{}, \"steps\"", "{\"ship_to\": {\"country\": \"AQ\"}}, \"steps\"")).0,
        Some(1)
    );
    assert_ne!(ship("c/ship", "garbage").0, Some(0), "no answer is kept for a request that it cannot read");
    assert_ne!(ship("c/ship", "garbage").0, Some(0));
}
