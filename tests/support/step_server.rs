//! An HTTP server for steps, which keeps every call and answers as a test wants. It shares no code with orderd.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// One call.
#[derive(Debug, Clone)]
pub struct StepCall {
    /// `/charge`
    pub path: String,
    /// `Idempotency-Key`
    pub key: String,
    /// `Authorization`; empty without.
    pub authorization: String,
    pub body: Value,
}

/// What a call is answered with.
#[derive(Debug, Clone)]
pub enum StepReply {
    Answer {
        /// `200 OK`
        status: String,
        /// Further headers, each with its line break.
        headers: String,
        body: String,
    },
    /// Nothing, until orderd gives up.
    Nothing,
    /// A reset of the connection, once the request was read.
    Reset,
}

/// A reply without further headers.
pub fn reply(status: &str, body: &str) -> StepReply {
    StepReply::Answer { status: status.to_owned(), headers: String::new(), body: body.to_owned() }
}

type Answer = Box<dyn Fn(&StepCall) -> StepReply + Send + Sync>;
type Answered = Box<dyn Fn(&StepCall) + Send + Sync>;

/// The server; it runs until the test's process ends.
#[derive(Clone)]
pub struct StepServer {
    pub port: u16,
    calls: Arc<Mutex<Vec<StepCall>>>,
    answer: Arc<Mutex<Arc<Answer>>>,
    answered: Arc<Mutex<Arc<Answered>>>,
    in_flight: Arc<AtomicUsize>,
    keeps_calls: Arc<AtomicBool>,
}

impl StepServer {
    /// Starts one that answers `200 OK` and the path to everything.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let answer: Answer = Box::new(|call| reply("200 OK", &format!("{{\"done\":{:?}}}", call.path)));
        let answered: Answered = Box::new(|_| {});
        let server = StepServer {
            port: listener.local_addr().unwrap().port(),
            calls: Arc::default(),
            answer: Arc::new(Mutex::new(Arc::new(answer))),
            answered: Arc::new(Mutex::new(Arc::new(answered))),
            in_flight: Arc::default(),
            keeps_calls: Arc::new(AtomicBool::new(true)),
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

    /// Keeps no calls: there are many.
    pub fn without_calls(self) -> Self {
        self.keeps_calls.store(false, Ordering::SeqCst);
        self
    }

    /// Answers like this from now on.
    pub fn answer(&self, answer: impl Fn(&StepCall) -> StepReply + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Arc::new(Box::new(answer));
    }

    /// Does this after each answer from now on.
    pub fn once_answered(&self, answered: impl Fn(&StepCall) + Send + Sync + 'static) {
        *self.answered.lock().unwrap() = Arc::new(Box::new(answered));
    }

    /// The URL of a path such as `/charge`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Calls that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// The value of `consumers.<name>.steps` for these steps, each with an undo: `/<name>` and `/<name>/undo`.
    pub fn steps(&self, names: &[&str], more: &str) -> String {
        let step = |name: &&str| {
            let url = |path: &str| format!("{{ http = {{ url = {:?} }} }}", self.url(&format!("/{name}{path}")));
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
            if self.keeps_calls.load(Ordering::SeqCst) {
                self.calls.lock().unwrap().push(call.clone());
            }
            let answer = Arc::clone(&self.answer.lock().unwrap());
            self.in_flight.fetch_add(1, Ordering::SeqCst);
            let reply = answer(&call);
            if matches!(reply, StepReply::Nothing) {
                let _ = reader.read(&mut [0]);
            }
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if matches!(reply, StepReply::Reset) {
                // Closing it then resets it.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
            let StepReply::Answer { status, headers, body } = reply else { return };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
            if (&stream).write_all((head + &body).as_bytes()).is_err() {
                return;
            }
            let answered = Arc::clone(&self.answered.lock().unwrap());
            answered(&call);
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
    let authorization = headers.remove("authorization").unwrap_or_default();
    let body = serde_json::from_slice(&body).ok()?;
    Some(StepCall { path, key: headers.remove("idempotency-key")?, authorization, body })
}
