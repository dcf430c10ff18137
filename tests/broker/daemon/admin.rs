//! The admin server of a running daemon: who may send requests, and whether what it reports is true.

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::Node;
use crate::support::http::{Scrape, get, json, send};
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};

const CONSUMERS: [&str; 5] = ["analytics", "failed", "notification", "order", "priority"];

/// Checks that each consumer's deliveries add up, in the metrics and in the status.
fn assert_conserved(orderd: &OrderdProcess) {
    let scrape = Scrape::of(orderd.admin_address());
    for consumer in CONSUMERS {
        let (taken, settled) = (
            scrape.of_consumer("orderd_deliveries_total", consumer),
            scrape.of_consumer("orderd_settled_total", consumer),
        );
        assert_eq!(taken, settled + scrape.of_consumer("orderd_in_flight", consumer), "{consumer}");
        assert_eq!(scrape.of_consumer("orderd_conservation_difference", consumer), 0.0, "{consumer}");
    }
    let status = json(orderd.admin_address(), "/api/v1/status");
    for consumer in CONSUMERS {
        let counts = &status["consumers"][consumer]["conservation"];
        let count = |name: &str| counts[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counts}"));
        let parts = ["succeeded", "republished", "released", "rejected", "in_flight"];
        assert_eq!(count("deliveries"), parts.map(count).iter().sum::<u64>(), "{consumer}: {counts}");
    }
}

#[test]
fn the_metrics_report_exactly_what_was_published() {
    const ORDERS: u64 = 16_000;
    let node = Node::shared();
    let env = TestEnv::new(&node)
        .set("log.level", "info")
        .set("consumers.order.faults.transient", "0.1")
        .set("consumers.order.faults.permanent", "0.05")
        .set("consumers.order.retry.immediate", "0");
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    let ledger = env.ledger();
    let orders = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", orders);
    let mut raw = env.raw();
    (0..7).for_each(|_| raw.publish_to("orders", "order.normal.created", &Properties::persistent(), b"{not json"));
    // All connections are closed in between, so deliveries in flight are redelivered.
    let mut left = None;
    let dead_lettered = || ledger.number("SELECT count(*) FROM dead_letters WHERE reason = 'permanent'");
    wait_until("all orders are settled", || {
        assert_conserved(&orderd);
        if left.is_none() && ledger.processed() > 0 {
            env.vhost.close_connections();
            left = Some(ORDERS - ledger.processed() - dead_lettered());
        }
        ledger.processed() + dead_lettered() == ORDERS
    });
    let (processed, dead_lettered) = (ledger.processed(), dead_lettered());
    let attempts = |of: &str| ledger.number(&format!("SELECT count(*) FROM attempts WHERE {of}"));
    wait_until("everything is settled", || {
        let scrape = Scrape::of(admin);
        let waiting = |consumer| scrape.of_consumer("orderd_in_flight", consumer) > 0.0;
        let dead_lettered_events = ledger.number("SELECT count(*) FROM events WHERE name = 'failed'");
        !CONSUMERS.into_iter().any(waiting)
            && ledger.number("SELECT count(*) FROM events WHERE name = 'processed'") == processed
            && ledger.number("SELECT count(*) FROM events WHERE name = 'email'") == processed
            && dead_lettered_events == ledger.number("SELECT count(*) FROM dead_letters")
    });
    assert_conserved(&orderd);
    assert!(left > Some(0), "no connection was killed under load");
    wait_until("all connections are open again", || json(admin, "/api/v1/status")["daemon"]["connections"] == 6);

    let (scrape, status) = (Scrape::of(admin), json(admin, "/api/v1/status"));
    let settled =
        |consumer, outcome| scrape.sum("orderd_settled_total", &[("consumer", consumer), ("outcome", outcome)]);
    // A delivery that is lost with its connection is redelivered, and is a duplicate if its effect was recorded before.
    let finished = settled("order", "completed") + settled("order", "duplicate");
    assert!(finished >= processed as f64, "{finished} of {processed}");
    assert!(settled("order", "completed") + settled("order", "released") >= processed as f64);
    assert_eq!(settled("order", "rejected"), 0.0);
    let reason = |reason| scrape.sum("orderd_dead_letters_total", &[("consumer", "order"), ("reason", reason)]);
    assert!(reason("permanent") >= dead_lettered as f64 && reason("malformed") >= 7.0);
    assert_eq!(reason("retries_exhausted"), 0.0);
    let retried = scrape.sum("orderd_retries_total", &[("consumer", "order"), ("delay", "300ms")]);
    assert!(retried >= attempts("delay = '300ms'") as f64 && retried > 400.0, "{retried}");
    let failed = scrape.sum("orderd_failed_attempts_total", &[("kind", "transient"), ("code", "injected_transient")]);
    assert!(failed >= attempts("failure_code = 'injected_transient'") as f64);
    let subscriptions = scrape.of_consumer("orderd_subscriptions_total", "order");
    assert!(subscriptions >= 2.0, "{subscriptions}");
    let handled = scrape.of_consumer("orderd_handling_seconds_count", "order");
    let acked = ["completed", "duplicate", "forwarded"].map(|outcome| settled("order", outcome)).iter().sum::<f64>();
    assert_eq!(handled, acked);
    let done = scrape.of_consumer("orderd_publish_to_ack_seconds_count", "notification");
    assert_eq!(done, settled("notification", "completed"), "orderd's own events carry a timestamp");

    let of = &status["consumers"]["order"];
    assert_eq!(of["processed"].as_f64().unwrap(), settled("order", "completed"));
    assert_eq!(of["retried"].as_f64().unwrap(), retried);
    assert_eq!(of["dead_letters"]["malformed"].as_f64().unwrap(), reason("malformed"));
    assert_eq!((status["conservation_ok"].as_bool(), of["in_flight"].as_u64()), (Some(true), Some(0)));
    assert_eq!(status["daemon"]["state"], "running");
    assert!(status["daemon"]["connections_made"].as_u64().unwrap() >= 8, "{}", status["daemon"]);
    assert_eq!(status["daemon"]["connections"], 6);
    assert!(!orderd.has_logged("deliveries do not add up: report this with the log"));
    let sold = json(admin, "/api/v1/report?by=status&since=24h");
    let rows = sold["currencies"][0]["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["key"] == "processed").unwrap();
    assert_eq!(row["orders"].as_u64(), Some(processed), "{sold}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_lost_connections_every_count_is_exact() {
    const ORDERS: u64 = 500;
    let node = Node::shared();
    let env = TestEnv::new(&node)
        .set("consumers.order.faults.transient", "0.2")
        .set("consumers.order.retry.immediate", "1")
        .set("consumers.priority.faults.permanent", "1.0");
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    let orders = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", orders.clone());
    let ledger = env.ledger();
    ledger.await_settled(ORDERS);
    // The same orders again, and ten that can never be processed.
    env.raw().publish_all("orders", orders);
    let urgent = (0..10).map(|n| ("order.priority.created".to_owned(), order(&format!("urgent-{n}"))));
    env.raw().publish_all("orders", urgent);
    let settled = |scrape: &Scrape, consumer, outcome| {
        scrape.sum("orderd_settled_total", &[("consumer", consumer), ("outcome", outcome)])
    };
    wait_until("everything is settled", || {
        let scrape = Scrape::of(admin);
        settled(&scrape, "order", "duplicate") == ORDERS as f64
            && settled(&scrape, "failed", "dead_lettered") == 10.0
            && settled(&scrape, "analytics", "completed") == ORDERS as f64 + 10.0
    });
    let scrape = Scrape::of(admin);
    // The repeated orders hit the same injected faults, and the ledger records equal attempts once.
    let failed_first = ledger.number("SELECT count(*) FROM attempts WHERE delay IS NOT NULL") as f64;
    assert!(failed_first > 50.0, "{failed_first}");
    let retried = 2.0 * failed_first;
    let expected = [
        // First deliveries, delayed retries, and the repeated orders.
        ("order", [("completed", 500.0), ("duplicate", 500.0), ("forwarded", retried), ("released", 0.0)]),
        ("priority", [("completed", 0.0), ("duplicate", 0.0), ("forwarded", 10.0), ("released", 0.0)]),
        ("failed", [("completed", 0.0), ("retried", retried), ("dead_lettered", 10.0), ("released", 0.0)]),
        ("notification", [("completed", 500.0), ("duplicate", 0.0), ("forwarded", 0.0), ("released", 0.0)]),
    ];
    for (consumer, outcomes) in expected {
        for (outcome, count) in outcomes {
            assert_eq!(settled(&scrape, consumer, outcome), count, "{consumer} {outcome}");
        }
        let sum: f64 = outcomes.iter().map(|(_, count)| count).sum();
        assert_eq!(scrape.of_consumer("orderd_deliveries_total", consumer), sum, "{consumer}");
    }
    let failed = scrape.sum("orderd_failed_attempts_total", &[("consumer", "order")]);
    assert_eq!(failed, 2.0 * retried, "an immediate retry fails again");
    assert_eq!(scrape.sum("orderd_dead_letters_total", &[("consumer", "priority"), ("reason", "permanent")]), 10.0);
    assert_eq!(scrape.sum("orderd_dead_letters_total", &[]), 10.0);
    assert_eq!(scrape.sum("orderd_retries_total", &[]), retried);
    assert_eq!((scrape.sum("orderd_ready", &[]), scrape.sum("orderd_draining", &[])), (1.0, 0.0));
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_a_broker_it_is_alive_and_not_ready() {
    let node = Node::shared();
    // Bound, so that no other test's broker gets the address. Nothing answers connections to it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = silent.local_addr().unwrap();
    let env = TestEnv::new(&node).set("broker.addresses", &unused.to_string());
    let mut orderd = env.spawn();
    let admin = orderd.admin_address();
    assert_eq!(get(admin, "/livez").status, 200);
    // It answers before the ledger is open.
    wait_until("the ledger is open", || get(admin, "/readyz?verbose").body.contains("[+] ledger"));
    let plain = get(admin, "/readyz");
    assert_eq!((plain.status, plain.body.trim()), (503, "not ready"));
    let verbose = get(admin, "/readyz?verbose");
    assert_eq!(verbose.status, 503);
    for line in ["[+] ledger", "[-] topology", "[-] publisher", "[-] consumer order", "[+] shutdown"] {
        assert!(verbose.body.contains(line), "no {line}: {}", verbose.body);
    }
    let status = json(admin, "/api/v1/status");
    assert_eq!(status["daemon"]["state"], "starting");
    assert_eq!(Scrape::of(admin).sum("orderd_ready", &[]), 0.0);
    assert_eq!(orderd.stop(), 0);
    assert!(TcpStream::connect(admin).is_err(), "it still listens");
}

#[test]
fn a_ready_daemon_says_so_and_a_draining_one_does_not() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.timeout", "5s");
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    wait_until("it is ready", || get(admin, "/readyz").status == 200);
    let verbose = get(admin, "/readyz?verbose");
    assert!(verbose.body.ends_with("ready\n") && !verbose.body.contains("[-]"), "{}", verbose.body);
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("hangs"));
    wait_until("an order hangs", || {
        let status = json(admin, "/api/v1/status");
        status["consumers"]["order"]["oldest_in_flight_seconds"].as_f64().is_some_and(|age| age > 0.5)
    });
    orderd.signal("TERM");
    wait_until("it drains", || get(admin, "/readyz").status == 503);
    assert_eq!(get(admin, "/livez").status, 200);
    assert_eq!(json(admin, "/api/v1/status")["daemon"]["state"], "draining");
    assert_eq!(orderd.wait_for_exit(), 0);
}

#[test]
fn unauthorized_requests_are_rejected() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let token = env.directory.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let user = format!("[{{name = 'bob', role = 'viewer', token_file = {token:?}}}]");
    let env = env.set("admin.users", &user);
    let mut orderd = env.spawn();
    let admin = orderd.admin_address();
    let asked = |path: &str, fields: &str| {
        send(admin, &format!("GET {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")).status
    };
    let host = format!("Host: {admin}\r\n");
    let bearer = format!("{host}Authorization: Bearer 0123456789abcdef\r\n");
    assert_eq!(asked("/livez", &host), 200);
    for path in ["/metrics", "/api/v1/status", "/api/v1/report", "/readyz?verbose"] {
        assert_eq!(asked(path, &host), 401, "{path}");
        assert_eq!(asked(path, &host.replace("\r\n", "\r\nAuthorization: Bearer guess\r\n")), 401, "{path}");
    }
    assert_eq!(asked("/metrics", &bearer), 200);
    assert_eq!(asked("/livez", "Host: evil.example\r\n"), 421);
    assert_eq!(asked("/livez", &format!("{host}Origin: http://evil.example\r\n")), 403);
    assert_eq!(asked("/metrics", &format!("{bearer}Content-Length: 1\r\n")), 413);
    assert_eq!(asked("/metrics", &format!("{bearer}X: {}\r\n", "x".repeat(20_000))), 431);
    assert_eq!(asked("/api/v1/report?by=colour", &bearer), 400);
    assert_eq!(asked("/nothing", &bearer), 404);
    let posted =
        |bearer: &str| send(admin, &format!("POST /metrics HTTP/1.1\r\n{bearer}Connection: close\r\n\r\n")).status;
    assert_eq!(posted(&bearer), 403, "a viewer");
    assert_eq!(posted(&format!("{host}{}", orderd.command_token())), 405);
    assert!(!orderd.output().contains("0123456789abcdef"));
    orderd.kill();
}

/// What each client of a kind does again and again: it connects, sends this, and keeps the connection until it is closed.
const HOSTILE_CLIENTS: [&str; 3] =
    ["", "GET /livez HTTP/1.1\r\nHost: ", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"];

#[test]
fn health_probes_are_answered_while_hundreds_of_clients_hold_connections_and_reconnect() {
    const CLIENTS_OF_A_KIND: usize = 200;
    /// Without eviction, each probe would wait for the time limits of the connections before it.
    const ALL_PROBES: Duration = Duration::from_secs(20);
    let node = Node::shared();
    let env = TestEnv::new(&node).set("log.level", "info");
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    let stop = AtomicBool::new(false);
    let connects = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for head in HOSTILE_CLIENTS {
            let (stop, connects) = (&stop, &connects);
            scope.spawn(move || {
                let mut held: Vec<Option<TcpStream>> = (0..CLIENTS_OF_A_KIND).map(|_| None).collect();
                while !stop.load(Ordering::Relaxed) {
                    for client in &mut held {
                        if client.as_ref().is_some_and(is_open) {
                            continue;
                        }
                        let Ok(mut stream) = TcpStream::connect(admin) else { continue };
                        let _ = stream.write_all(head.as_bytes());
                        connects.fetch_add(1, Ordering::Relaxed);
                        *client = Some(stream);
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        wait_until("all clients have connected", || connects.load(Ordering::Relaxed) > 3 * CLIENTS_OF_A_KIND);
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(get(admin, "/livez").status, 200);
            assert_eq!(get(admin, "/readyz").status, 200);
        }
        assert!(begun.elapsed() < ALL_PROBES, "{:?}", begun.elapsed());
    });
    assert_eq!(orderd.stop(), 0);
}

/// Ends the clients also if an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether the daemon has not closed the connection. Nothing is read.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn an_admin_address_in_use_is_one_clear_error() {
    let node = Node::shared();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let env = TestEnv::new(&node).set("admin.listen", &address);
    let mut orderd = env.spawn();
    assert_eq!(orderd.wait_for_exit(), 78, "{}", orderd.output());
    let errors = orderd.logged_errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for part in ["admin.listen", &address, "in use", "off"] {
        assert!(errors[0].contains(part), "no {part:?}: {errors:?}");
    }
    assert!(!env.ledger_directory().exists(), "it has created a ledger");

    let without = env.set("admin.listen", "off");
    let mut orderd = without.start();
    assert!(!orderd.has_logged("admin server started"));
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn beyond_loopback_it_does_not_start_without_users() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("admin.listen", "0.0.0.0:0");
    let mut orderd = env.spawn();
    assert_eq!(orderd.wait_for_exit(), 78);
    assert!(orderd.output().contains("admin.users"), "{}", orderd.output());
}

#[test]
fn health_checks_are_answered_while_the_ledger_is_opened() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    assert_eq!(env.start().stop(), 0);
    let other = rusqlite::Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut orderd = env.spawn();
    let admin = orderd.admin_address();
    assert_eq!(get(admin, "/livez").status, 200);
    let verbose = get(admin, "/readyz?verbose");
    assert!(verbose.status == 503 && verbose.body.contains("[-] ledger: not open yet"), "{}", verbose.body);
    assert_eq!(json(admin, "/api/v1/status")["daemon"]["ledger"]["recording"], false);
    other.execute_batch("ROLLBACK").unwrap();
    wait_until("it has started", || orderd.has_logged("started"));
    assert_eq!(orderd.stop(), 0);
}
