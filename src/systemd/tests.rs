//! The notifications sent for a fake daemon, received on a real socket. Whole processes are tested in `tests/broker`.

use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use super::*;
use crate::watchdog::{Heartbeats, Stuck};

/// How long a message may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

struct FakeDaemon {
    readiness: Mutex<Readiness>,
    heartbeats: Heartbeats,
}

impl StatusSource for FakeDaemon {
    fn heartbeats(&self) -> Vec<HeartbeatReading> {
        self.heartbeats.read("order")
    }
    fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap().clone()
    }
}

impl FakeDaemon {
    fn waiting(reason: &str) -> Arc<Self> {
        Arc::new(FakeDaemon {
            readiness: Mutex::new(Readiness::Waiting(reason.to_owned())),
            heartbeats: Heartbeats::default(),
        })
    }

    fn set_up(&self, line: &str) {
        *self.readiness.lock().unwrap() = Readiness::Up(line.to_owned());
    }
}

/// The receiving end of the notify socket, in place of systemd.
struct FakeServiceManager {
    socket: UnixDatagram,
    _directory: tempfile::TempDir,
}

impl FakeServiceManager {
    /// Binds a socket, and returns orderd's end of it with this `WATCHDOG_USEC`.
    fn open(watchdog_usec: &str) -> (Self, NotifySocket) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into()),
            "WATCHDOG_USEC" => Some(watchdog_usec.into()),
            _ => None,
        };
        let socket_handle = NotifySocket::from_variables(variable, 1).unwrap();
        (FakeServiceManager { socket, _directory: directory }, socket_handle)
    }

    /// The lines of the next message.
    fn receive(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message within the deadline");
        String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned).collect()
    }

    /// The next message that has this line; messages before it are skipped.
    fn receive_with(&self, line: &str) -> Vec<String> {
        loop {
            let message = self.receive();
            if message.iter().any(|sent| sent == line) {
                return message;
            }
        }
    }
}

fn number(line: &str, name: &str) -> u128 {
    line.strip_prefix(name).unwrap_or_else(|| panic!("{line} does not begin with {name}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn start_reload_and_stop_are_notified_in_order() {
    let (manager, socket) = FakeServiceManager::open("");
    let notifier = ServiceNotifier::start(socket).unwrap();
    let daemon = FakeDaemon::waiting("waiting for\nthe broker");
    notifier.attach(Arc::clone(&daemon) as Arc<dyn StatusSource>);
    assert_eq!(manager.receive(), ["STATUS=waiting for\\nthe broker"], "a line break is escaped");
    // A reload during the start is not notified: READY=1 after it would be too early. Only more time is requested.
    drop(notifier.reloading());
    assert_eq!(manager.receive(), ["EXTEND_TIMEOUT_USEC=30000000"]);
    daemon.set_up("4 consumers");
    assert_eq!(manager.receive_with("READY=1"), ["READY=1", "STATUS=4 consumers"]);

    let before = notify_socket::monotonic_usec();
    let reload = notifier.reloading();
    let reloading = manager.receive();
    assert_eq!((reloading[0].as_str(), reloading[2].as_str()), ("RELOADING=1", "STATUS=reloading"));
    let sent = number(&reloading[1], "MONOTONIC_USEC=");
    assert!((before..=notify_socket::monotonic_usec()).contains(&sent), "{before} {sent}");
    daemon.set_up("5 consumers");
    drop(reload);
    assert_eq!(manager.receive_with("READY=1"), ["READY=1", "STATUS=5 consumers"]);

    notifier.stopping(Duration::from_secs(3600));
    notifier.stopping(Duration::from_secs(1));
    assert_eq!(manager.receive(), ["STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=5 consumers"]);
    drop(notifier.reloading());
    assert_eq!(
        manager.receive(),
        ["EXTEND_TIMEOUT_USEC=30000000"],
        "a reload while stopping is not notified, more time is requested"
    );
    notifier.end(Some("cannot continue".to_owned()));
    assert_eq!(manager.receive(), ["STOPPING=1", "STATUS=cannot continue"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_blocks_its_thread_stops_the_watchdog_pings_until_it_yields() {
    // Half of this is the shortest stall timeout: three seconds.
    let (manager, socket) = FakeServiceManager::open("6000000");
    let notifier = ServiceNotifier::start(socket).unwrap();
    let daemon = FakeDaemon::waiting("");
    daemon.set_up("up");
    notifier.attach(Arc::clone(&daemon) as Arc<dyn StatusSource>);
    manager.receive_with("WATCHDOG=1");
    let (unblock, blocked) = mpsc::channel::<()>();
    let waiting = tokio::spawn(daemon.heartbeats.register().track(std::future::pending::<()>()));
    let blocking = tokio::spawn(daemon.heartbeats.register().track(async move { blocked.recv() }));
    let health = notifier.health();
    let deadline = std::time::Instant::now() + DEADLINE;
    while health.stuck().is_empty() {
        assert!(std::time::Instant::now() < deadline, "the blocked task was not detected");
        std::thread::yield_now();
    }
    assert_eq!(health.stuck(), [Stuck::Worker { consumer: "order".to_owned() }]);
    // From now on nothing is sent; messages sent before are still in the socket.
    manager.socket.set_nonblocking(true).unwrap();
    while manager.socket.recv(&mut [0; 4096]).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    manager.socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let silence = manager.socket.recv(&mut [0; 4096]);
    assert!(silence.is_err(), "a message was sent although a task is stuck");
    assert_eq!(health.stuck().len(), 1, "the task is still stuck");

    unblock.send(()).unwrap();
    manager.socket.set_read_timeout(Some(DEADLINE)).unwrap();
    manager.receive_with("WATCHDOG=1");
    assert_eq!(health.stuck(), []);
    blocking.await.unwrap().unwrap();
    waiting.abort();
    notifier.end(None);
}
