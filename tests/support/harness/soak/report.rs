//! The result of a soak: faults by kind, how long recovery took, and the audit; as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::audit::Audit;
use super::fault::FaultKind;

/// The faults of one kind.
#[derive(Debug, Default)]
pub struct KindReport {
    /// How long it took after each fault until further orders were settled.
    pub recoveries: Vec<Duration>,
    /// Faults that found nothing to do, such as a queue to delete that was not empty.
    pub nothing_to_do: u64,
}

impl KindReport {
    fn median_and_max(&self) -> Option<(f64, f64)> {
        let mut sorted: Vec<f64> = self.recoveries.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_by(f64::total_cmp);
        Some((sorted.get(sorted.len() / 2).copied()?, sorted.last().copied()?))
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct SoakReport {
    /// The seed.
    pub seed: u64,
    /// By kind, also those that were not run.
    pub kinds: BTreeMap<FaultKind, KindReport>,
    /// The audit at the end.
    pub audit: Option<Audit>,
}

impl SoakReport {
    /// A report without faults.
    pub fn new(seed: u64, kinds: &[FaultKind]) -> SoakReport {
        let kinds = kinds.iter().map(|kind| (*kind, KindReport::default())).collect();
        SoakReport { seed, kinds, audit: None }
    }

    /// Whether every order and every event is accounted for.
    pub fn passed(&self) -> bool {
        self.audit.as_ref().is_some_and(Audit::passed)
    }

    /// The number of faults that happened.
    pub fn faults(&self) -> usize {
        self.kinds.values().map(|kind| kind.recoveries.len()).sum()
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        let kinds = self.kinds.iter().map(|(kind, report)| {
            let times = report.median_and_max();
            let value = json!({
                "count": report.recoveries.len(), "nothing_to_do": report.nothing_to_do,
                "median_seconds": times.map(|times| times.0), "max_seconds": times.map(|times| times.1),
            });
            (kind.as_str().to_owned(), value)
        });
        json!({
            "seed": self.seed, "faults": self.faults(), "passed": self.passed(),
            "kinds": kinds.collect::<serde_json::Map<_, _>>(),
            "audit": self.audit.as_ref().map(Audit::to_json),
        })
    }
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:<26} {:>6} {:>10} {:>10}", "fault", "count", "median", "maximum")?;
        for (kind, report) in &self.kinds {
            let (kind, count) = (kind.as_str(), report.recoveries.len());
            match report.median_and_max() {
                Some((median, max)) => writeln!(f, "  {kind:<26} {count:>6} {median:>8.1} s {max:>8.1} s")?,
                None if report.nothing_to_do > 0 => writeln!(f, "  {kind:<26} not run: nothing to do")?,
                None => writeln!(f, "  {kind:<26} not run")?,
            }
        }
        writeln!(f, "  {:<26} {:>6}   (seed {})\n", "all", self.faults(), self.seed)?;
        self.audit.as_ref().map_or(Ok(()), |audit| write!(f, "{audit}"))
    }
}
