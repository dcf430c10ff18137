//! `orderd probe` with no daemon, with a fake one, and with a broken configuration.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Output;
use std::thread;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");

fn probe_with(config: &Path, listen: &str, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = crate::orderd()
        .args([&["probe", "--timeout", "500ms"], arguments].concat())
        .arg("--config")
        .arg(config)
        .env("ORDERD_ADMIN__LISTEN", listen)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn probe(listen: &str, arguments: &[&str]) -> (i32, String, String) {
    probe_with(Path::new(CONFIG), listen, arguments)
}

/// A server that gives every request the same response. Returns its address and the request lines it receives.
fn fake_server(response: &'static str) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            if sender.send(request.lines().next().unwrap_or_default().to_owned()).is_err() {
                return;
            }
            stream.write_all(response.as_bytes()).unwrap();
        }
    });
    (address, requests)
}

#[test]
fn no_listener_exits_with_69() {
    // Nothing listens there: the kernel assigns ports on 127.0.0.1.
    let free = SocketAddr::from(([127, 9, 9, 9], 9));
    let (code, out, err) = probe(&free.to_string(), &[]);
    assert_eq!((code, out.as_str()), (69, ""), "{err}");
    assert!(err.contains(&free.to_string()) && err.contains("no daemon answers"), "{err}");

    let (code, out, err) = probe(&free.to_string(), &["--format", "json", "--ready"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
    assert_eq!((code, &report["ok"], &report["asked"]), (69, &false.into(), &"ready".into()), "{err}");
    assert_eq!((&report["status"], &report["address"]), (&serde_json::Value::Null, &free.to_string().into()));
}

#[test]
fn a_listener_that_never_answers_exits_with_69() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, _, err) = probe(&silent.local_addr().unwrap().to_string(), &[]);
    assert_eq!(code, 69, "{err}");
}

#[test]
fn an_admin_listener_that_is_off_exits_with_78() {
    let (code, out, err) = probe("off", &[]);
    assert_eq!((code, out.as_str()), (78, ""));
    assert!(err.contains("admin.listen is \"off\""), "{err}");
}

#[test]
fn an_unexpected_response_means_not_live() {
    let (address, requests) =
        fake_server("HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwhat?");
    let (code, _, err) = probe(&address.to_string(), &[]);
    assert_eq!(code, 69);
    assert!(err.contains("not live (404): what?"), "{err}");
    assert_eq!(requests.recv().unwrap(), "GET /livez HTTP/1.1");
}

#[test]
fn a_daemon_that_listens_on_all_addresses_is_probed_on_loopback() {
    let (address, requests) = fake_server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "a-token-of-many-bytes").unwrap();
    let set = format!("admin.users=[{{name = 'ada', role = 'viewer', token_file = '{}'}}]", token.display());
    let (code, out, err) = probe(&format!("0.0.0.0:{}", address.port()), &["--set", &set]);
    assert_eq!((code, out.as_str()), (0, "live\n"), "{err}");
    assert_eq!(requests.recv().unwrap(), "GET /livez HTTP/1.1");
}

#[test]
fn a_daemon_is_live_while_its_configuration_file_is_being_edited() {
    let (address, _requests) = fake_server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("orderd.toml");
    for text in [Some("[broker]\naddr"), Some("[broker]\nadress = 1\n"), None] {
        match text {
            Some(text) => fs::write(&config, text).unwrap(),
            None => fs::remove_file(&config).unwrap(),
        }
        let (code, out, err) = probe_with(&config, &address.to_string(), &[]);
        assert_eq!((code, out.as_str()), (0, "live\n"), "{err}");
        assert!(err.contains("orderd.toml") && err.contains("using its admin section"), "{err}");
    }
}

#[test]
fn a_daemon_is_live_if_a_certificate_or_token_file_is_missing() {
    let (address, _requests) = fake_server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("orderd.toml");
    let admin = format!(
        "[admin]\nlisten = \"0.0.0.0:{}\"\nusers = [{{name = \"ada\", role = \"viewer\", token_file = \"/nowhere\"}}]\n",
        address.port()
    );
    fs::write(&file, format!("[broker.tls]\nca_file = \"/nowhere\"\n{admin}")).unwrap();
    let mut probe = crate::orderd();
    probe.arg("probe").arg("--config").arg(&file).env("ORDERD_BROKER__PASSWORD_FILE", "/nowhere");
    let Output { status, stderr, .. } = probe.output().unwrap();
    let err = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(0), "{err}");
    for key in ["broker.tls.ca_file", "broker.password_file", "admin.users[0].token_file"] {
        assert!(err.contains(key), "{key}: {err}");
    }
}

#[test]
fn an_invalid_environment_exits_with_78() {
    let (code, _, err) = probe("everywhere", &[]);
    assert_eq!(code, 78);
    assert!(err.contains("admin.listen"), "{err}");
}

#[test]
fn a_timeout_out_of_range_exits_with_64() {
    assert_eq!(probe("off", &["--timeout", "2m"]).0, 64);
}
