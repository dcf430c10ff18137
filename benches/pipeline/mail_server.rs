//! The mail server of `--notify smtp`: that of the tests (`tests/support/smtp_server.py`, aiosmtpd), and the most that it can accept.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::daemon::cpu_of;

const SCRIPT: &str = "tests/support/smtp_server.py";
const INSTALL: &str = "tests/support/smtp.sh";
/// An e-mail of about the size that orderd sends.
const BODY_LINES: usize = 60;
const BODY_LINE: &str = "Thank you for your order; we have received it and process it.\r\n";

/// A running server; it ends when this is dropped.
pub struct MailServer {
    pub port: u16,
    child: Child,
}

impl MailServer {
    /// Starts one that keeps nothing. Installs what it needs.
    pub fn start() -> io::Result<MailServer> {
        if !Command::new(INSTALL).status()?.success() {
            return Err(io::Error::other("python3-aiosmtpd is not installed"));
        }
        let mut child = Command::new(SCRIPT).arg("--quiet").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("the server has no output"))?;
        let mut port = String::new();
        BufReader::new(stdout).read_line(&mut port)?;
        let port = port.trim().parse().map_err(io::Error::other)?;
        Ok(MailServer { port, child })
    }

    /// Its CPU time.
    pub fn cpu(&self) -> io::Result<Duration> {
        cpu_of(self.child.id())
    }

    /// Sends e-mails over so many connections as fast as the server accepts them. Returns how many it accepts in a second.
    pub fn most_per_second(&self, mails: u64, connections: u64) -> io::Result<f64> {
        let begin = Instant::now();
        thread::scope(|scope| {
            let senders: Vec<_> =
                (0..connections).map(|_| scope.spawn(|| send(self.port, mails / connections))).collect();
            senders.into_iter().try_for_each(|sender| sender.join().expect("a sender does not panic"))
        })?;
        Ok(mails as f64 / begin.elapsed().as_secs_f64())
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(port: u16, mails: u64) -> io::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    let mut reply = || -> io::Result<()> {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match (line.starts_with(['2', '3']), line.as_bytes().get(3)) {
                (true, Some(b'-')) => {}
                (true, _) => return Ok(()),
                (false, _) => return Err(io::Error::other(format!("the mail server answered {line:?}"))),
            }
        }
    };
    let mail = format!("Subject: An order\r\n\r\n{}.\r\n", BODY_LINE.repeat(BODY_LINES));
    reply()?;
    writer.write_all(b"EHLO localhost\r\n")?;
    reply()?;
    for _ in 0..mails {
        for command in ["MAIL FROM:<orders@example.com>\r\n", "RCPT TO:<ada@example.com>\r\n", "DATA\r\n", &mail] {
            writer.write_all(command.as_bytes())?;
            reply()?;
        }
    }
    Ok(())
}
