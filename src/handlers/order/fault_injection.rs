//! Faults injected on purpose, for demonstrations and tests: which orders fail, and how. `[consumers.<name>.faults]`.
//!
//! A hash of the order's id decides, so that a run can be repeated: no clock, no randomness, no I/O.

use serde::Serialize;

use crate::config::{Section, shape};
use crate::domain::OrderId;

/// Shares of orders that are made to fail, each from 0 to 1, together at most 1. All 0 by default.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct FaultInjection {
    /// Fails with a transient error, until it has been retried after a delay once.
    pub transient: f64,
    /// Fails with a permanent error, always.
    pub permanent: f64,
    /// Panics, until it has been retried after a delay once.
    pub panic: f64,
    /// Never finishes, so that the deadline ends it, until it has been retried after a delay once.
    pub hang: f64,
    /// Blocks its thread forever, where no deadline can end it, until it has been retried after a delay once.
    pub block: f64,
}

/// How an order is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// See [`FaultInjection::transient`].
    Transient,
    /// See [`FaultInjection::permanent`].
    Permanent,
    /// See [`FaultInjection::panic`].
    Panic,
    /// See [`FaultInjection::hang`].
    Hang,
    /// See [`FaultInjection::block`].
    Block,
}

impl FaultInjection {
    /// Reads and checks its section.
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let faults = FaultInjection {
            transient: section.or("transient", 0.0, &shape::share),
            permanent: section.or("permanent", 0.0, &shape::share),
            panic: section.or("panic", 0.0, &shape::share),
            hang: section.or("hang", 0.0, &shape::share),
            block: section.or("block", 0.0, &shape::share),
        };
        let sum = faults.sum();
        // A sum of shares such as 0.7 + 0.2 + 0.1 may be a little above 1.
        if sum > 1.0 + 1e-9 {
            section.own_problem(format!("must add up to at most 1, is {sum}"));
        } else if faults.is_on() {
            section.own_warning(format!("faults are injected on purpose into {:.1} % of its orders", sum * 100.0));
        }
        section.finish();
        faults
    }

    fn sum(&self) -> f64 {
        self.transient + self.permanent + self.panic + self.hang + self.block
    }

    /// Whether any order is made to fail.
    pub(super) fn is_on(&self) -> bool {
        self.sum() > 0.0
    }

    /// `5 % fail once, 1 % panic`; `None` if none is injected.
    pub(super) fn summary(&self) -> Option<String> {
        let shares = [
            ("fail once", self.transient),
            ("fail for good", self.permanent),
            ("panic", self.panic),
            ("hang", self.hang),
            ("block", self.block),
        ];
        let shown = shares.iter().filter(|(_, share)| *share > 0.0);
        let shown: Vec<String> = shown.map(|(what, share)| format!("{} % {what}", share * 100.0)).collect();
        self.is_on().then(|| shown.join(", "))
    }

    /// The fault that an order meets in this attempt, if any.
    ///
    /// `retries` is the number of delayed retries so far. Only a permanent fault outlasts the first, so that a run with
    /// faults ends.
    pub(super) fn fault_for(&self, id: &OrderId, retries: u32) -> Option<FaultKind> {
        let point = unit_interval(id);
        let mut upper = 0.0;
        for (share, kind) in [
            (self.permanent, FaultKind::Permanent),
            (self.transient, FaultKind::Transient),
            (self.panic, FaultKind::Panic),
            (self.hang, FaultKind::Hang),
            (self.block, FaultKind::Block),
        ] {
            upper += share;
            if point < upper {
                return (kind == FaultKind::Permanent || retries == 0).then_some(kind);
            }
        }
        None
    }
}

/// Maps an id to a point in `[0, 1)`: FNV-1a over its bytes, mixed with the finaliser of splitmix64, since
/// FNV alone leaves the high bits of similar ids alike.
fn unit_interval(id: &OrderId) -> f64 {
    let fnv = id
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_hold_over_many_orders() {
        let faults = FaultInjection { transient: 0.05, permanent: 0.01, ..FaultInjection::default() };
        let mut counts = (0, 0);
        for n in 0..100_000 {
            match faults.fault_for(&OrderId::new(format!("ord-{n}")).unwrap(), 0) {
                Some(FaultKind::Transient) => counts.0 += 1,
                Some(FaultKind::Permanent) => counts.1 += 1,
                Some(FaultKind::Panic | FaultKind::Hang | FaultKind::Block) => {
                    panic!("a fault with a share of 0 was injected")
                }
                None => {}
            }
        }
        assert!((4_500..5_500).contains(&counts.0), "{counts:?}");
        assert!((850..1_150).contains(&counts.1), "{counts:?}");
    }

    #[test]
    fn only_a_permanent_fault_outlasts_a_retry() {
        let all = |faults: FaultInjection, retries| faults.fault_for(&OrderId::new("ord-7").unwrap(), retries);
        assert_eq!(all(FaultInjection { transient: 1.0, ..FaultInjection::default() }, 1), None);
        assert_eq!(all(FaultInjection { permanent: 1.0, ..FaultInjection::default() }, 9), Some(FaultKind::Permanent));
        assert_eq!(all(FaultInjection::default(), 0), None);
    }
}
