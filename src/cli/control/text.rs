//! The result of `orderd reload`, `pause` and `resume` as text.

use crate::escape::escaped;
use std::io::{self, Write};

use crate::control::{ConfigChange, Effect, PauseReport, ReloadOutcome, ReloadReport};

/// Writes the result of a reload: the outcome in one line, then one line for each changed key, problem and note.
pub(super) fn write_reload(report: &ReloadReport, out: &mut dyn Write) -> io::Result<()> {
    let generation = report.generation;
    match report.outcome {
        ReloadOutcome::Unchanged if report.problems.is_empty() => {
            writeln!(out, "configuration unchanged (generation {generation})")?;
        }
        ReloadOutcome::Unchanged => {
            writeln!(out, "configuration unchanged (generation {generation}), but the broker does not match it")?;
        }
        ReloadOutcome::Applied => writeln!(out, "reload applied: all changes are active (generation {generation})")?,
        ReloadOutcome::PartlyApplied => {
            writeln!(out, "reload partly applied: not everything is active (generation {generation})")?;
        }
        ReloadOutcome::Rejected => {
            writeln!(out, "reload rejected, configuration unchanged (generation {generation})")?;
        }
    }
    for change in &report.changes {
        writeln!(out, "  {}", escaped(&change_line(change, report.outcome)))?;
    }
    for problem in &report.problems {
        writeln!(out, "problem: {}", escaped(problem))?;
    }
    if report.temporary {
        writeln!(out, "the reason is temporary: try again later")?;
    }
    report.notes.iter().try_for_each(|note| writeln!(out, "note: {}", escaped(note)))
}

/// A changed key, its values, and when the change becomes active.
fn change_line(change: &ConfigChange, outcome: ReloadOutcome) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    let state = match (outcome, change.effect) {
        (ReloadOutcome::Rejected, _) => "not applied",
        (_, Effect::Live) => "active",
        (_, Effect::Restart) => "needs a restart",
        (_, Effect::Broker) => "needs a change at the broker",
    };
    format!("{}: {} → {}, {state}", change.key, value(&change.from), value(&change.to))
}

/// Writes the result of a pause or a resume.
pub(super) fn write_pause(report: &PauseReport, out: &mut dyn Write) -> io::Result<()> {
    let name = escaped(&report.consumer);
    match (report.paused, report.changed) {
        (true, true) => writeln!(
            out,
            "consumer {name} paused: it finishes its deliveries in flight and takes no more, even after a restart, until \
             `orderd resume {name}`"
        ),
        (true, false) => writeln!(out, "consumer {name} was already paused; resume it with `orderd resume {name}`"),
        (false, true) => writeln!(out, "consumer {name} resumed"),
        (false, false) => writeln!(out, "consumer {name} was not paused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let temporary = outcome == ReloadOutcome::Rejected;
        let applied_after_ms = None;
        let report = ReloadReport { outcome, generation: 3, changes, applied_after_ms, problems, temporary, notes };
        let mut out = Vec::new();
        write_reload(&report, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_reload_has_a_line_for_each_changed_key() {
        let expected = "\
reload partly applied: not everything is active (generation 3)
  broker.password: [redacted] → [redacted], needs a restart
  consumers.order.workers: 4 → 64, active
  queues.a.bindings: [\"a\", \"b\"] → [\"a\"], needs a change at the broker
  queues.b\\u{1b}.bindings: none → [\"b\"], active
problem: line 3\\nis wrong
note: unbind it
";
        assert_eq!(text(ReloadOutcome::PartlyApplied), expected);
        let rejected = text(ReloadOutcome::Rejected);
        assert!(rejected.starts_with("reload rejected, configuration unchanged"), "{rejected}");
        assert_eq!(rejected.matches(", not applied\n").count(), 4, "{rejected}");
        assert!(rejected.contains("problem: line 3\\nis wrong\nthe reason is temporary"), "{rejected}");
        assert!(!rejected.contains(", active\n"), "{rejected}");
    }
}
