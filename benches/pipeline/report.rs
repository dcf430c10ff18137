//! What the rounds came to, and whether the targets are met. Pure.

use std::fmt;

use serde::Serialize;

/// orderd's throughput as a share of the ceiling's, at least.
pub const RATIO: f64 = 0.85;
/// Microseconds of CPU per order, at most.
pub const CPU_MICROS: f64 = 60.0;
/// Resident memory in MiB, at most.
pub const MEMORY_MIB: f64 = 64.0;
/// How much more memory a backlog ten times as long may take, as a factor: room for the noise of an allocator.
pub const GROWTH: f64 = 1.25;

/// One round: the ceiling and, right after it, orderd.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Orders per second.
    pub ceiling: f64,
    /// Orders per second; nothing when only the ceiling was measured.
    pub orderd: Option<f64>,
    /// Microseconds of orderd's CPU per order.
    pub cpu_micros: f64,
    /// orderd's peak memory in MiB.
    pub memory_mib: f64,
}

impl Round {
    fn ratio(&self) -> Option<f64> {
        self.orderd.map(|orderd| orderd / self.ceiling)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ceiling {:>7.0} orders/s", self.ceiling)?;
        let (Some(orderd), Some(ratio)) = (self.orderd, self.ratio()) else { return Ok(()) };
        let Round { cpu_micros, memory_mib, .. } = self;
        write!(
            f,
            "   orderd {orderd:>7.0} orders/s   ratio {ratio:.2}   {cpu_micros:.0} µs CPU/order   {memory_mib:.0} MiB"
        )
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Orders in each round.
    pub orders: u64,
    /// The rounds, in order.
    pub rounds: Vec<Round>,
    /// orderd's peak memory in MiB with a tenth of the backlog.
    pub memory_mib_at_a_tenth: f64,
    /// Medians against targets; empty when only the ceiling was measured.
    pub verdicts: Vec<Verdict>,
}

/// One number against its target.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// What was measured.
    pub what: &'static str,
    /// The number.
    pub value: f64,
    /// What it is to be, as text.
    pub target: String,
    /// Whether it is.
    pub met: bool,
}

impl Report {
    /// Holds the rounds against the targets.
    pub fn new(orders: u64, rounds: Vec<Round>, memory_mib_at_a_tenth: f64) -> Report {
        let mut verdicts = Vec::new();
        if let Some(ratios) = rounds.iter().map(Round::ratio).collect::<Option<Vec<f64>>>() {
            let peak = rounds.iter().map(|round| round.memory_mib).fold(0.0, f64::max);
            let growth = peak / memory_mib_at_a_tenth;
            let at_least =
                |what, value, target| Verdict { what, value, target: format!("≥ {target}"), met: value >= target };
            let at_most =
                |what, value, target| Verdict { what, value, target: format!("≤ {target}"), met: value <= target };
            verdicts = vec![
                at_least("throughput as a share of the ceiling, median", median(ratios), RATIO),
                at_most(
                    "CPU per order in µs, median",
                    median(rounds.iter().map(|r| r.cpu_micros).collect()),
                    CPU_MICROS,
                ),
                at_most("peak memory in MiB, worst", peak, MEMORY_MIB),
                at_most("growth of peak memory with ten times the backlog", growth, GROWTH),
            ];
        }
        Report { orders, rounds, memory_mib_at_a_tenth, verdicts }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Verdict { what, value, target, met } in &self.verdicts {
            let word = if *met { "met" } else { "NOT MET" };
            writeln!(f, "{what:<50} {value:>7.2}   target {target:<6}  {word}")?;
        }
        Ok(())
    }
}

/// The middle one, or the mean of the two in the middle. 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}
