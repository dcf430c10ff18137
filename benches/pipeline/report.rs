//! Summarizes the rounds and compares them with the targets. No I/O.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Smallest share of a ceiling's throughput.
pub const MIN_SHARE: f64 = 0.85;
/// Largest CPU time per order, in microseconds.
pub const MAX_CPU_MICROS: f64 = 60.0;
/// Largest resident memory, in MiB.
pub const MAX_MEMORY_MIB: f64 = 64.0;
/// Largest factor by which memory may grow with a backlog ten times as long: it allows for the allocator's variation.
pub const MAX_GROWTH: f64 = 1.25;

/// One round: the ceilings and, right after them, orderd.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// The ceiling in windows.
    pub windows: Measurement,
    /// The streaming ceiling, which is the most that the broker can do.
    pub stream: Measurement,
    /// orderd, unless only the ceilings were measured.
    pub orderd: Option<Measurement>,
    /// orderd's peak memory in MiB.
    pub memory_mib: f64,
}

/// Throughput and CPU time of orderd or of a ceiling.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measurement {
    /// Orders per second.
    pub orders_per_second: f64,
    /// The program's own CPU time per order, in microseconds.
    pub cpu_micros: f64,
    /// The broker's CPU time per order, in microseconds.
    pub broker_cpu_micros: f64,
}

impl Measurement {
    /// A measurement of `orders` orders.
    pub fn new(orders: u64, elapsed: Duration, cpu: Duration, broker_cpu: Duration) -> Measurement {
        let per_order = |cpu: Duration| cpu.as_secs_f64() * 1e6 / orders as f64;
        Measurement {
            orders_per_second: orders as f64 / elapsed.as_secs_f64(),
            cpu_micros: per_order(cpu),
            broker_cpu_micros: per_order(broker_cpu),
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measurement { orders_per_second, cpu_micros, broker_cpu_micros } = self;
        write!(
            f,
            "{orders_per_second:>6.0} orders/s (CPU/order {cpu_micros:.0} µs, broker's {broker_cpu_micros:.0} µs)"
        )
    }
}

impl Round {
    /// orderd's throughput as a share of one of the ceilings.
    fn share_of(&self, ceiling: Measurement) -> Option<f64> {
        self.orderd.map(|orderd| orderd.orders_per_second / ceiling.orders_per_second)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |ceiling| self.share_of(ceiling).map(|share| format!(" → {share:.2}")).unwrap_or_default();
        write!(f, "windows {}{}   stream {}{}", self.windows, share(self.windows), self.stream, share(self.stream))?;
        match self.orderd {
            Some(orderd) => write!(f, "   orderd {orderd}, {:.0} MiB", self.memory_mib),
            None => Ok(()),
        }
    }
}

/// The result of a benchmark.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Orders in each round.
    pub orders: u64,
    /// The rounds, in order.
    pub rounds: Vec<Round>,
    /// orderd's peak memory in MiB with a tenth of the backlog.
    pub memory_mib_at_a_tenth: f64,
    /// Results for each target; empty if only the ceilings were measured.
    pub targets: Vec<TargetResult>,
}

/// A measured value and its target.
#[derive(Debug, Serialize)]
pub struct TargetResult {
    /// What was measured.
    pub what: &'static str,
    /// The measured value.
    pub value: f64,
    /// The target, such as `≥ 0.85`.
    pub target: String,
    /// Whether the target is met.
    pub met: bool,
}

impl Report {
    /// Compares the rounds with the targets.
    pub fn new(orders: u64, rounds: Vec<Round>, memory_mib_at_a_tenth: f64) -> Report {
        let mut targets = Vec::new();
        let shares =
            |of: fn(&Round) -> Measurement| -> Option<Vec<f64>> { rounds.iter().map(|r| r.share_of(of(r))).collect() };
        if let (Some(windows), Some(stream)) = (shares(|round| round.windows), shares(|round| round.stream)) {
            let peak = rounds.iter().map(|round| round.memory_mib).fold(0.0, f64::max);
            let cpu = rounds.iter().filter_map(|round| round.orderd).map(|orderd| orderd.cpu_micros).collect();
            let growth = peak / memory_mib_at_a_tenth;
            let at_least =
                |what, value, target| TargetResult {
                    what, value, target: format!("≥ {target}"), met: value >= target
                };
            let at_most =
                |what, value, target| TargetResult {
                    what, value, target: format!("≤ {target}"), met: value <= target
                };
            targets = vec![
                at_least("share of the ceiling in windows, median", median(windows), MIN_SHARE),
                at_least("share of the streaming ceiling, median", median(stream), MIN_SHARE),
                at_most("CPU per order in µs, median", median(cpu), MAX_CPU_MICROS),
                at_most("peak memory in MiB, worst", peak, MAX_MEMORY_MIB),
                at_most("growth of peak memory with ten times the backlog", growth, MAX_GROWTH),
            ];
        }
        Report { orders, rounds, memory_mib_at_a_tenth, targets }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.targets.iter().try_for_each(|target| writeln!(f, "{target}"))
    }
}

impl fmt::Display for TargetResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TargetResult { what, value, target, met } = self;
        let word = if *met { "met" } else { "NOT MET" };
        write!(f, "{what:<50} {value:>7.2}   target {target:<6}  {word}")
    }
}

/// The median; 0 if there are no values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}
