//! Large dead letters over HTTP: a slow client receives all of one, and many requests and exports at a time take bounded memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::Node;
use crate::support::raw_client::persistent;
use crate::support::test_env::{OrderdProcess, TestEnv, wait_until};

/// RabbitMQ 4 takes no message above 16 MiB.
const BODY: usize = 12 << 20;
/// Above what the bodies that may be sent at a time take, and far below what all of the answers would.
const MAX_MIB: u64 = 300;
/// How long a client may take for another answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

fn request(orderd: &OrderdProcess, id: u64) -> TcpStream {
    get(orderd, &id.to_string())
}

fn get(orderd: &OrderdProcess, path: &str) -> TcpStream {
    let address = orderd.admin_address();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("Host: {address}\r\n{}", orderd.command_token());
    write!(stream, "GET /api/v1/dead-letters/{path} HTTP/1.1\r\n{head}\r\n").unwrap();
    stream
}

fn whole_answer(mut stream: TcpStream) -> (u16, Vec<u8>) {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    answer(&received)
}

/// Status and body of an answer, whose chunks are put together.
fn answer(bytes: &[u8]) -> (u16, Vec<u8>) {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut rest = &bytes[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (status, rest.to_vec());
    }
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").expect("the answer is complete");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return (status, body);
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

#[test]
fn a_slow_client_receives_all_of_a_large_dead_letter_and_many_requests_at_a_time_take_bounded_memory() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true").set("log.level", "info");
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    // Each byte of the second one is six in JSON.
    for byte in [b'x', 1] {
        raw.publish("dead_letter_queue", &persistent(), &vec![byte; BODY]);
    }
    wait_until("both are stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 2);
    let large = ledger.number("SELECT letter_id FROM stored_contents WHERE substr(body, 1, 1) = x'01'");
    let plain = 3 - large;

    let mut slow = request(&orderd, plain);
    let (begun, mut received, mut part) = (Instant::now(), Vec::new(), vec![0; 256 << 10]);
    loop {
        // About a megabyte a second.
        thread::sleep(Duration::from_millis(250));
        let mut filled = 0;
        while filled < part.len() {
            let read = slow.read(&mut part[filled..]).unwrap();
            filled += read;
            if read == 0 {
                break;
            }
        }
        received.extend_from_slice(&part[..filled]);
        if filled < part.len() {
            break;
        }
    }
    assert!(begun.elapsed() > SEND_TIMEOUT, "it was not slow: {:?}", begun.elapsed());
    let (status, body) = answer(&received);
    let letter: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, letter["body"].as_str().unwrap().len()), (200, BODY));

    // Clients that have received the beginning, and nothing more.
    let begun: Vec<_> = (0..16).map(|_| request(&orderd, large)).collect();
    let statuses: Vec<_> = begun
        .iter()
        .map(|mut stream| {
            let mut beginning = [0; 4 << 10];
            let read = stream.read(&mut beginning).unwrap();
            let beginning = String::from_utf8_lossy(&beginning[..read]).into_owned();
            let status = beginning.split(' ').nth(1).unwrap().to_owned();
            assert!(status == "200" || beginning.contains("too_many_"), "{beginning}");
            status
        })
        .collect();
    let sent = statuses.iter().filter(|status| *status == "200").count();
    assert!(sent == 5, "{sent} of them fit into the limit: {statuses:?}");
    let (status, refused) = whole_answer(get(&orderd, "export"));
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(status == 503 && refused.contains("too_many_large_answers"), "{status} {refused:.200}");
    let peak = orderd.peak_memory_mib();
    assert!(peak < MAX_MIB, "{peak} MiB");
    drop(begun);
    wait_until("those that have ended make room", || {
        let mut beginning = [0; 12];
        request(&orderd, plain).read_exact(&mut beginning).unwrap();
        beginning.ends_with(b"200")
    });
    let mut shown = env.program(&["dead-letters", "show", &plain.to_string(), "--format", "json"]);
    let output = shown.args(["--address", &orderd.admin_address().to_string()]).output().unwrap();
    let letter: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(letter["body"].as_str().unwrap().len(), BODY);
}

#[test]
fn exports_of_large_dead_letters_take_bounded_memory() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true").set("log.level", "info");
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    // Each byte of the last one is six in JSON.
    for (body, byte) in [(10, b'x'), (BODY, b'x'), (10, b'y'), (BODY, 1)] {
        raw.publish("dead_letter_queue", &persistent(), &vec![byte; body]);
        let stored = ledger.number("SELECT count(*) FROM stored_dead_letters");
        wait_until("it is stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") > stored);
    }
    let exports = [get(&orderd, "export"), get(&orderd, "export")].map(|stream| thread::spawn(|| whole_answer(stream)));
    for export in exports {
        let (status, lines) = export.join().unwrap();
        let lengths: Vec<_> = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<Value>(line).unwrap()["body"].as_str().unwrap().len())
            .collect();
        assert_eq!((status, lengths), (200, vec![10, BODY, 10, BODY]));
    }
    let peak = orderd.peak_memory_mib();
    assert!(peak < MAX_MIB, "{peak} MiB");
}
