//! What is told on a socket, for a daemon made for the test. Whole processes are tested elsewhere.

use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use super::*;
use crate::watchdog::Stuck;

/// How long a message may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    readiness: Mutex<Readiness>,
    heartbeats: Heartbeats,
}

impl StatusSource for Daemon {
    fn heartbeats(&self) -> Vec<HeartbeatReading> {
        self.heartbeats.read("order")
    }
    fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap().clone()
    }
}

impl Daemon {
    fn waiting(for_what: &str) -> Arc<Self> {
        Arc::new(Daemon {
            readiness: Mutex::new(Readiness::Waiting(for_what.to_owned())),
            heartbeats: Heartbeats::default(),
        })
    }

    fn is_up(&self, line: &str) {
        *self.readiness.lock().unwrap() = Readiness::Up(line.to_owned());
    }
}

/// A service manager that hears a service.
struct Ear {
    socket: UnixDatagram,
    _directory: tempfile::TempDir,
}

impl Ear {
    /// Where it listens, as variables of the environment, with a watchdog of so many microseconds.
    fn open(watchdog_usec: &str) -> (Self, Manager) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into()),
            "WATCHDOG_USEC" => Some(watchdog_usec.into()),
            _ => None,
        };
        let manager = Manager::named_by(variable, 1).unwrap();
        (Ear { socket, _directory: directory }, manager)
    }

    /// The lines of the next message.
    fn hear(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message within the deadline");
        String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned).collect()
    }

    /// The next message with such a line; those before are passed over.
    fn hear_of(&self, line: &str) -> Vec<String> {
        loop {
            let message = self.hear();
            if message.iter().any(|one| one == line) {
                return message;
            }
        }
    }
}

fn number(line: &str, name: &str) -> u128 {
    line.strip_prefix(name).unwrap_or_else(|| panic!("{line} is no {name}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_life_is_told_in_order() {
    let (ear, manager) = Ear::open("");
    let service = Service::start(manager).unwrap();
    let daemon = Daemon::waiting("waiting for\nthe broker");
    service.watch(Arc::clone(&daemon) as Arc<dyn StatusSource>);
    assert_eq!(ear.hear(), ["STATUS=waiting for the broker"], "a line is one line");
    // While it starts it asks for time, and a reload says nothing: READY=1 after it would be too early.
    drop(service.reloading());
    assert_eq!(ear.hear(), ["EXTEND_TIMEOUT_USEC=30000000"]);
    daemon.is_up("4 consumers");
    assert_eq!(ear.hear_of("READY=1"), ["READY=1", "STATUS=4 consumers"]);

    let before = manager::monotonic_usec();
    let reload = service.reloading();
    let reloading = ear.hear();
    assert_eq!((reloading[0].as_str(), reloading[2].as_str()), ("RELOADING=1", "STATUS=reloading"));
    let told = number(&reloading[1], "MONOTONIC_USEC=");
    assert!((before..=manager::monotonic_usec()).contains(&told), "{before} {told}");
    daemon.is_up("5 consumers");
    drop(reload);
    assert_eq!(ear.hear_of("READY=1"), ["READY=1", "STATUS=5 consumers"]);

    service.stopping(Duration::from_secs(3600));
    service.stopping(Duration::from_secs(1));
    assert_eq!(ear.hear(), ["STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=5 consumers"]);
    drop(service.reloading());
    assert_eq!(
        ear.hear(),
        ["EXTEND_TIMEOUT_USEC=30000000"],
        "a reload while it stops is not told, more time is asked for"
    );
    service.end(Some("cannot go on".to_owned()));
    assert_eq!(ear.hear(), ["STOPPING=1", "STATUS=cannot go on"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_blocks_its_thread_stops_the_pings_until_it_goes_on() {
    // Its half is the shortest patience: three seconds.
    let (ear, manager) = Ear::open("6000000");
    let service = Service::start(manager).unwrap();
    let daemon = Daemon::waiting("");
    daemon.is_up("up");
    service.watch(Arc::clone(&daemon) as Arc<dyn StatusSource>);
    ear.hear_of("WATCHDOG=1");
    let (free, blocked) = mpsc::channel::<()>();
    let waits = tokio::spawn(daemon.heartbeats.register().around(std::future::pending::<()>()));
    let blocks = tokio::spawn(daemon.heartbeats.register().around(async move { blocked.recv() }));
    let health = service.health();
    let deadline = std::time::Instant::now() + PATIENCE;
    while health.stuck().is_empty() {
        assert!(std::time::Instant::now() < deadline, "nobody has noticed");
        std::thread::yield_now();
    }
    assert_eq!(health.stuck(), [Stuck::Worker { consumer: "order".to_owned() }]);
    // Nothing is told from now on; what was told before waits in the socket.
    ear.socket.set_nonblocking(true).unwrap();
    while ear.socket.recv(&mut [0; 4096]).is_ok() {}
    ear.socket.set_nonblocking(false).unwrap();
    ear.socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let silence = ear.socket.recv(&mut [0; 4096]);
    assert!(silence.is_err(), "it was told something though a task is stuck");
    assert_eq!(health.stuck().len(), 1, "and it still is");

    free.send(()).unwrap();
    ear.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    ear.hear_of("WATCHDOG=1");
    assert_eq!(health.stuck(), []);
    blocks.await.unwrap().unwrap();
    waits.abort();
    service.end(None);
}
