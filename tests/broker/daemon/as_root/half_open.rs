//! Clients of the admin listener that vanish from a real network: nothing says that they are gone, not even the end of the
//! stream.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use super::run;
use crate::support::Node;
use crate::support::http::get;
use crate::support::test_env::{TestEnv, wait_until};

/// The network that connects the clients with this machine; in no other use.
const HOST: &str = "198.51.100.1";
const CLIENT: &str = "198.51.100.2";

/// A network namespace with a link to this one. Deleted when dropped.
struct ClientNetwork {
    name: String,
}

impl ClientNetwork {
    fn new() -> Self {
        let this = ClientNetwork { name: format!("orderd{}", std::process::id()) };
        let (name, link) = (&this.name, this.link());
        run("ip", &["netns", "add", name]);
        run("ip", &["link", "add", &link, "type", "veth", "peer", "name", "client", "netns", name]);
        run("ip", &["addr", "add", &format!("{HOST}/30"), "dev", &link]);
        run("ip", &["link", "set", &link, "up"]);
        run("ip", &["-n", name, "addr", "add", &format!("{CLIENT}/30"), "dev", "client"]);
        run("ip", &["-n", name, "link", "set", "client", "up"]);
        this
    }

    fn link(&self) -> String {
        format!("od{}", std::process::id())
    }

    /// Opens connections to a port of this machine, sends a part of a request on each, and keeps them.
    fn connect(&self, port: u16, connections: usize) -> Clients {
        let script = format!(
            "for n in {{1..{connections}}}; do exec {{fd}}<>/dev/tcp/{HOST}/{port}; printf 'GET /livez HTTP/1.1\\r\\nHost: ' >&$fd; done; \
             exec sleep 1000"
        );
        let bash = ["netns", "exec", &self.name, "bash", "-c", &script];
        Clients(Command::new("ip").args(bash).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Nothing gets through any more, in either direction.
    fn cut(&self) {
        run("ip", &["-n", &self.name, "link", "set", "client", "down"]);
    }
}

impl Drop for ClientNetwork {
    fn drop(&mut self) {
        for arguments in [["link", "del", &self.link()], ["netns", "del", &self.name]] {
            let _ = Command::new("ip").args(arguments).status();
        }
    }
}

/// The process that keeps the connections; killed when dropped.
struct Clients(Child);

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The established connections between a port of this machine and the clients.
fn established(port: u16) -> usize {
    let address = u32::from_le_bytes(CLIENT.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let (local, remote) = (format!(":{port:04X}"), format!("{address:08X}:"));
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 01: established.
        fields[1].ends_with(&local) && fields[2].starts_with(&remote) && fields[3] == "01"
    };
    fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).filter(is_one).count()
}

#[test]
#[ignore = "needs root, who can cut a network"]
fn clients_that_vanish_from_the_network_are_disconnected_and_keep_no_health_check_out() {
    const CLIENTS: usize = 120;
    let node = Node::shared();
    let env = TestEnv::new(&node).set("admin.listen", "0.0.0.0:0");
    let token = env.directory.path().join("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let env = env.set("admin.users", &format!("[{{name = 'ada', role = 'viewer', token_file = {token:?}}}]"));
    let mut orderd = env.start();
    let port = orderd.admin_address().port();
    let network = ClientNetwork::new();
    let _clients = network.connect(port, CLIENTS);
    wait_until("all are connected", || established(port) == CLIENTS);
    network.cut();
    let admin = SocketAddr::from(([127, 0, 0, 1], port));
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(admin, path).status, 200, "{path}");
    }
    wait_until("the daemon has closed all of their connections", || established(port) == 0);
    assert_eq!(orderd.stop(), 0);
}
