//! What the service manager is notified of: `orderd run` on a real broker, with the test's own notify socket.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::support::http;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, PATIENCE, TestEnv, order, wait_until};
use crate::support::{Node, free_address};

/// The watchdog timeout whose half is the shortest stall timeout.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "6000000");

/// A service manager that receives the notifications.
struct Manager(UnixDatagram);

impl Manager {
    /// Listens on a socket in the test environment's directory.
    fn of(env: TestEnv<'_>) -> (Self, TestEnv<'_>) {
        let path = env.directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        (Manager(socket), env.with_env("NOTIFY_SOCKET", path.to_str().unwrap()))
    }

    /// Waits for the next message and returns its lines.
    fn receive(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).expect("a message within the deadline");
        String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned).collect()
    }

    /// Waits for a message with this line. Returns it and all messages before it, except pings and changes of the in-flight
    /// count.
    fn receive_until(&self, line: &str) -> Vec<Vec<String>> {
        let mut received = Vec::new();
        loop {
            let message = self.receive();
            let is_last = message.iter().any(|one| one == line);
            if is_last || !message.iter().all(|one| one == "WATCHDOG=1" || one.contains(" in flight")) {
                received.push(message);
            }
            if is_last {
                return received;
            }
        }
    }

    /// Whether neither a ping nor a request for more time arrives within `span`. Discards earlier messages.
    fn is_silent_for(&self, span: Duration) -> bool {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 4096]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
        let (begun, mut sent) = (Instant::now(), false);
        while let Some(left) = span.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            self.0.set_read_timeout(Some(left)).unwrap();
            let mut message = [0; 4096];
            let Ok(length) = self.0.recv(&mut message) else { break };
            let message = String::from_utf8_lossy(&message[..length]);
            sent |= message.contains("WATCHDOG=") || message.contains("EXTEND_TIMEOUT_USEC=");
        }
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        !sent
    }
}

fn send(env: &TestEnv<'_>, id: &str) {
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order(id));
}

fn monotonic_usec(line: &str) -> u64 {
    line.strip_prefix("MONOTONIC_USEC=").unwrap_or_else(|| panic!("{line}")).parse().unwrap()
}

#[test]
fn start_reload_and_stop_are_notified_in_order() {
    let node = Node::shared();
    let (manager, env) = Manager::of(TestEnv::new(&node));
    let mut orderd = env.spawn();
    let start = manager.receive_until("READY=1");
    let ready = start.last().unwrap();
    assert_eq!(ready[0], "READY=1");
    assert!(ready[1].starts_with("STATUS=5 consumers, "), "{ready:?}");
    for message in &start[..start.len() - 1] {
        assert!(message.iter().all(|line| line.starts_with("STATUS=") || line.starts_with("EXTEND_")), "{message:?}");
    }
    for queue in ["order_queue", "priority_order_queue", "notification_queue", "analytics_queue", "failed_order_queue"]
    {
        let consumers = env.raw().queue_counts(queue).map(|(_, consumers)| consumers);
        assert_eq!(consumers, Some(1), "READY=1 before {queue} was consumed");
    }

    let mut before = 0;
    for _ in 0..2 {
        orderd.signal("HUP");
        let reload = manager.receive_until("RELOADING=1").pop().unwrap();
        assert_eq!((reload[0].as_str(), reload[2].as_str()), ("RELOADING=1", "STATUS=reloading"));
        let time = monotonic_usec(&reload[1]);
        assert!(time > before, "a later reload does not have a later time");
        before = time;
        manager.receive_until("READY=1");
    }
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!((before as f64) < (uptime + 1.0) * 1e6, "{before} is not a time since the machine's start");

    orderd.signal("TERM");
    let stop = manager.receive_until("STOPPING=1").pop().unwrap();
    assert_eq!(stop[..2], ["STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000"]);
    assert_eq!(manager.receive_until("STATUS=stopped").pop().unwrap(), ["STOPPING=1", "STATUS=stopped"]);
    assert_eq!(orderd.wait_for_exit(), 0);
}

#[test]
fn a_reload_ends_with_ready_whatever_its_outcome() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    let (manager, env) = Manager::of(env);
    let mut orderd = env.spawn();
    manager.receive_until("READY=1");
    let reload = |outcome: &str| {
        orderd.signal("HUP");
        let begun = manager.receive_until("RELOADING=1").pop().unwrap();
        let ended = manager.receive_until("READY=1").pop().unwrap();
        wait_until("the outcome is logged", || orderd.has_logged(outcome));
        assert!(begun[1].starts_with("MONOTONIC_USEC="), "{begun:?}");
        ended
    };
    file.write("nonsense = 1");
    reload("reload rejected, configuration unchanged");
    file.set("consumers.order.workers", "7").save();
    let ended = reload("reloaded: all changes are active");
    assert!(ended[1].starts_with("STATUS=5 consumers, "), "{ended:?}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn while_the_broker_is_unreachable_at_start_the_timeout_is_extended_and_the_status_says_why() {
    let node = Node::shared();
    let nobody = free_address();
    let (manager, env) = Manager::of(TestEnv::new(&node).set("broker.addresses", &nobody.to_string()));
    let mut orderd = env.spawn();
    let mut received = manager.receive_until("EXTEND_TIMEOUT_USEC=30000000");
    received.extend(manager.receive_until("EXTEND_TIMEOUT_USEC=30000000"));
    let received: Vec<String> = received.concat();
    assert!(received.contains(&"STATUS=waiting for the broker".to_owned()), "{received:?}");
    assert!(!received.contains(&"READY=1".to_owned()), "{received:?}");
    orderd.signal("HUP");
    orderd.signal("TERM");
    let rest: Vec<String> = manager.receive_until("STATUS=stopped").concat();
    assert!(!rest.contains(&"READY=1".to_owned()), "a reload made it look ready: {rest:?}");
    assert_eq!(orderd.wait_for_exit(), 0);
}

#[test]
fn a_start_that_fails_says_why_in_its_status() {
    let node = Node::shared();
    let (manager, env) = Manager::of(TestEnv::new(&node).set("broker.password", "not-it"));
    let mut orderd = env.spawn();
    let last = loop {
        let message = manager.receive();
        if message[0] == "STOPPING=1" {
            break message;
        }
    };
    assert!(last[1].starts_with("STATUS=cannot start: ") && !last[1].contains("not-it"), "{last:?}");
    assert_eq!(orderd.wait_for_exit(), 78);
}

#[test]
fn an_abstract_notify_socket_works_and_so_does_none() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let name = format!("orderd-test-{}", env.vhost.name);
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let manager = Manager(socket);
    let env = env.with_env("NOTIFY_SOCKET", &format!("@{name}"));
    let mut orderd = env.spawn();
    manager.receive_until("READY=1");
    assert_eq!(orderd.stop(), 0);

    // Nobody listens on the socket any more: that is logged once, and orders are processed.
    drop(manager);
    let mut orderd = env.start();
    send(&env, "ord-1");
    env.ledger().await_settled(1);
    wait_until("it is logged", || orderd.has_logged("cannot notify the service manager"));
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.log_lines("cannot notify the service manager").len(), 1);

    let env = env.with_env("NOTIFY_SOCKET", "");
    let mut orderd = env.start();
    send(&env, "ord-2");
    env.ledger().await_settled(2);
    assert_eq!(orderd.stop(), 0);
    assert!(!orderd.has_logged("cannot notify the service manager"));
}

/// Waits until a worker is stuck, and checks that the pings have stopped.
fn assert_stuck(manager: &Manager, orderd: &OrderdProcess, consumer: &str) {
    let stuck = format!("stuck: a worker of consumer {consumer} does not yield its thread");
    wait_until("a worker is stuck", || orderd.has_logged(&stuck));
    assert_eq!(orderd.log_lines(&stuck)[0]["level"], "ERROR");
    assert!(manager.is_silent_for(Duration::from_secs(4)), "it still pings, or asks for more time");
}

#[test]
fn a_handler_that_blocks_its_thread_stops_the_watchdog_pings_and_is_named() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.faults.block", "1.0");
    let (manager, env) = Manager::of(env.with_env(WATCHDOG.0, WATCHDOG.1));
    // It blocks the only thread, so nothing in the runtime can report it.
    let mut orderd = env.start();
    manager.receive_until("READY=1");
    manager.receive_until("WATCHDOG=1");
    send(&env, "ord-1");
    assert_stuck(&manager, &orderd, "order");
    assert!(orderd.has_logged("stuck: the runtime schedules no task"));
    orderd.kill();

    // It blocks one of several threads: the runtime continues, but this pool processes no orders.
    let env = env.set("runtime.threads", "3");
    let mut orderd = env.start();
    manager.receive_until("READY=1");
    assert_stuck(&manager, &orderd, "order");
    let answer = http::get(orderd.admin_address(), "/livez");
    assert_eq!((answer.status, answer.body.trim()), (503, "a worker of consumer order does not yield its thread"));
    orderd.kill();
}

#[test]
fn waiting_does_not_stop_the_watchdog_pings() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.timeout", "10min");
    let env = env.set("shutdown.drain_timeout", "1s");
    let (manager, env) = Manager::of(env.with_env(WATCHDOG.0, WATCHDOG.1));
    let mut orderd = env.start();
    manager.receive_until("READY=1");
    send(&env, "ord-1");
    wait_until("a handler waits", || orderd.has_logged("Processing Order"));
    // Idle queues, and a handler that waits for ten minutes.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        manager.receive_until("WATCHDOG=1");
    }
    assert_eq!(http::get(orderd.admin_address(), "/livez").status, 200);
    assert_eq!(orderd.logged_errors(), [""; 0]);
    // A process that was stopped is not reported as stuck for that time.
    orderd.signal("STOP");
    assert!(manager.is_silent_for(Duration::from_secs(7)), "a stopped process pings");
    orderd.signal("CONT");
    manager.receive_until("WATCHDOG=1");
    assert_eq!(orderd.logged_errors(), [""; 0]);
    assert_eq!(orderd.stop(), 0);
}
