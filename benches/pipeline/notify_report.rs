//! Summarizes the rounds with a mail server, and says which side is the bound. No I/O.

use std::fmt;

use serde::Serialize;

use super::report::{Measurement, TargetResult, median};

/// Smallest throughput, in e-mails per second, unless the server accepts fewer.
pub const MIN_MAILS_PER_SECOND: f64 = 500.0;
/// From this share of what the server can accept on, or of one CPU, the server is the bound: it has one thread.
pub const BOUND_SHARE: f64 = 0.85;

/// One round: the most that the server accepts and, right after it, orderd.
#[derive(Debug, Clone, Serialize)]
pub struct NotifyRound {
    /// The most e-mails per second that the server accepts.
    pub server: f64,
    /// orderd's, in notifications for orders.
    pub orderd: Measurement,
    /// The share of one CPU that the server used meanwhile.
    pub server_cpu: f64,
}

impl NotifyRound {
    fn share(&self) -> f64 {
        self.orderd.orders_per_second / self.server
    }
}

impl fmt::Display for NotifyRound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotifyRound { server, orderd, server_cpu } = self;
        let (share, percent) = (self.share(), server_cpu * 100.0);
        write!(f, "server {server:.0} e-mails/s   orderd {orderd} → {share:.2}, server's CPU {percent:.0} %")
    }
}

/// The result of a benchmark of notifications.
#[derive(Debug, Serialize)]
pub struct NotifyReport {
    /// Notifications in each measurement.
    pub mails: u64,
    /// The rounds, in order.
    pub rounds: Vec<NotifyRound>,
    /// The median share of what the server can accept.
    pub share: f64,
    /// `server` or `orderd`.
    pub bound: &'static str,
    /// Results for each target.
    pub targets: Vec<TargetResult>,
}

impl NotifyReport {
    /// Compares the rounds with the target.
    pub fn new(mails: u64, rounds: Vec<NotifyRound>) -> NotifyReport {
        let of = |value: fn(&NotifyRound) -> f64| median(rounds.iter().map(value).collect());
        let (rate, server) = (of(|round| round.orderd.orders_per_second), of(|round| round.server));
        let (share, server_cpu) = (of(NotifyRound::share), of(|round| round.server_cpu));
        let bound = if share >= BOUND_SHARE || server_cpu >= BOUND_SHARE { "server" } else { "orderd" };
        let target = MIN_MAILS_PER_SECOND.min(BOUND_SHARE * server);
        let result = TargetResult {
            what: "e-mails/s, median",
            value: rate,
            target: format!("≥ {target:.0}"),
            met: rate >= target,
        };
        NotifyReport { mails, rounds, share, bound, targets: vec![result] }
    }
}

impl fmt::Display for NotifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<50} {:>7.2}", "share of what the mail server can accept, median", self.share)?;
        writeln!(f, "{:<50} {:>7}", "the bound", self.bound)?;
        self.targets.iter().try_for_each(|target| writeln!(f, "{target}"))
    }
}
