//! Texts about replays, and the exit code for how one has ended.

use std::io::{self, Write};

use super::plan_text::{numbers, reason_text};
use crate::cli::Exit;
use crate::cli::outcome_text::outcome_text;
use crate::cli::text::counted;
use crate::dead_letters::ReplayReport;
use crate::escape::escaped;
use crate::ledger::{LetterProgress, Replay, ReplayLetter, ReplayState};

/// Codes of skipped letters that were discarded: what the replay is for was done before.
const DISCARDED: [&str; 2] = ["order_processed", "order_cancelled"];

/// 0 if none failed again, 3 if nothing was there to be replayed. `is_named`: each was asked for by its number, so that one that was left out
/// matters.
pub(super) fn exit(report: &ReplayReport, is_named: bool) -> Exit {
    let replay = &report.replay;
    let failed = [LetterProgress::FailedAgain, LetterProgress::NotDelivered, LetterProgress::Unknown];
    let failed: u64 = failed.into_iter().map(|progress| replay.count(progress)).sum();
    let done = [LetterProgress::Processed, LetterProgress::Cancelled, LetterProgress::Undone];
    let done = done.into_iter().map(|progress| replay.count(progress)).sum::<u64>() + discarded(replay);
    match (failed, &replay.end_reason) {
        (0, None) if done == 0 => Exit::Nothing,
        (0, None) if is_named && replay.count(LetterProgress::Skipped) > discarded(replay) => Exit::Refused,
        (0, None) => Exit::Done,
        _ => Exit::Refused,
    }
}

fn discarded(replay: &Replay) -> u64 {
    DISCARDED.iter().filter_map(|code| replay.skipped.get(*code)).sum()
}

/// One line.
pub(super) fn summary(report: &ReplayReport) -> String {
    let replay = &report.replay;
    let id = replay.id;
    // What is published has its outcome later.
    let state = match replay.state {
        ReplayState::Stopped if replay.in_flight() > 0 => "stopped publishing",
        ReplayState::Selecting
        | ReplayState::Running
        | ReplayState::Stopping
        | ReplayState::Finished
        | ReplayState::Stopped => replay.state.as_str(),
    };
    let waits = report.waiting.as_ref().map_or_else(String::new, |reason| format!("; waits: {}", escaped(reason)));
    let counts = counts(replay);
    if !counts.is_empty() {
        return format!("replay {id} {state}: {}{waits}", counts.join(", "));
    }
    match replay.state {
        ReplayState::Selecting => format!("replay {id}: selecting dead letters{waits}"),
        ReplayState::Running | ReplayState::Stopping => format!("replay {id} {state}: no dead letters{waits}"),
        // Who started it has seen some: another replay has taken them, or they were held or discarded.
        ReplayState::Finished | ReplayState::Stopped => {
            format!("replay {id} {state}: none of the dead letters was open any more{waits}")
        }
    }
}

fn counts(replay: &Replay) -> Vec<String> {
    use LetterProgress::{
        Cancelled, FailedAgain, NotDelivered, Processed, Published, Publishing, Retrying, Returned, Selected, Skipped,
        Undone, Unknown,
    };
    let discarded = discarded(replay);
    let count = |progress| (replay.count(progress), outcome_text(progress));
    let counts = [
        count(Processed),
        count(NotDelivered),
        count(Cancelled),
        count(Undone),
        count(FailedAgain),
        (replay.count(Publishing) + replay.count(Published), outcome_text(Published)),
        count(Retrying),
        count(Unknown),
        count(Selected),
        (discarded, "discarded"),
        (replay.count(Skipped).saturating_sub(discarded), outcome_text(Skipped)),
        count(Returned),
    ];
    counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
}

/// How a replay has ended, or how far it is.
pub(super) fn write_report(report: &ReplayReport, out: &mut dyn Write) -> io::Result<()> {
    let replay = &report.replay;
    writeln!(out, "{}", summary(report))?;
    for (reason, letters) in &replay.skipped {
        let named: Vec<i64> = report
            .not_replayed
            .iter()
            .filter(|letter| letter.code.as_ref() == Some(reason))
            .map(|letter| letter.id)
            .collect();
        writeln!(out, "  {letters} {}: {}", reason_text(reason, *letters, &[]), numbers(&named, *letters))?;
    }
    for letter in &report.failed_again {
        write_letter(letter, out)?;
    }
    let more = replay.count(LetterProgress::FailedAgain).saturating_sub(report.failed_again.len() as u64);
    if more > 0 {
        writeln!(out, "  and {more} more failed again: orderd dead-letters replays --letters {}", replay.id)?;
    }
    let returned = replay.count(LetterProgress::Returned);
    let rest = if returned > 0 { format!("; {} open again", counted_are(returned)) } else { String::new() };
    match replay.end_reason.as_deref() {
        Some("too_many_failed") => {
            writeln!(out, "  stopped, because more than {} % failed again{rest}", replay.options.stop_at)?;
        }
        Some("requested") => {
            let by = replay.stopped_by.as_deref().unwrap_or("an operator");
            writeln!(out, "  stopped by {}{rest}", escaped(by))?;
        }
        Some("refused") => {
            let detail = replay.end_detail.as_deref().unwrap_or("without a reason");
            writeln!(out, "  stopped, because the broker refused what was published: {}{rest}", escaped(detail))?;
        }
        Some(reason) => writeln!(out, "  stopped: {}{rest}", escaped(reason))?,
        None => {}
    }
    let in_flight = replay.in_flight();
    if in_flight > 0 && replay.end_reason.is_some() {
        let (are, stay) = if in_flight == 1 { ("is", "it stays") } else { ("are", "they stay") };
        writeln!(
            out,
            "  {} published before that {are} still being processed, and {stay} in the state replaying until the outcome is known: orderd \
             dead-letters replays {}",
            counted(in_flight, "dead letter"),
            replay.id
        )?;
    }
    Ok(())
}

fn counted_are(letters: u64) -> String {
    let verb = if letters == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(letters, "dead letter"))
}

/// What has become of one letter.
fn write_letter(letter: &ReplayLetter, out: &mut dyn Write) -> io::Result<()> {
    let outcome = outcome_text(letter.progress);
    let code = letter.code.as_deref().map_or_else(String::new, |code| format!(": {}", escaped(code)));
    let became = letter.came_back_as.map_or_else(String::new, |id| format!(", now dead letter {id}"));
    writeln!(out, "  dead letter {} {outcome}{code}{became}", letter.id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::ledger::ReplayOptions;

    fn report(state: ReplayState, letters: &[(LetterProgress, u64)], skipped: &[(&str, u64)]) -> ReplayReport {
        let replay = Replay {
            id: 3,
            state,
            by: "ada".to_owned(),
            options: ReplayOptions::default(),
            began_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            end_reason: None,
            end_detail: None,
            groups: Vec::new(),
            slow: 0,
            stopped_by: None,
            letters: letters.iter().copied().collect::<BTreeMap<_, _>>(),
            skipped: skipped.iter().map(|(code, letters)| ((*code).to_owned(), *letters)).collect(),
            overdue: 0,
            recent: 0,
            recent_failed: 0,
        };
        ReplayReport { replay, waiting: None, failed_again: Vec::new(), not_replayed: Vec::new() }
    }

    #[test]
    fn only_a_replay_that_has_done_something_without_a_failure_exits_with_0() {
        use LetterProgress::{FailedAgain, Processed, Skipped, Unknown};
        let exit_of = |letters: &[_], skipped: &[_]| exit(&report(ReplayState::Finished, letters, skipped), false);
        assert_eq!(exit_of(&[(Processed, 2)], &[]), Exit::Done);
        assert_eq!(exit_of(&[(Processed, 2), (Skipped, 1)], &[("no_queue", 1)]), Exit::Done);
        assert_eq!(exit_of(&[(Skipped, 1)], &[("order_processed", 1)]), Exit::Done, "it is discarded");
        assert_eq!(exit_of(&[(Skipped, 1)], &[("no_queue", 1)]), Exit::Nothing);
        assert_eq!(exit_of(&[], &[]), Exit::Nothing);
        assert_eq!(exit_of(&[(Processed, 2), (FailedAgain, 1)], &[]), Exit::Refused);
        assert_eq!(exit_of(&[(Processed, 2), (Unknown, 1)], &[]), Exit::Refused);
        let mut stopped = report(ReplayState::Stopped, &[(Processed, 2)], &[]);
        stopped.replay.end_reason = Some("requested".to_owned());
        assert_eq!(exit(&stopped, false), Exit::Refused);
    }

    #[test]
    fn a_replay_that_left_out_a_letter_that_was_named_exits_with_1_although_the_others_were_processed() {
        use LetterProgress::{Processed, Skipped};
        let exit_of = |code, is_named| {
            exit(&report(ReplayState::Finished, &[(Processed, 2), (Skipped, 1)], &[(code, 1)]), is_named)
        };
        for code in ["unreadable", "unproven_user", "no_queue", "held"] {
            assert_eq!((exit_of(code, true), exit_of(code, false)), (Exit::Refused, Exit::Done), "{code}");
        }
        assert_eq!(exit_of("order_processed", true), Exit::Done, "what the replay is for was done before");
    }

    #[test]
    fn a_report_says_how_many_more_failed_and_mentions_a_rest_only_if_there_is_one() {
        use LetterProgress::{FailedAgain, Published, Returned};
        let text = |report: &ReplayReport| {
            let mut out = Vec::new();
            write_report(report, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let mut stopped = report(ReplayState::Stopped, &[(FailedAgain, 23), (Published, 1)], &[]);
        stopped.replay.end_reason = Some("too_many_failed".to_owned());
        let failed = |id| ReplayLetter { id, progress: FailedAgain, code: None, came_back_as: Some(100 + id) };
        stopped.failed_again = (1..=20).map(failed).collect();
        let shown = text(&stopped);
        assert!(shown.contains("and 3 more failed again: orderd dead-letters replays --letters 3"), "{shown}");
        assert!(
            shown.starts_with("replay 3 stopped publishing: 23 failed again, 1 waiting for an outcome\n")
                && shown.contains("1 dead letter published before that is still being processed")
                && !shown.contains("open again"),
            "{shown}"
        );
        stopped.replay.letters = BTreeMap::from([(FailedAgain, 1), (Returned, 2)]);
        assert!(text(&stopped).contains("2 dead letters are open again"), "{}", text(&stopped));
    }
}
