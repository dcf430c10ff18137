//! What became of a command, for people.

use std::io::{self, Write};

use super::change_line;
use crate::cli::table::plain;
use crate::control::{PauseReport, ReloadOutcome, ReloadReport};

/// Writes a verdict: what became of it in one line, then one line for each key, note and problem.
pub(super) fn verdict(verdict: &ReloadReport, out: &mut dyn Write) -> io::Result<()> {
    let generation = verdict.generation;
    match verdict.outcome {
        ReloadOutcome::Unchanged => {
            writeln!(out, "unchanged: all of it is in force already (generation {generation})")?
        }
        ReloadOutcome::Applied => writeln!(out, "applied: all of it is in force (generation {generation})")?,
        ReloadOutcome::PartlyApplied => {
            writeln!(out, "partly applied: not all of it is in force (generation {generation})")?
        }
        ReloadOutcome::Rejected => {
            writeln!(out, "rejected: nothing of it is in force, what was before still is (generation {generation})")?;
        }
    }
    for change in &verdict.changes {
        writeln!(out, "  {}", plain(&change_line(change, verdict.outcome)))?;
    }
    for problem in &verdict.problems {
        writeln!(out, "problem: {}", plain(problem))?;
    }
    if verdict.temporary {
        writeln!(out, "that passes by itself; then try again")?;
    }
    verdict.notes.iter().try_for_each(|note| writeln!(out, "note: {}", plain(note)))
}

/// Writes what became of a pause or a resumption.
pub(super) fn intake(intake: &PauseReport, out: &mut dyn Write) -> io::Result<()> {
    let name = plain(&intake.consumer);
    match (intake.paused, intake.changed) {
        (true, true) => writeln!(
            out,
            "consumer {name} is paused: it finishes what it has and takes nothing more, also after a restart, until \
             `orderd resume {name}`"
        ),
        (true, false) => writeln!(out, "consumer {name} was paused already; `orderd resume {name}` ends it"),
        (false, true) => writeln!(out, "consumer {name} takes deliveries again"),
        (false, false) => writeln!(out, "consumer {name} was not paused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{ConfigChange, Effect};

    fn text(outcome: ReloadOutcome) -> String {
        let change = |key: &str, from: Option<&str>, to: Option<&str>, effect| {
            let value = |value: Option<&str>| value.map(str::to_owned);
            ConfigChange { key: key.to_owned(), from: value(from), to: value(to), effect }
        };
        let changes = vec![
            change("broker.password", Some("[redacted]"), Some("[redacted]"), Effect::Restart),
            change("consumers.order.workers", Some("4"), Some("64"), Effect::Live),
            change("queues.a.bindings", Some("[\"a\", \"b\"]"), Some("[\"a\"]"), Effect::Broker),
            change("queues.b\u{1b}.bindings", None, Some("[\"b\"]"), Effect::Live),
        ];
        let (problems, notes) = (vec!["line 3\nis wrong".to_owned()], vec!["unbind it".to_owned()]);
        let mut out = Vec::new();
        let temporary = outcome == ReloadOutcome::Rejected;
        verdict(&ReloadReport { outcome, generation: 3, changes, problems, temporary, notes }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_verdict_has_a_line_for_each_key() {
        let expected = "\
partly applied: not all of it is in force (generation 3)
  broker.password: [redacted] → [redacted], needs a restart
  consumers.order.workers: 4 → 64, in force
  queues.a.bindings: [\"a\", \"b\"] → [\"a\"], in force once the broker is changed too
  queues.b\u{fffd}.bindings: none → [\"b\"], in force
problem: line 3\u{fffd}is wrong
note: unbind it
";
        assert_eq!(text(ReloadOutcome::PartlyApplied), expected);
        let rejected = text(ReloadOutcome::Rejected);
        assert!(rejected.starts_with("rejected: nothing of it is in force"), "{rejected}");
        assert_eq!(rejected.matches(", not applied\n").count(), 4, "{rejected}");
        assert!(rejected.contains("problem: line 3\u{fffd}is wrong\nthat passes by itself"), "{rejected}");
        assert!(!rejected.contains(", in force\n"), "{rejected}");
    }
}
