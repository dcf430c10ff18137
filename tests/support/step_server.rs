//! An HTTP server for steps, which keeps every call and answers as a test wants. It shares no code with orderd.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// One call.
#[derive(Debug, Clone)]
pub struct StepCall {
    /// `/charge`
    pub path: String,
    /// `Idempotency-Key`
    pub key: String,
    pub body: Value,
}

/// What a call is answered with: status line such as `200 OK`, further headers, body. `None`: never.
pub type StepReply = Option<(String, String, String)>;

/// A reply without further headers.
pub fn reply(status: &str, body: &str) -> StepReply {
    Some((status.to_owned(), String::new(), body.to_owned()))
}

type Answer = Box<dyn Fn(&StepCall) -> StepReply + Send + Sync>;

/// The server; it runs until the test's process ends.
#[derive(Clone)]
pub struct StepServer {
    pub port: u16,
    calls: Arc<Mutex<Vec<StepCall>>>,
    answer: Arc<Mutex<Arc<Answer>>>,
}

impl StepServer {
    /// Starts one that answers `200 OK` and the path to everything.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let answer: Answer = Box::new(|call| reply("200 OK", &format!("{{\"done\":{:?}}}", call.path)));
        let server = StepServer {
            port: listener.local_addr().unwrap().port(),
            calls: Arc::default(),
            answer: Arc::new(Mutex::new(Arc::new(answer))),
        };
        let accepting = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = accepting.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        server
    }

    /// Answers like this from now on.
    pub fn answer(&self, answer: impl Fn(&StepCall) -> StepReply + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Arc::new(Box::new(answer));
    }

    /// The value of `consumers.<name>.steps` for these steps, each with an undo: `/<name>` and `/<name>/undo`.
    pub fn steps(&self, names: &[&str], more: &str) -> String {
        let step = |name: &&str| {
            let url = |path: &str| format!("{{ http = {{ url = \"http://127.0.0.1:{}/{name}{path}\" }} }}", self.port);
            let service = url("");
            let service = service.trim_start_matches("{ ").trim_end_matches(" }");
            format!("{{ name = \"{name}\", {service} }}, undo = {}, timeout = \"2s\"{more} }}", url("/undo"))
        };
        format!("[{}]", names.iter().map(step).collect::<Vec<_>>().join(", "))
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<StepCall> {
        self.calls.lock().unwrap().clone()
    }

    /// The paths of the calls for one order, in order.
    pub fn paths(&self, order: &str) -> Vec<String> {
        let of_order = |call: &StepCall| call.key.split('/').next() == Some(order);
        self.calls().into_iter().filter(of_order).map(|call| call.path).collect()
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(call) = read_call(&mut reader) {
            self.calls.lock().unwrap().push(call.clone());
            let answer = Arc::clone(&self.answer.lock().unwrap());
            let Some((status, headers, body)) = answer(&call) else {
                // Until orderd gives up.
                let _ = reader.read(&mut [0]);
                return;
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
            if (&stream).write_all((head + &body).as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn read_call(reader: &mut impl BufRead) -> Option<StepCall> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(StepCall { path, key: headers.remove("idempotency-key")?, body: serde_json::from_slice(&body).ok()? })
}
