//! A real SMTP server, written in Python (`smtp_server.py`), which keeps the e-mails that it has accepted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support");

/// The server; it ends when this is dropped.
pub struct SmtpServer {
    pub port: u16,
    mails: Arc<Mutex<Vec<Value>>>,
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
        thread::spawn(move || {
            for line in lines {
                received.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        SmtpServer { port, mails, child }
    }

    /// Every e-mail so far.
    pub fn mails(&self) -> Vec<Value> {
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
