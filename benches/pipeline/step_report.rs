//! Summarizes the rounds with and without a step, and compares them with the target. No I/O.

use std::fmt;

use serde::Serialize;

use super::report::{Measurement, TargetResult, median};

/// Smallest throughput with a step, in orders per second, on a machine that does more than that without it.
pub const MIN_ORDERS_PER_SECOND: f64 = 5_000.0;
/// Smallest throughput with a step, as a share of that without, on a slower machine.
pub const MIN_SHARE: f64 = 0.7;

/// One round: orderd without a step and, right after it, with one.
#[derive(Debug, Clone, Serialize)]
pub struct StepRound {
    /// Without a step.
    pub without: Measurement,
    /// With one step.
    pub with: Measurement,
    /// orderd's peak memory with the step, in MiB.
    pub memory_mib: f64,
}

impl StepRound {
    fn share(&self) -> f64 {
        self.with.orders_per_second / self.without.orders_per_second
    }
}

impl fmt::Display for StepRound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepRound { without, with, memory_mib } = self;
        write!(f, "without {without}   with {with} → {:.2}, {memory_mib:.0} MiB", self.share())
    }
}

/// The result of a benchmark of steps.
#[derive(Debug, Serialize)]
pub struct StepReport {
    /// Orders in each measurement.
    pub orders: u64,
    /// The rounds, in order.
    pub rounds: Vec<StepRound>,
    /// The median share of the throughput without the step.
    pub share: f64,
    /// Results for each target.
    pub targets: Vec<TargetResult>,
}

impl StepReport {
    /// Compares the rounds with the target.
    pub fn new(orders: u64, rounds: Vec<StepRound>) -> StepReport {
        let of = |value: fn(&StepRound) -> f64| median(rounds.iter().map(value).collect());
        let (with, without) = (of(|round| round.with.orders_per_second), of(|round| round.without.orders_per_second));
        let target = MIN_ORDERS_PER_SECOND.min(MIN_SHARE * without);
        let share = of(StepRound::share);
        let result = TargetResult {
            what: "orders/s with a step, median",
            value: with,
            target: format!("≥ {target:.0}"),
            met: with >= target,
        };
        StepReport { orders, share, rounds, targets: vec![result] }
    }
}

impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<50} {:>7.2}", "share of the throughput without the step, median", self.share)?;
        self.targets.iter().try_for_each(|target| writeln!(f, "{target}"))
    }
}
