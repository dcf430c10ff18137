//! The last reload in a status for people: what became of it, and what still waits.

use std::io::{self, Write};

use jiff::Timestamp;

use super::text::{age, labelled};
use crate::cli::table::plain;
use crate::control::{Effect, ReloadOutcome};
use crate::status::DaemonStatus;

/// Problems shown; the rest is counted.
const SHOWN: usize = 3;

/// Writes nothing before the first reload.
pub(super) fn write(daemon: &DaemonStatus, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let Some(last) = &daemon.last_reload else { return Ok(()) };
    let verdict = &last.report;
    let word = match verdict.outcome {
        ReloadOutcome::Unchanged => "nothing new",
        ReloadOutcome::Applied => "applied",
        ReloadOutcome::PartlyApplied => "PARTLY applied",
        ReloadOutcome::Rejected => "REJECTED",
    };
    let told = format!("{word} {} ago, asked for by {}", age(last.at, now), plain(&last.by));
    if verdict.outcome != ReloadOutcome::Rejected {
        labelled("reload", &told, out)?;
        let waiting = |effect: Effect| {
            let keys = verdict.changes.iter().filter(move |change| change.effect == effect);
            keys.map(|change| plain(&change.key)).collect::<Vec<_>>().join(", ")
        };
        for (effect, what) in [
            (Effect::Restart, "RESTART NEEDED for"),
            (Effect::Broker, "TO BE DONE at the broker, as `orderd reload` and the log have said, for"),
        ] {
            let keys = waiting(effect);
            if !keys.is_empty() {
                labelled("", &format!("{what} {keys}"), out)?;
            }
        }
        return Ok(());
    }
    labelled("reload", &format!("{told}: what was in force before still is"), out)?;
    for problem in verdict.problems.iter().take(SHOWN) {
        labelled("", &plain(problem), out)?;
    }
    match verdict.problems.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => labelled("", &format!("and {more} more"), out),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(outcome: &str, changes: Value, problems: &[&str]) -> String {
        let verdict =
            json!({"outcome": outcome, "generation": 4, "changes": changes, "problems": problems, "notes": []});
        let daemon = json!({"version": "0.1.0", "pid": 1, "state": "running", "started_at": "2026-11-22T08:00:00Z",
            "uptime_seconds": 1, "config": "c", "config_generation": 4, "connections": 6, "connections_made": 6,
            "last_reload": {"at": "2026-11-22T08:00:00Z", "by": "SIGHUP", "report": verdict}, "publisher": null,
            "ledger": {"recording": true, "commits": 1}});
        let mut out = Vec::new();
        let daemon = serde_json::from_value(daemon).unwrap();
        write(&daemon, "2026-11-22T08:02:00Z".parse().unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_became_of_it_is_told_and_what_still_waits() {
        assert_eq!(shown("applied", json!([]), &[]), "reload        applied 2m ago, asked for by SIGHUP\n");
        let change = |key: &str, effect: &str| json!({"key": key, "from": "1", "to": "2", "effect": effect});
        let changes = json!([
            change("admin.listen", "restart"),
            change("log.level", "live"),
            change("queues.a.bindings", "broker"),
            change("runtime.threads", "restart"),
        ]);
        let partly = shown("partly_applied", changes, &[]);
        assert!(partly.contains("PARTLY applied 2m ago"), "{partly}");
        assert!(partly.contains("\n              RESTART NEEDED for admin.listen, runtime.threads\n"), "{partly}");
        assert!(partly.contains("TO BE DONE at the broker") && !partly.contains("log.level"), "{partly}");
        let rejected = shown("rejected", json!([]), &["a", "b\u{1b}", "c", "d", "e"]);
        let lines: Vec<_> = rejected.lines().map(str::trim).collect();
        let first = "reload        REJECTED 2m ago, asked for by SIGHUP: what was in force before still is";
        assert_eq!(lines, [first, "a", "b\u{fffd}", "c", "and 2 more"]);
    }
}
