//! The result of a soak: faults by kind, how long recovery took, and the audit; as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::audit::Audit;
use super::super::shop::books::BooksAudit;
use super::fault::{Fault, FaultKind};

/// The faults of one kind.
#[derive(Debug, Default)]
pub struct KindReport {
    /// How long it took after each fault until further orders were settled.
    pub recoveries: Vec<Duration>,
    /// In how many of them orderd was killed meanwhile.
    pub orderd_killed: u64,
    /// Faults that found nothing to do, such as an exchange to delete that was missing. They are made up for.
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
    pub kinds: BTreeMap<&'static FaultKind, KindReport>,
    /// The audit at the end.
    pub audit: Option<Audit>,
    /// What the shop's services did, compared with what became of the orders.
    pub books: Option<BooksAudit>,
}

impl SoakReport {
    /// A report without faults.
    pub fn new(seed: u64, kinds: &[&'static FaultKind]) -> SoakReport {
        let kinds = kinds.iter().map(|kind| (*kind, KindReport::default())).collect();
        SoakReport { seed, kinds, audit: None, books: None }
    }

    /// Adds a fault that happened, and how long recovery from it took.
    pub fn add(&mut self, fault: &Fault, recovery: Duration) {
        let report = self.kinds.entry(fault.kind).or_default();
        report.recoveries.push(recovery);
        report.orderd_killed += u64::from(fault.kill);
    }

    /// Adds a fault that found nothing to do.
    pub fn add_nothing_to_do(&mut self, fault: &Fault) {
        self.kinds.entry(fault.kind).or_default().nothing_to_do += 1;
    }

    /// Whether every order, every event and everything that the shop's services did is accounted for.
    pub fn passed(&self) -> bool {
        self.audit.as_ref().is_some_and(Audit::passed) && self.books.as_ref().is_some_and(BooksAudit::passed)
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
                "count": report.recoveries.len(), "orderd_killed": report.orderd_killed, "nothing_to_do": report.nothing_to_do,
                "median_seconds": times.map(|times| times.0), "max_seconds": times.map(|times| times.1),
            });
            (kind.name.to_owned(), value)
        });
        json!({
            "seed": self.seed, "faults": self.faults(), "passed": self.passed(),
            "kinds": kinds.collect::<serde_json::Map<_, _>>(),
            "audit": self.audit.as_ref().map(Audit::to_json),
            "steps": self.books.as_ref().map(BooksAudit::to_json),
        })
    }
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["count", "killed", "median", "maximum"];
        writeln!(f, "  {:<26} {:>6} {:>6} {:>10} {:>10}", "fault", heads[0], heads[1], heads[2], heads[3])?;
        for (kind, report) in &self.kinds {
            let (name, count, killed) = (kind.name, report.recoveries.len(), report.orderd_killed);
            match report.median_and_max() {
                Some((median, max)) => {
                    writeln!(f, "  {name:<26} {count:>6} {killed:>6} {median:>8.1} s {max:>8.1} s")?;
                }
                None if report.nothing_to_do > 0 => writeln!(f, "  {name:<26} not run: nothing to do")?,
                None => writeln!(f, "  {name:<26} not run")?,
            }
        }
        let nothing_to_do: u64 = self.kinds.values().map(|kind| kind.nothing_to_do).sum();
        writeln!(f, "  {:<26} {:>6}   (seed {})", "all", self.faults(), self.seed)?;
        writeln!(
            f,
            "  killed: orderd was killed meanwhile; median and maximum: time until it was ready and settled orders"
        )?;
        writeln!(f, "  {nothing_to_do} more faults found nothing to do, and do not count\n")?;
        self.audit.as_ref().map_or(Ok(()), |audit| write!(f, "{audit}"))?;
        self.books.as_ref().map_or(Ok(()), |books| write!(f, "\n\n{books}"))
    }
}
