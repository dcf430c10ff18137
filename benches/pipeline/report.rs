//! What the rounds came to, and whether the targets are met. Pure.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// orderd's throughput as a share of a ceiling's, at least.
pub const RATIO: f64 = 0.85;
/// Microseconds of CPU per order, at most.
pub const CPU_MICROS: f64 = 60.0;
/// Resident memory in MiB, at most.
pub const MEMORY_MIB: f64 = 64.0;
/// How much more memory a backlog ten times as long may take, as a factor: room for the noise of an allocator.
pub const GROWTH: f64 = 1.25;

/// One round: the ceilings and, right after them, orderd.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// The bare broker operations, one window of orders after the other.
    pub windows: Side,
    /// The bare broker operations, everything at once: what the broker can do at the most.
    pub stream: Side,
    /// orderd; nothing when only the ceiling was measured.
    pub orderd: Option<Side>,
    /// orderd's peak memory in MiB.
    pub memory_mib: f64,
}

/// What one of the two reached, and what it cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Side {
    /// Orders per second.
    pub orders_per_second: f64,
    /// Microseconds of CPU per order, of the program itself.
    pub cpu_micros: f64,
    /// Microseconds of the broker's CPU per order: what the program makes it work.
    pub broker_cpu_micros: f64,
}

impl Side {
    /// Of `orders` in this time.
    pub fn new(orders: u64, elapsed: Duration, cpu: Duration, broker_cpu: Duration) -> Side {
        let per_order = |cpu: Duration| cpu.as_secs_f64() * 1e6 / orders as f64;
        Side {
            orders_per_second: orders as f64 / elapsed.as_secs_f64(),
            cpu_micros: per_order(cpu),
            broker_cpu_micros: per_order(broker_cpu),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Side { orders_per_second, cpu_micros, broker_cpu_micros } = self;
        write!(
            f,
            "{orders_per_second:>6.0} orders/s (CPU/order {cpu_micros:.0} µs, broker's {broker_cpu_micros:.0} µs)"
        )
    }
}

impl Round {
    /// orderd's throughput as a share of one of the ceilings.
    fn ratio(&self, ceiling: Side) -> Option<f64> {
        self.orderd.map(|orderd| orderd.orders_per_second / ceiling.orders_per_second)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |ceiling| self.ratio(ceiling).map(|ratio| format!(" → {ratio:.2}")).unwrap_or_default();
        write!(f, "windows {}{}   stream {}{}", self.windows, share(self.windows), self.stream, share(self.stream))?;
        match self.orderd {
            Some(orderd) => write!(f, "   orderd {orderd}, {:.0} MiB", self.memory_mib),
            None => Ok(()),
        }
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
        let ratios = |of: fn(&Round) -> Side| -> Option<Vec<f64>> { rounds.iter().map(|r| r.ratio(of(r))).collect() };
        if let (Some(windows), Some(stream)) = (ratios(|round| round.windows), ratios(|round| round.stream)) {
            let peak = rounds.iter().map(|round| round.memory_mib).fold(0.0, f64::max);
            let cpu = rounds.iter().filter_map(|round| round.orderd).map(|side| side.cpu_micros).collect();
            let growth = peak / memory_mib_at_a_tenth;
            let at_least =
                |what, value, target| Verdict { what, value, target: format!("≥ {target}"), met: value >= target };
            let at_most =
                |what, value, target| Verdict { what, value, target: format!("≤ {target}"), met: value <= target };
            verdicts = vec![
                at_least("share of the ceiling in windows, median", median(windows), RATIO),
                at_least("share of the streaming ceiling, median", median(stream), RATIO),
                at_most("CPU per order in µs, median", median(cpu), CPU_MICROS),
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
