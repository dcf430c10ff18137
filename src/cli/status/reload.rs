//! The last reload as text: its outcome, and which changes are not active yet.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::cli::text::{age, labelled};
use crate::control::{Effect, ReloadOutcome};
use crate::escape::escaped;
use crate::status::DaemonStatus;

/// Maximum number of problems shown; the rest are only counted.
const MAX_PROBLEMS: usize = 3;

/// Writes the last reload; nothing before the first.
pub(super) fn write(daemon: &DaemonStatus, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let Some(last) = &daemon.last_reload else { return Ok(()) };
    let report = &last.report;
    let outcome = match report.outcome {
        ReloadOutcome::Unchanged => "without changes",
        ReloadOutcome::Applied => "applied",
        ReloadOutcome::PartlyApplied => "PARTLY APPLIED",
        ReloadOutcome::Rejected => "REJECTED",
    };
    let text = format!("{outcome} {} ago, requested by {}", age(last.at, now), escaped(&last.by));
    if report.outcome == ReloadOutcome::Rejected {
        labelled("reload", &format!("{text}: configuration unchanged"), out)?;
        return write_problems(&report.problems, out);
    }
    if report.outcome == ReloadOutcome::Unchanged {
        // What is still wrong with the broker is a finding, and what is not is over.
        let problems = if report.problems.is_empty() { "" } else { ", when the broker did not match" };
        return labelled("reload", &format!("{text}{problems}"), out);
    }
    labelled("reload", &text, out)?;
    for (effect, needed) in [
        (Effect::Restart, "RESTART NEEDED for"),
        (Effect::Broker, "CHANGE NEEDED at the broker, see the notes of `orderd reload` or the log, for"),
    ] {
        let changes = report.changes.iter().filter(|change| change.effect == effect);
        let keys = changes.map(|change| escaped(&change.key)).collect::<Vec<_>>().join(", ");
        if !keys.is_empty() {
            labelled("", &format!("{needed} {keys}"), out)?;
        }
    }
    write_problems(&report.problems, out)
}

fn write_problems(problems: &[String], out: &mut dyn Write) -> io::Result<()> {
    for problem in problems.iter().take(MAX_PROBLEMS) {
        labelled("", &escaped(problem), out)?;
    }
    match problems.len().saturating_sub(MAX_PROBLEMS) {
        0 => Ok(()),
        more => labelled("", &format!("and {more} more"), out),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(outcome: &str, changes: Value, problems: &[&str]) -> String {
        let report =
            json!({"outcome": outcome, "generation": 4, "changes": changes, "problems": problems, "notes": []});
        let daemon = json!({"version": "0.1.0", "pid": 1, "state": "running", "started_at": "2026-11-22T08:00:00Z",
            "uptime_seconds": 1, "config": "c", "config_generation": 4, "connections": 6, "connections_made": 6,
            "last_reload": {"at": "2026-11-22T08:00:00Z", "by": "SIGHUP", "report": report}, "publisher": null,
            "ledger": {"recording": true, "commits": 1}});
        let mut out = Vec::new();
        let daemon = serde_json::from_value(daemon).unwrap();
        write(&daemon, "2026-11-22T08:02:00Z".parse().unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_outcome_and_the_changes_that_are_not_active_yet_are_shown() {
        assert_eq!(shown("applied", json!([]), &[]), "reload        applied 2m ago, requested by SIGHUP\n");
        let change = |key: &str, effect: &str| json!({"key": key, "from": "1", "to": "2", "effect": effect});
        let changes = json!([
            change("admin.listen", "restart"),
            change("log.level", "live"),
            change("queues.a.bindings", "broker"),
            change("runtime.threads", "restart"),
        ]);
        let partly = shown("partly_applied", changes, &[]);
        assert!(partly.contains("PARTLY APPLIED 2m ago"), "{partly}");
        assert!(partly.contains("\n              RESTART NEEDED for admin.listen, runtime.threads\n"), "{partly}");
        assert!(partly.contains("CHANGE NEEDED at the broker") && !partly.contains("log.level"), "{partly}");
        let unchanged = shown("unchanged", json!([]), &["a"]);
        assert_eq!(unchanged.lines().count(), 1, "a problem that may be over is not kept: {unchanged}");
        let rejected = shown("rejected", json!([]), &["a", "b\u{1b}", "c", "d", "e"]);
        let lines: Vec<_> = rejected.lines().map(str::trim).collect();
        let first = "reload        REJECTED 2m ago, requested by SIGHUP: configuration unchanged";
        assert_eq!(lines, [first, "a", "b\\u{1b}", "c", "and 2 more"]);
    }
}
