//! What a command that takes its time says on standard error: on a terminal one line that changes, else a line for each change.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how far a command is.
pub(super) struct Progress {
    /// Only on a terminal.
    line: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub fn new() -> Self {
        let line = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            let line = ProgressBar::new_spinner();
            line.enable_steady_tick(Duration::from_millis(200));
            line.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        Progress { line, last: String::new() }
    }

    /// How far it is now.
    pub fn show(&mut self, text: &str, err: &mut dyn Write) -> io::Result<()> {
        if text == self.last {
            return Ok(());
        }
        text.clone_into(&mut self.last);
        match &self.line {
            Some(line) => {
                line.set_message(text.to_owned());
                Ok(())
            }
            None => writeln!(err, "{text}"),
        }
    }

    /// Something to be read later, too.
    pub fn note(&self, text: &str, err: &mut dyn Write) -> io::Result<()> {
        match &self.line {
            Some(line) => line.suspend(|| writeln!(err, "{text}")),
            None => writeln!(err, "{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}
