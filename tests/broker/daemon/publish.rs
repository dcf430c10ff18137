//! `orderd publish` with the inputs and outputs that shells give it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::support::Node;
use crate::support::test_env::{TestEnv, order, wait_until};

fn closed_pipe() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn publish_reads_what_shells_give_it_and_explains_what_it_does_not_read_or_route() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let ledger = env.ledger();
    let path = |name: &str| env.directory.path().join(name);
    let line = |id: &str| String::from_utf8(order(id)).unwrap();
    let publish = |file: &str, stdin: Stdio, stdout: Stdio| {
        let output =
            env.program(&["publish", file]).stdin(stdin).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };

    // A byte order mark, CRLF, blank lines, and no line feed at the end.
    let file = path("orders.ndjson");
    fs::write(&file, format!("\u{feff}{}\r\n\r\n{}", line("1"), line("2"))).unwrap();
    let name = file.to_str().unwrap();
    assert_eq!(publish(name, Stdio::null(), closed_pipe()), (Some(0), String::new()));
    let (code, error) = publish(name, Stdio::null(), File::create("/dev/full").unwrap().into());
    assert!(code == Some(70) && error.contains("cannot write the output"), "{code:?} {error}");
    assert_eq!(publish("-", File::open(&file).unwrap().into(), Stdio::null()).0, Some(0));

    let fifo = path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = thread::spawn({
        let (fifo, line) = (fifo.clone(), line("3"));
        move || File::options().write(true).open(fifo).unwrap().write_all(line.as_bytes()).unwrap()
    });
    assert_eq!(publish(fifo.to_str().unwrap(), Stdio::null(), Stdio::null()), (Some(0), String::new()));
    writer.join().unwrap();

    for (content, code, reason) in [
        (Vec::new(), 0, ""),
        (b"\n \r\n".to_vec(), 0, ""),
        (b"\x1f\x8b\x08\0".to_vec(), 1, "decompress it first"),
        (line("x").encode_utf16().flat_map(u16::to_le_bytes).collect(), 1, "UTF-16"),
        (vec![b'x'; 3 << 20], 1, "longer than"),
        (b"{\"id\":\"4111111111111111\",\"product\":7}".to_vec(), 1, "product must be a text"),
    ] {
        fs::write(&file, content).unwrap();
        let (found, error) = publish(name, Stdio::null(), Stdio::null());
        assert!(found == Some(code) && error.contains(reason) && !error.contains("4111"), "{found:?} {error}");
    }
    // Another form is one error with the command that converts it, for a file even before anything is connected.
    for (content, hint) in [("{\n  \"id\": 1,\n  \"product\": 2\n}\n", "jq -c . "), ("[\n{}\n]\n", "jq -c '.[]' ")] {
        fs::write(&file, content).unwrap();
        for (name, stdin) in [(name, Stdio::null()), ("-", File::open(&file).unwrap().into())] {
            let (code, error) = publish(name, stdin, Stdio::null());
            assert!(code == Some(1) && error.lines().count() == 1 && error.contains(hint), "{code:?} {error}");
        }
    }
    let unreachable = ["--set", "broker.addresses=127.0.0.1:1", "--connect-timeout"];
    let publish_to_nowhere = |file: &str, limit: &str| {
        let arguments = [&["publish", file], &unreachable[..], &[limit]].concat();
        let output = env.program(&arguments).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(publish_to_nowhere(name, "1h").0, Some(1), "the file is checked first");
    fs::write(&file, line("1")).unwrap();
    let (code, error) = publish_to_nowhere(name, "500ms");
    assert!(code == Some(69) && error.lines().count() == 2 && error.contains("trying again"), "{code:?} {error}");

    // The broker confirms what its alternate exchange keeps, so only the configuration shows the typo.
    let arguments = ["publish", name, "--routing-key", "order.nromal.created", "--format", "json"];
    let output = env.program(&arguments).stdin(Stdio::null()).output().unwrap();
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["published"], &summary["unbound"]), (&1.into(), &1.into()), "{summary}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("unrouted_queue"));

    let directory = env.directory.path().to_str().unwrap().to_owned();
    assert_eq!(publish(&directory, Stdio::null(), Stdio::null()).0, Some(64));

    wait_until("each order is processed once", || {
        ledger.number("SELECT count(*) FROM orders WHERE processed_at IS NOT NULL") == 3
    });
    assert_eq!(orderd.stop(), 0);
}
