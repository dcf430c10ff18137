//! A handler's deadline, which is suspended while the handler waits for the ledger or an event file: an outage is never the
//! message's failure.
//!
//! Knows nothing of handlers or the ledger.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// The deadline of one attempt.
#[derive(Debug)]
pub(super) struct Deadline(Mutex<Clock>);

#[derive(Debug)]
struct Clock {
    at: Instant,
    /// Waits that suspend the deadline now, and when the first of them began.
    waits: usize,
    suspended_at: Instant,
}

impl Deadline {
    pub fn after(limit: Duration) -> Self {
        let now = Instant::now();
        Deadline(Mutex::new(Clock { at: now + limit, waits: 0, suspended_at: now }))
    }

    /// Runs the work until the deadline; `None` if that passed first. Only the work itself may suspend the deadline.
    pub async fn limit<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut timer = pin!(tokio::time::sleep_until(self.clock().at));
        poll_fn(|context| {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(Some(result));
            }
            // Only the work ends a suspension, and then this is polled again.
            let Some(at) = self.passes_at() else { return Poll::Pending };
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            timer.as_mut().poll(context).map(|()| None)
        })
        .await
    }

    /// Suspends the deadline until the result is dropped.
    pub fn suspend(&self) -> SuspendedDeadline<'_> {
        let mut clock = self.clock();
        if clock.waits == 0 {
            clock.suspended_at = Instant::now();
        }
        clock.waits += 1;
        drop(clock);
        SuspendedDeadline(self)
    }

    fn passes_at(&self) -> Option<Instant> {
        let clock = self.clock();
        (clock.waits == 0).then_some(clock.at)
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that does not count toward the deadline. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "the deadline is suspended only until this is dropped"]
pub struct SuspendedDeadline<'a>(&'a Deadline);

impl Drop for SuspendedDeadline<'_> {
    fn drop(&mut self) {
        let mut clock = self.0.clock();
        clock.waits -= 1;
        if clock.waits == 0 {
            let suspended = clock.suspended_at.elapsed();
            clock.at += suspended;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn suspended_time_does_not_count_and_the_rest_does() {
        let deadline = Deadline::after(10 * SECOND);
        let work = async {
            tokio::time::sleep(6 * SECOND).await;
            let suspended = deadline.suspend();
            tokio::time::sleep(60 * SECOND).await;
            drop(suspended);
            tokio::time::sleep(3 * SECOND).await;
        };
        assert_eq!(deadline.limit(work).await, Some(()));
        let begun = Instant::now();
        let deadline = Deadline::after(10 * SECOND);
        let work = async {
            let suspended = deadline.suspend();
            tokio::time::sleep(60 * SECOND).await;
            drop(suspended);
            std::future::pending::<()>().await;
        };
        assert_eq!(deadline.limit(work).await, None);
        assert_eq!(begun.elapsed().as_secs(), 70);
    }
}
