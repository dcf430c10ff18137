//! Records Ctrl-C and TERM, so that a program can stop the processes it has started before it exits.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
const STEP: Duration = Duration::from_millis(50);

/// Starts to record signals.
pub fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            // `Signal::recv` is cancel-safe.
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    });
    Ok(())
}

/// Returns an error if a signal has been received.
pub fn check() -> io::Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    }
}

/// Lets a fault last, and ends it, also if a signal is received meanwhile.
pub fn outage(length: Duration, end: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let slept = sleep(length);
    end()?;
    Ok(slept?)
}

/// Sleeps. Returns an error early if a signal is received.
pub fn sleep(duration: Duration) -> io::Result<()> {
    let mut left = duration;
    while !left.is_zero() {
        check()?;
        let step = left.min(STEP);
        thread::sleep(step);
        left -= step;
    }
    check()
}
