//! Lines about single messages, such as each that fails: the first few of a cause in full, the others at the level `debug` and,
//! once a minute, in one line that counts them.
//!
//! Decides which line is written when; callers write it. Never drops a count, if the caller calls
//! [`MessageLog::write_counts`] from time to time and [`MessageLog::write_all_counts`] at the end.

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// This many lines of a cause are written in full.
const IN_FULL: u32 = 5;
/// How often the others are counted in a line.
const INTERVAL: Duration = Duration::from_secs(60);
/// A cause that did not occur for this long is over: its next lines are written in full again.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// The most causes that are distinguished. Further ones share one entry.
const MAX_CAUSES: usize = 64;

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageLine {
    /// At its own level.
    Shown {
        /// For how many messages it stands, its own included; `None` if it was due for each of them.
        repeated: Option<u64>,
    },
    /// At the level `debug`: a later line counts it.
    Debug,
}

/// Writes a line about one message.
type Write = Box<dyn Fn(MessageLine) + Send + Sync>;

/// The causes of one kind of line. `const`, so it may be a `static`.
#[derive(Default)]
pub struct MessageLog(Mutex<Vec<Cause>>);

struct Cause {
    /// Hash of the cause; `None` for those beyond [`MAX_CAUSES`].
    key: Option<u64>,
    in_full: u32,
    /// When a line was shown.
    shown: Instant,
    occurred: Instant,
    /// Lines since `shown` that were not shown.
    unshown: u64,
    /// The last of these.
    last: Option<Write>,
}

impl MessageLog {
    /// Without causes.
    pub const fn new() -> Self {
        MessageLog(Mutex::new(Vec::new()))
    }

    /// Writes a line about a message: in full, or at the level `debug` if it is to be counted.
    ///
    /// The cause has few values, such as a consumer and a failure's code; never an order id or an error's text.
    pub fn write(&self, cause: impl Hash, line: impl Fn(MessageLine) + Send + Sync + 'static) {
        let key = BuildHasherDefault::<DefaultHasher>::default().hash_one(cause);
        self.write_at(key, Box::new(line), Instant::now());
    }

    fn write_at(&self, key: u64, line: Write, now: Instant) {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cause = find(&mut causes, key, now);
        if now.duration_since(cause.occurred) >= FORGET_AFTER {
            cause.in_full = 0;
        }
        cause.occurred = now;
        if cause.in_full < IN_FULL {
            cause.in_full += 1;
            cause.shown = now;
            drop(causes);
            return line(MessageLine::Shown { repeated: None });
        }
        line(MessageLine::Debug);
        cause.unshown += 1;
        cause.last = Some(line);
    }

    /// Writes a line for each cause that has lines which are not counted yet, at most once a minute for each cause.
    pub fn write_counts(&self) {
        self.write_counts_at(Instant::now(), INTERVAL);
    }

    /// Writes all counts, because no more lines are to come.
    pub fn write_all_counts(&self) {
        self.write_counts_at(Instant::now(), Duration::ZERO);
    }

    fn write_counts_at(&self, now: Instant, interval: Duration) {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for cause in causes.iter_mut().filter(|cause| now.duration_since(cause.shown) >= interval) {
            if let Some(line) = cause.last.take() {
                line(MessageLine::Shown { repeated: Some(std::mem::take(&mut cause.unshown)) });
                cause.shown = now;
            }
        }
    }
}

/// The entry of a cause; a new one if there is room for it.
fn find(causes: &mut Vec<Cause>, key: u64, now: Instant) -> &mut Cause {
    let is_known = |causes: &[Cause], key| causes.iter().position(|cause| cause.key == key);
    if is_known(causes, Some(key)).is_none() {
        causes.retain(|cause| cause.last.is_some() || now.duration_since(cause.occurred) < FORGET_AFTER);
    }
    let key = if is_known(causes, Some(key)).is_some() || causes.len() < MAX_CAUSES { Some(key) } else { None };
    let index = is_known(causes, key).unwrap_or_else(|| {
        causes.push(Cause { key, in_full: 0, shown: now, occurred: now, unshown: 0, last: None });
        causes.len() - 1
    });
    &mut causes[index]
}

impl fmt::Debug for MessageLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageLog").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A log, and the lines that were written, each with the number of its message.
    #[derive(Default)]
    struct Lines {
        log: MessageLog,
        written: Arc<Mutex<Vec<(u64, MessageLine)>>>,
    }

    impl Lines {
        fn write(&self, key: u64, message: u64, now: Instant) {
            let written = Arc::clone(&self.written);
            self.log.write_at(key, Box::new(move |line| written.lock().unwrap().push((message, line))), now);
        }

        /// Takes the lines that were not for `debug`.
        fn shown(&self) -> Vec<(u64, Option<u64>)> {
            let written = self.written.lock().unwrap().split_off(0).into_iter();
            let shown = written.filter_map(|(message, line)| match line {
                MessageLine::Shown { repeated } => Some((message, repeated)),
                MessageLine::Debug => None,
            });
            shown.collect()
        }
    }

    #[test]
    fn three_hundred_failing_messages_are_five_lines_and_one_that_counts_the_others() {
        let (lines, start) = (Lines::default(), Instant::now());
        for message in 1..=300 {
            lines.write(1, message, start);
        }
        assert_eq!(lines.written.lock().unwrap().len(), 300, "each has a line at one of the levels");
        assert_eq!(lines.shown(), (1..=5).map(|message| (message, None)).collect::<Vec<_>>());
        lines.log.write_counts_at(start + INTERVAL / 2, INTERVAL);
        assert_eq!(lines.shown(), []);
        lines.log.write_counts_at(start + INTERVAL, INTERVAL);
        lines.log.write_counts_at(start + 2 * INTERVAL, INTERVAL);
        assert_eq!(lines.shown(), [(300, Some(295))]);
        lines.write(2, 301, start);
        assert_eq!(lines.shown(), [(301, None)], "another cause is shown by itself");
    }

    #[test]
    fn a_cause_that_lasts_is_counted_once_a_minute_and_one_that_returns_is_shown_in_full() {
        let (lines, start) = (Lines::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..=180 {
            lines.write(1, second, at(second));
            lines.log.write_counts_at(at(second), INTERVAL);
        }
        let shown = lines.shown();
        assert_eq!(shown[5..], [(64, Some(60)), (124, Some(60))]);
        lines.log.write_counts_at(at(181), Duration::ZERO);
        assert_eq!(lines.shown(), [(180, Some(56))], "at the end");
        lines.write(1, 999, at(180) + FORGET_AFTER);
        assert_eq!(lines.shown(), [(999, None)]);
    }

    #[test]
    fn causes_that_differ_with_every_message_share_one_count() {
        let (lines, start) = (Lines::default(), Instant::now());
        for message in 0..10_000 {
            lines.write(message, message, start);
        }
        assert_eq!(lines.shown().len(), MAX_CAUSES + IN_FULL as usize);
        lines.log.write_counts_at(start + INTERVAL, INTERVAL);
        let others = 10_000 - MAX_CAUSES as u64 - u64::from(IN_FULL);
        assert_eq!(lines.shown(), [(9_999, Some(others))]);
        lines.write(10_000, 10_000, start + 2 * FORGET_AFTER);
        assert_eq!(lines.log.0.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}
