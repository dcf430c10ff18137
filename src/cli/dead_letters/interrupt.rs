//! Ctrl-C while a command asks the daemon, and what the command says then.

use std::io::{self, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Exit;

/// Ctrl-C since this was created. It does not end the process.
pub(super) struct Interrupt(Signal);

impl Interrupt {
    /// Installs the handler, which stays for the life of the process.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn new() -> io::Result<Self> {
        signal(SignalKind::interrupt()).map(Interrupt)
    }

    /// What the work returns. `None`: Ctrl-C came first. The work is dropped then; if it was a request, the daemon may carry it out.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        // `Signal::recv` is cancel-safe: no signal is lost between two calls.
        tokio::select! {
            biased;
            _ = self.0.recv() => None,
            done = work => Some(done),
        }
    }
}

/// Says what has become of the command's work.
pub(super) fn interrupted(text: &str, err: &mut dyn Write) -> io::Result<Exit> {
    // The terminal has shown ^C on this line.
    writeln!(err, "\norderd: interrupted: {text}")?;
    Ok(Exit::Interrupted)
}
