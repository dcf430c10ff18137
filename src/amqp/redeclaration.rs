//! Requests to declare the topology again, from those who notice that it may be gone to the one task that declares it, and
//! the answers.
//!
//! Owns the shared state of both sides. It declares nothing itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::topology::Object;

/// How long [`Redeclaration::not_found_and_wait`] waits: a declaration that creates queues takes more than two seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most restored objects that are kept until the poller takes them. A topology of the largest configuration has more,
/// but the log lists all.
const MAX_RESTORED: usize = 1000;

/// Handle to the task that declares the topology again; cheap to clone. Nothing happens unless such a task serves it.
#[derive(Debug, Clone, Default)]
pub struct Redeclaration(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    requests: watch::Sender<RequestCounts>,
    answers: watch::Sender<Answer>,
    /// Counts the declarations after which the broker may accept what it refused before.
    repairs: watch::Sender<u64>,
    /// Why the topology could not be declared completely; `None` if it could, or is not to be declared.
    problem: Mutex<Option<String>>,
    /// What has been declared again and not yet taken by the poller.
    restored: Mutex<VecDeque<Object>>,
    /// Whether the whole topology was declared since the poller last asked.
    complete: AtomicBool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RequestCounts {
    /// All requests.
    all: u64,
    /// Of these, the requests because something may be missing.
    missing: u64,
    /// Of these, the requests because the broker said that an exchange or a queue does not exist.
    not_found: u64,
}

/// The answer to all requests up to a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    /// The number of the last request that is answered.
    pub up_to: u64,
    /// Whether the whole topology was declared.
    pub complete: bool,
}

/// What a declaration of the topology has achieved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclarationOutcome {
    /// What did not exist and has been declared.
    pub restored: Vec<Object>,
    /// Why the rest could not be declared; `None` if the whole topology was.
    pub problem: Option<String>,
    /// Whether the broker may accept now what it refused before.
    pub repaired: bool,
}

/// The requests that are pending now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingRequests {
    /// The number of the last one.
    pub last: u64,
    /// Whether one of them was made because something is missing, and not only because a session began.
    pub something_is_missing: bool,
}

impl Redeclaration {
    /// A new session with the broker has begun, which may have lost the topology since the last one.
    pub(super) fn session_began(&self) {
        self.0.requests.send_modify(|counts| counts.all += 1);
    }

    /// An exchange, queue or binding may be missing.
    pub fn request(&self) {
        self.0.requests.send_modify(|counts| {
            counts.all += 1;
            counts.missing += 1;
        });
    }

    /// The broker said that an exchange or a queue does not exist (404), which is answered sooner than
    /// [`Redeclaration::request`].
    pub(super) fn not_found(&self) {
        self.0.requests.send_modify(|counts| {
            counts.all += 1;
            counts.missing += 1;
            counts.not_found += 1;
        });
    }

    /// The topology was declared without a request, by a reload.
    pub fn repaired(&self) {
        self.0.repairs.send_modify(|count| *count += 1);
    }

    /// Counts the declarations after which the broker may accept what it refused before.
    pub(super) fn repairs(&self) -> watch::Receiver<u64> {
        self.0.repairs.subscribe()
    }

    /// Why the topology could not be declared completely the last time; `None` if it could, or is not to be declared.
    pub fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Like [`Redeclaration::not_found`], and waits until it is answered, for a few seconds at most. Returns whether the whole
    /// topology was declared. Cancel-safe.
    pub(super) async fn not_found_and_wait(&self) -> bool {
        if self.0.requests.receiver_count() == 0 {
            return false;
        }
        let mut answers = self.0.answers.subscribe();
        self.not_found();
        let number = self.0.requests.borrow().all;
        let answered = timeout(ANSWER_TIMEOUT, answers.wait_for(|answer| answer.up_to >= number)).await;
        answered.is_ok_and(|answer| answer.is_ok_and(|answer| answer.complete))
    }

    /// The receiving end. Requests made before are not received.
    pub fn serve(&self) -> RedeclarationRequests {
        let requests = self.0.requests.subscribe();
        let seen = *requests.borrow();
        RedeclarationRequests { handle: self.clone(), requests, seen }
    }

    /// The answers to all requests, for those who did not make them.
    pub fn answers(&self) -> watch::Receiver<Answer> {
        self.0.answers.subscribe()
    }

    /// Takes the list of objects that were declared again since the last call.
    pub fn take_restored(&self) -> Vec<Object> {
        self.restored().drain(..).collect()
    }

    /// Whether the whole topology was declared since the last call.
    pub fn take_complete(&self) -> bool {
        self.0.complete.swap(false, Ordering::Relaxed)
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn restored(&self) -> MutexGuard<'_, VecDeque<Object>> {
        self.0.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving end of a [`Redeclaration`].
#[derive(Debug)]
pub struct RedeclarationRequests {
    handle: Redeclaration,
    requests: watch::Receiver<RequestCounts>,
    seen: RequestCounts,
}

impl RedeclarationRequests {
    /// Waits until a request is pending. Cancel-safe.
    pub async fn pending(&mut self) {
        let seen = self.seen.all;
        // The sender is kept by `handle`, so waiting does not fail.
        let _ = self.requests.wait_for(|counts| counts.all > seen).await;
    }

    /// Waits until the broker says again that something does not exist. Cancel-safe.
    pub async fn not_found(&mut self) {
        let seen = self.seen.not_found;
        let _ = self.requests.wait_for(|counts| counts.not_found > seen).await;
    }

    /// Takes all pending requests, to be answered with [`RedeclarationRequests::answer`].
    pub fn take(&mut self) -> PendingRequests {
        let counts = *self.requests.borrow_and_update();
        let something_is_missing = counts.missing > self.seen.missing;
        self.seen = counts;
        PendingRequests { last: counts.all, something_is_missing }
    }

    /// Answers the requests, while nothing is to be declared. So there is no problem with it any more.
    pub fn decline(&self, requests: PendingRequests) {
        self.handle.set_problem(None);
        self.handle.0.answers.send_replace(Answer { up_to: requests.last, complete: false });
    }

    /// Answers the requests.
    pub fn answer(&self, requests: PendingRequests, outcome: DeclarationOutcome) {
        let DeclarationOutcome { restored, problem, repaired } = outcome;
        let complete = problem.is_none();
        self.handle.set_problem(problem);
        let mut kept = self.handle.restored();
        kept.extend(restored);
        let excess = kept.len().saturating_sub(MAX_RESTORED);
        kept.drain(..excess);
        drop(kept);
        self.handle.0.complete.store(complete, Ordering::Relaxed);
        self.handle.0.answers.send_replace(Answer { up_to: requests.last, complete });
        if repaired {
            self.handle.repaired();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_no_task_serves_is_answered_at_once() {
        assert!(!Redeclaration::default().not_found_and_wait().await);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_made_together_are_answered_together() {
        let handle = Redeclaration::default();
        handle.request();
        let mut requests = handle.serve();
        handle.session_began();
        let (first, second) = (handle.clone(), handle.clone());
        let waiting =
            tokio::spawn(async move { (first.not_found_and_wait().await, second.not_found_and_wait().await) });
        for something_is_missing in [true, true] {
            requests.pending().await;
            tokio::task::yield_now().await;
            let pending = requests.take();
            assert_eq!(pending.something_is_missing, something_is_missing);
            let restored = vec![Object::Queue("q".into())];
            requests.answer(pending, DeclarationOutcome { restored, ..DeclarationOutcome::default() });
        }
        assert_eq!(waiting.await.unwrap(), (true, true));
        assert_eq!(handle.take_restored().len(), 2);
        handle.session_began();
        requests.pending().await;
        assert!(!requests.take().something_is_missing);
    }

    #[test]
    fn a_problem_of_the_declaration_is_over_once_nothing_is_to_be_declared() {
        let handle = Redeclaration::default();
        let mut requests = handle.serve();
        let problem = Some("PRECONDITION_FAILED".to_owned());
        let pending = requests.take();
        requests.answer(pending, DeclarationOutcome { problem: problem.clone(), ..DeclarationOutcome::default() });
        assert_eq!(handle.problem(), problem);
        let pending = requests.take();
        requests.decline(pending);
        assert_eq!(handle.problem(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_not_waited_for_without_end() {
        let handle = Redeclaration::default();
        let _requests = handle.serve();
        assert!(!handle.not_found_and_wait().await);
    }
}
