//! Supervision: a task that dies is restarted after a back-off, unless it dies too often.
//!
//! Terms and rules are OTP's: the restart intensity is a number of restarts within a period. It never hides a death: each
//! is logged, and exceeding the intensity is an error for the caller.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use crate::backoff::Backoff;
use crate::chain::chain;
use crate::shutdown::Shutdown;

/// How often a task is restarted, and after which wait.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Restarts allowed within `period`.
    pub intensity: usize,
    /// The period that `intensity` refers to.
    pub period: Duration,
    /// The wait before a restart; it grows with the number of deaths within the period.
    pub backoff: Backoff,
}

impl RestartPolicy {
    /// Ten restarts a minute, 100 ms to 5 s apart.
    pub const DEFAULT: RestartPolicy = RestartPolicy {
        intensity: 10,
        period: Duration::from_secs(60),
        backoff: Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) },
    };
}

/// A task died more often than its restart policy allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {task:?} died {deaths} times within {period:?}")]
pub struct IntensityExceeded {
    /// The task's name.
    pub task: String,
    /// Deaths within the period.
    pub deaths: usize,
    /// The policy's period.
    pub period: Duration,
}

/// Runs a task until it returns `Ok`; restarts it when it panics or returns an error.
///
/// Dropping the future aborts the task. Once a shutdown has begun, a task that dies is not restarted.
///
/// # Errors
/// [`IntensityExceeded`] when the task died too often.
pub async fn supervise<F, Fut, E>(
    name: &str,
    policy: RestartPolicy,
    shutdown: &Shutdown,
    mut on_restart: impl FnMut(),
    mut start: F,
) -> Result<(), IntensityExceeded>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    let mut deaths = VecDeque::new();
    loop {
        match AbortOnDropHandle::new(tokio::spawn(start())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) => warn!(task = name, error = %chain(&failure), "task failed"),
            // The panic hook has logged the location and the text.
            Err(died) if died.is_panic() => error!(task = name, "task panicked"),
            Err(_cancelled) => return Ok(()),
        }
        if shutdown.has_begun() {
            return Ok(());
        }
        let now = Instant::now();
        deaths.push_back(now);
        while deaths.front().is_some_and(|&death| now.duration_since(death) > policy.period) {
            deaths.pop_front();
        }
        if deaths.len() > policy.intensity {
            return Err(IntensityExceeded { task: name.to_owned(), deaths: deaths.len(), period: policy.period });
        }
        let attempt = u32::try_from(deaths.len() - 1).unwrap_or(u32::MAX);
        if !shutdown.sleep(policy.backoff.wait(attempt, fastrand::f64())).await {
            return Ok(());
        }
        on_restart();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Never = Result<(), Infallible>;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_restarted() {
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&starts);
        let mut restarts = 0;
        let shutdown = Shutdown::new();
        let outcome = supervise(
            "t",
            RestartPolicy::DEFAULT,
            &shutdown,
            || restarts += 1,
            move || {
                let start = counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    assert!(start == 2, "dies twice");
                    Never::Ok(())
                }
            },
        );
        assert_eq!(outcome.await, Ok(()));
        assert_eq!((starts.load(Ordering::SeqCst), restarts), (3, 2));
    }

    async fn always_dies(shutdown: &Shutdown) -> Result<(), IntensityExceeded> {
        let start = || async {
            panic!("always");
            #[allow(unreachable_code)]
            Never::Ok(())
        };
        supervise("t", RestartPolicy::DEFAULT, shutdown, || {}, start).await
    }

    #[tokio::test(start_paused = true)]
    async fn dying_too_often_is_an_error() {
        let shutdown = Shutdown::new();
        let exceeded = always_dies(&shutdown).await.unwrap_err();
        assert_eq!(exceeded.deaths, RestartPolicy::DEFAULT.intensity + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn rare_deaths_are_forgiven() {
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&starts);
        let shutdown = Shutdown::new();
        let outcome = supervise(
            "t",
            RestartPolicy::DEFAULT,
            &shutdown,
            || {},
            move || {
                let start = counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    assert!(start == 50, "dies fifty times, two a minute");
                    Never::Ok(())
                }
            },
        );
        assert_eq!(outcome.await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_restarts() {
        let shutdown = Shutdown::new();
        shutdown.begin();
        assert_eq!(always_dies(&shutdown).await, Ok(()));
    }
}
