//! Failed attempts and dead letters. A dead letter changes an order only if it is that order by its content.

use super::{Tables, insert};
use crate::domain::CANCELLATION_SUFFIX;
use crate::ledger::entry::{NewAttempt, NewDeadLetter, Recorded};
use crate::ledger::step_runs::RunKey;

impl Tables {
    fn add_attempt(&mut self, attempt: NewAttempt) -> Recorded {
        let NewAttempt { identity, consumer, retry_count, .. } = &attempt;
        let key = (identity.clone(), consumer.clone(), attempt.replay_key().to_owned(), *retry_count);
        match self.attempts.get_mut(&key) {
            Some(stored)
                if (stored.failed_at, &stored.code) == (attempt.failed_at, &attempt.code)
                    && stored.delay != attempt.delay =>
            {
                stored.delay = attempt.delay;
                Recorded::New
            }
            _ => insert(&mut self.attempts, key, attempt),
        }
    }

    pub(super) fn add_retried(&mut self, attempt: NewAttempt) -> Recorded {
        let is_same = |letter: &NewDeadLetter| {
            let NewAttempt { identity, consumer, retry_count, failed_at, .. } = &letter.attempt;
            (identity, consumer) == (&attempt.identity, &attempt.consumer)
                && (*retry_count, *failed_at) == (attempt.retry_count, attempt.failed_at)
                && (&letter.attempt.code, &letter.attempt.replay) == (&attempt.code, &attempt.replay)
        };
        let recorded = self.add_attempt(attempt.clone());
        if recorded == Recorded::New {
            self.dead_letters.retain(|_, letter| !is_same(letter));
        }
        recorded
    }

    pub(super) fn add_dead_letter(&mut self, mut letter: NewDeadLetter) -> Recorded {
        if let Some(order) = letter.order.take() {
            if self.cancellations.contains_key(&order.id) {
                self.prevent(*order);
                return Recorded::Cancelled;
            }
            if let Some(stored) = self.orders.get_mut(&order.id).filter(|stored| stored.is(&order)) {
                if stored.cancellation.is_some() {
                    return Recorded::Cancelled;
                }
                stored.has_failed = true;
            }
        }
        self.add_attempt(letter.attempt.clone());
        let key = (letter.attempt.identity.clone(), letter.attempt.consumer.clone());
        let decision = |letter: &NewDeadLetter| (letter.reason, letter.attempt.code.clone());
        let is_newer = |old: &NewDeadLetter| {
            letter.attempt.failed_at > old.attempt.failed_at
                || letter.attempt.failed_at == old.attempt.failed_at
                    && (letter.attempt.replay != old.attempt.replay
                        || letter.attempt.retry_count == old.attempt.retry_count && decision(&letter) != decision(old))
        };
        if self.dead_letters.get(&key).is_some_and(|old| !is_newer(old)) {
            return Recorded::Duplicate;
        }
        self.dead_letters.insert(key, letter);
        Recorded::New
    }

    /// All is undone, so no dead letter says any more that something is left to undo.
    pub(super) fn dead_letters_undone(&mut self, key: &RunKey) {
        let Some((failure, queue)) = self.runs.failure(key) else { return };
        let identities = [key.identity.clone(), [&*key.identity, CANCELLATION_SUFFIX].concat()];
        for ((identity, consumer), letter) in &mut self.dead_letters {
            let is_meant = identities.contains(identity)
                && (key.scope.is_empty() || *consumer == key.scope || letter.origin_queue.as_deref() == Some(queue));
            if is_meant && letter.reason == "undo_failed" {
                letter.reason = "permanent";
                letter.attempt.code.clone_from(&failure.code);
                letter.attempt.reason.clone_from(&failure.reason);
            }
        }
    }
}
