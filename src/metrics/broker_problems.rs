//! What the broker does to one consumer that keeps it from making progress: publications that it refuses, and acknowledgement
//! timeouts. It never decides anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::CONFIRMS_OVERDUE;

/// How long a passed acknowledgement timeout is shown, at least. It is shown for twice the timeout if that is longer: until then a
/// delivery that was held for too long is held for too long again.
const ACK_TIMEOUT_SHOWN: Duration = Duration::from_secs(600);

/// The problems of one consumer; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct BrokerProblems(Arc<Mutex<Problems>>);

#[derive(Debug, Default)]
struct Problems {
    refusal: Option<Refusal>,
    ack_timeout: Option<AckTimeout>,
    ack_timeouts: u64,
}

/// Publications that the broker refuses now.
#[derive(Debug)]
struct Refusal {
    /// How many callers wait.
    waiting: u64,
    /// Since when at least one has been waiting.
    since: Instant,
    error: String,
}

/// The broker's acknowledgement timeout (`consumer_timeout`) passed for a delivery.
#[derive(Debug)]
struct AckTimeout {
    limit: Duration,
    at: Instant,
    problem: String,
}

/// The problems at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BrokerProblemReading {
    /// Why the broker does not accept what the consumer publishes; `None` if nothing has been refused for some seconds.
    pub publish_error: Option<String>,
    /// Subscriptions that the broker ended because a delivery was not settled within its `consumer_timeout`.
    pub ack_timeouts: u64,
    /// What to do about the last of them; `None` if it was long ago.
    pub ack_timeout: Option<String>,
}

impl BrokerProblems {
    fn lock(&self) -> MutexGuard<'_, Problems> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a caller whose publication the broker refuses, until the guard is dropped.
    pub fn refused(&self) -> RefusalGuard {
        let new = Refusal { waiting: 0, since: Instant::now(), error: String::new() };
        self.lock().refusal.get_or_insert(new).waiting += 1;
        RefusalGuard(self.clone())
    }

    /// Counts a subscription that the broker ended because a delivery was not settled within its acknowledgement timeout.
    /// Returns a description with what to do.
    pub fn ack_timed_out(&self, queue: &str, limit: Duration, timeout: Duration) -> String {
        let problem = format!(
            "the broker's consumer_timeout of {limit:?} passed for a delivery from queue {queue:?}; the handler's timeout is \
             {timeout:?}: set a shorter one, or a longer consumer_timeout on the broker"
        );
        let mut problems = self.lock();
        problems.ack_timeouts += 1;
        problems.ack_timeout = Some(AckTimeout { limit, at: Instant::now(), problem: problem.clone() });
        problem
    }

    /// The broker's acknowledgement timeout, if it has passed for a delivery of this consumer.
    pub fn ack_timeout(&self) -> Option<Duration> {
        self.lock().ack_timeout.as_ref().map(|timeout| timeout.limit)
    }

    /// The problems now.
    pub fn read(&self) -> BrokerProblemReading {
        let problems = self.lock();
        let refusal = problems.refusal.as_ref().filter(|refusal| refusal.since.elapsed() >= CONFIRMS_OVERDUE);
        let is_recent = |timeout: &&AckTimeout| timeout.at.elapsed() < ACK_TIMEOUT_SHOWN.max(timeout.limit * 2);
        BrokerProblemReading {
            publish_error: refusal.map(|Refusal { waiting, since, error }| {
                format!("{waiting} deliveries wait, for {} s so far: {error}", since.elapsed().as_secs())
            }),
            ack_timeouts: problems.ack_timeouts,
            ack_timeout: problems.ack_timeout.as_ref().filter(is_recent).map(|timeout| timeout.problem.clone()),
        }
    }
}

/// Counts one caller whose publication is refused, until it is dropped.
#[derive(Debug)]
pub(crate) struct RefusalGuard(BrokerProblems);

impl RefusalGuard {
    /// How many callers wait, this one included.
    pub fn waiting(&self) -> u64 {
        self.0.lock().refusal.as_ref().map_or(1, |refusal| refusal.waiting)
    }

    /// The broker refused again.
    pub fn set_error(&self, error: String) {
        if let Some(refusal) = &mut self.0.lock().refusal {
            refusal.error = error;
        }
    }
}

impl Drop for RefusalGuard {
    fn drop(&mut self) {
        let refusal = &mut self.0.lock().refusal;
        if let Some(Refusal { waiting, .. }) = refusal {
            *waiting -= 1;
            if *waiting == 0 {
                *refusal = None;
            }
        }
    }
}
