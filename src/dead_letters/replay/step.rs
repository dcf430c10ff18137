//! What a replay does next. Pure.

use crate::ledger::{LetterProgress, Replay};

/// The sizes of a canary: so many letters have been published, and have their outcome, before more are.
const CANARY: [u64; 2] = [1, 11];
/// The most letters that are published and have no outcome yet.
const MAX_IN_FLIGHT: u64 = 1_000;
/// As many at least after the canary.
const MIN_IN_FLIGHT: u64 = 10;

/// What a running replay does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Up to so many letters may be published.
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
    // Published before a crash, or not: the same again.
    let again = replay.count(LetterProgress::Publishing);
    if again > 0 {
        return Step::Publish(again);
    }
    let (published, in_flight) = (replay.published(), replay.in_flight());
    if has_failed(replay, published) {
        return Step::Stop;
    }
    if replay.count(LetterProgress::Selected) == 0 {
        return if in_flight == 0 { Step::Finish } else { Step::Wait };
    }
    let room = match CANARY.into_iter().find(|size| published < *size) {
        Some(size) if replay.options.canary => match published {
            0 => size,
            _ if in_flight > 0 => 0,
            _ => size - published,
        },
        // What has just passed the canary is awaited too.
        None if replay.options.canary && published == CANARY[1] && in_flight > 0 => 0,
        None if replay.options.canary => {
            let succeeded = replay.count(LetterProgress::Processed) + replay.count(LetterProgress::Cancelled);
            succeeded.clamp(MIN_IN_FLIGHT, MAX_IN_FLIGHT).saturating_sub(in_flight)
        }
        Some(_) | None => MAX_IN_FLIGHT.saturating_sub(in_flight),
    };
    if room == 0 { Step::Wait } else { Step::Publish(room) }
}

/// Whether the share that has failed again is too large. One of which nothing was seen in time counts as failed.
fn has_failed(replay: &Replay, published: u64) -> bool {
    let failed = replay.count(LetterProgress::FailedAgain) + replay.count(LetterProgress::Unknown) + replay.overdue;
    #[expect(clippy::cast_precision_loss, reason = "far fewer letters than an f64 can count")]
    let share = failed as f64 / published.max(1) as f64;
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
        Replay {
            id: 1,
            state: ReplayState::Running,
            by: "ada".to_owned(),
            options: ReplayOptions::default(),
            began_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            end_reason: None,
            letters: letters.iter().copied().collect(),
            skipped: BTreeMap::new(),
            overdue: 0,
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
        assert_eq!(step(&[(Selected, 9_989), (Processed, 11)]), Step::Publish(11));
        // Then no more are in flight than have succeeded.
        assert_eq!(step(&[(Selected, 9_978), (Processed, 12), (Published, 10)]), Step::Publish(2));
        assert_eq!(step(&[(Selected, 5_000), (Processed, 4_000), (Published, 1_000)]), Step::Wait);
        assert_eq!(step(&[(Processed, 10_000)]), Step::Finish);
        assert_eq!(step(&[(Processed, 9_999), (Published, 1)]), Step::Wait);
        let mut all_at_once = replay(&[(Selected, 10_000)]);
        all_at_once.options.canary = false;
        assert_eq!(next_step(&all_at_once), Step::Publish(1_000));
    }

    #[test]
    fn a_replay_whose_cause_is_still_there_stops_after_at_most_ten_failures() {
        assert_eq!(step(&[(Selected, 9_999), (FailedAgain, 1)]), Step::Stop);
        assert_eq!(step(&[(Selected, 9_989), (Processed, 1), (FailedAgain, 10)]), Step::Stop);
        assert_eq!(
            step(&[(Selected, 9_989), (Processed, 10), (FailedAgain, 1)]),
            Step::Publish(10),
            "one in eleven may"
        );
        assert_eq!(step(&[(Selected, 9_989), (Processed, 9), (FailedAgain, 2)]), Step::Stop);
        assert_eq!(step(&[(Selected, 9_999), (Unknown, 1)]), Step::Stop, "nothing was seen of it");
        let mut overdue = replay(&[(Selected, 9_999), (Published, 1)]);
        overdue.overdue = 1;
        assert_eq!(next_step(&overdue), Step::Stop);
        overdue.options.stop_at = 1.0;
        assert_eq!(next_step(&overdue), Step::Publish(10), "it does not wait for ever");
    }

    #[test]
    fn what_a_crash_left_half_published_comes_first() {
        assert_eq!(step(&[(Selected, 9_999), (Publishing, 3), (FailedAgain, 5)]), Step::Publish(3));
    }
}
