//! A real SMTP server, written in Python (`smtp_server.py`), which keeps the e-mails that it has accepted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// Relative to the repository, which is the working directory.
const SCRIPTS: &str = "tests/support";

/// The server; it ends when this is dropped.
pub struct SmtpServer {
    pub port: u16,
    mails: Arc<Mutex<Vec<Value>>>,
    control: Mutex<(ChildStdin, Receiver<Value>)>,
    child: Child,
}

impl SmtpServer {
    /// Starts one with these options of the script. Installs what it needs.
    pub fn start(options: &[&str]) -> Self {
        let installed = Command::new(format!("{SCRIPTS}/smtp.sh")).status().unwrap();
        assert!(installed.success(), "python3-aiosmtpd is not installed");
        let mut child = Command::new(format!("{SCRIPTS}/smtp_server.py"))
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = lines.next().expect("it prints its port").parse().unwrap();
        let mails: Arc<Mutex<Vec<Value>>> = Arc::default();
        let received = Arc::clone(&mails);
        let (changed, modes) = channel();
        thread::spawn(move || {
            for line in lines {
                let value: Value = serde_json::from_str(&line).unwrap();
                if value.get("mode").is_some() {
                    let _ = changed.send(value);
                } else {
                    received.lock().unwrap().push(value);
                }
            }
        });
        let input = child.stdin.take().unwrap();
        SmtpServer { port, mails, control: Mutex::new((input, modes)), child }
    }

    /// Changes the mode, as the script describes it.
    pub fn set_mode(&self, mode: &str) {
        let mut control = self.control.lock().unwrap();
        writeln!(control.0, "{mode}").unwrap();
        assert_eq!(control.1.recv().unwrap()["mode"], mode);
    }

    /// Every e-mail so far.
    pub fn mails(&self) -> Vec<Value> {
        self.set_mode("sync");
        self.mails.lock().unwrap().clone()
    }

    /// The e-mails to this address.
    pub fn mails_to(&self, address: &str) -> Vec<Value> {
        self.mails().into_iter().filter(|mail| mail["to"][0] == address).collect()
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
