//! What a replay does next. Pure.

use crate::ledger::{LetterProgress, Replay};

/// The sizes of a canary: so many letters have been published, and have their outcome, before more are.
const CANARY: [u64; 2] = [1, 11];
/// The most letters that are published and have no outcome yet.
const MAX_IN_FLIGHT: u64 = 1_000;
/// As many may fail at least before a replay stops.
const MIN_FAILURES: u64 = 10;

/// What a running replay does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Those that may have been published before a crash are published again.
    Again,
    /// Up to so many further letters may be published.
    Publish(u64),
    /// Outcomes are awaited.
    Wait,
    /// Too many have failed again.
    Stop,
    /// Nothing is left to do.
    Finish,
}

/// Decides.
pub(super) fn next_step(replay: &Replay) -> Step {
    let (published, in_flight) = (replay.published(), replay.in_flight());
    let is_canary = replay.options.canary && published <= CANARY[1];
    // Of a canary, all outcomes are awaited.
    if has_failed(replay) && !(is_canary && in_flight > 0 && replay.count(LetterProgress::Publishing) == 0) {
        return Step::Stop;
    }
    if replay.count(LetterProgress::Publishing) > 0 {
        return Step::Again;
    }
    if replay.count(LetterProgress::Selected) == 0 {
        return if in_flight == 0 { Step::Finish } else { Step::Wait };
    }
    let room = match CANARY.into_iter().find(|size| published < *size) {
        Some(size) if replay.options.canary => {
            if in_flight > 0 {
                0
            } else {
                size - published
            }
        }
        None if is_canary && in_flight > 0 => 0,
        None if replay.options.canary => may_fail(replay).saturating_sub(in_flight),
        Some(_) | None => MAX_IN_FLIGHT.saturating_sub(in_flight),
    };
    if room == 0 { Step::Wait } else { Step::Publish(room) }
}

/// How many of those in flight may fail without the share becoming too large; a few in any case.
fn may_fail(replay: &Replay) -> u64 {
    use LetterProgress::{Cancelled, FailedAgain, Processed, Undone};
    let failed = replay.count(FailedAgain);
    let ended: u64 = [Processed, Cancelled, Undone, FailedAgain].into_iter().map(|state| replay.count(state)).sum();
    #[expect(clippy::cast_precision_loss, reason = "far fewer letters than an f64 can count")]
    let share = ended as f64 * replay.options.stop_at;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is not negative")]
    let allowed = share as u64;
    allowed.max(MIN_FAILURES).saturating_sub(failed).min(MAX_IN_FLIGHT)
}

/// Whether the share of the latest outcomes that are failures is too large. One of which nothing was seen in time counts as failed.
fn has_failed(replay: &Replay) -> bool {
    let unseen = replay.count(LetterProgress::Unknown) + replay.overdue;
    let (failed, ended) = (replay.recent_failed + unseen, replay.recent + unseen);
    #[expect(clippy::cast_precision_loss, reason = "far fewer letters than an f64 can count")]
    let share = failed as f64 / ended.max(1) as f64;
    failed > 0 && share > replay.options.stop_at
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::ledger::LetterProgress::{FailedAgain, Processed, Published, Publishing, Retrying, Selected, Unknown};
    use crate::ledger::{ReplayOptions, ReplayState};

    fn replay(letters: &[(LetterProgress, u64)]) -> Replay {
        let letters: BTreeMap<LetterProgress, u64> = letters.iter().copied().collect();
        let count = |progress| letters.get(&progress).copied().unwrap_or(0);
        Replay {
            id: 1,
            state: ReplayState::Running,
            by: "ada".to_owned(),
            options: ReplayOptions::default(),
            began_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            end_reason: None,
            skipped: BTreeMap::new(),
            overdue: 0,
            recent: (count(Processed) + count(FailedAgain)).min(100),
            recent_failed: count(FailedAgain).min(100),
            letters,
        }
    }

    fn step(letters: &[(LetterProgress, u64)]) -> Step {
        next_step(&replay(letters))
    }

    #[test]
    fn one_letter_then_ten_are_published_and_awaited_before_the_rest() {
        assert_eq!(step(&[(Selected, 10_000)]), Step::Publish(1));
        assert_eq!(step(&[(Selected, 9_999), (Published, 1)]), Step::Wait);
        assert_eq!(step(&[(Selected, 9_999), (Retrying, 1)]), Step::Wait);
        assert_eq!(step(&[(Selected, 9_999), (Processed, 1)]), Step::Publish(10));
        assert_eq!(step(&[(Selected, 9_989), (Processed, 4), (Published, 7)]), Step::Wait);
        // Then no more are in flight than may fail.
        assert_eq!(step(&[(Selected, 9_989), (Processed, 11)]), Step::Publish(10));
        assert_eq!(step(&[(Selected, 9_978), (Processed, 14), (Published, 8)]), Step::Publish(2));
        assert_eq!(step(&[(Selected, 5_000), (Processed, 4_600), (Published, 400)]), Step::Publish(60));
        assert_eq!(step(&[(Processed, 10_000)]), Step::Finish);
        assert_eq!(step(&[(Processed, 9_999), (Published, 1)]), Step::Wait);
        let mut all_at_once = replay(&[(Selected, 10_000)]);
        all_at_once.options.canary = false;
        assert_eq!(next_step(&all_at_once), Step::Publish(1_000));
    }

    #[test]
    fn a_replay_whose_cause_is_still_there_stops_after_at_most_ten_failures() {
        assert_eq!(step(&[(Selected, 9_999), (FailedAgain, 1)]), Step::Stop);
        assert_eq!(step(&[(Selected, 9_989), (Processed, 1), (FailedAgain, 9), (Published, 1)]), Step::Wait);
        assert_eq!(step(&[(Selected, 9_989), (Processed, 1), (FailedAgain, 10)]), Step::Stop);
        assert_eq!(
            step(&[(Selected, 9_989), (Processed, 10), (FailedAgain, 1)]),
            Step::Publish(9),
            "one in eleven may"
        );
        assert_eq!(step(&[(Selected, 9_979), (Processed, 11), (FailedAgain, 2), (Published, 8)]), Step::Stop);
        assert_eq!(step(&[(Selected, 9_999), (Unknown, 1)]), Step::Stop, "nothing was seen of it");
        let mut broken_again = replay(&[(Selected, 1_000), (Processed, 5_000), (FailedAgain, 11)]);
        (broken_again.recent, broken_again.recent_failed) = (100, 11);
        assert_eq!(next_step(&broken_again), Step::Stop, "the latest outcomes count");
        let mut overdue = replay(&[(Selected, 9_999), (Published, 1)]);
        overdue.overdue = 1;
        assert_eq!(next_step(&overdue), Step::Stop);
        overdue.options.stop_at = 1.0;
        assert_eq!(next_step(&overdue), Step::Publish(10), "it does not wait for ever");
    }

    #[test]
    fn what_a_crash_left_half_published_comes_first_unless_too_many_have_failed() {
        assert_eq!(step(&[(Selected, 9_999), (Publishing, 3)]), Step::Again);
        assert_eq!(step(&[(Selected, 9_999), (Publishing, 3), (FailedAgain, 5)]), Step::Stop);
    }
}
