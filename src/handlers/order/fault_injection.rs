//! `[consumers.<name>.faults]`: faults injected on purpose, for demonstrations and tests.
//!
//! A hash of the order's id decides which orders fail and how, so that a run can be repeated: no clock, no randomness, no I/O.

use serde::Serialize;

use crate::config::{Section, value_parser};
use crate::domain::OrderId;

/// The fractions of orders that are made to fail, each from 0 to 1, together at most 1. All are 0 by default.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct FaultInjection {
    /// Fail with a transient error until their first delayed retry.
    pub transient: f64,
    /// Always fail with a permanent error.
    pub permanent: f64,
    /// Panic until their first delayed retry.
    pub panic: f64,
    /// Hang, so that the deadline ends the attempt, until their first delayed retry.
    pub hang: f64,
    /// Block their thread forever, where no deadline can end the attempt, until their first delayed retry.
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
    /// Reads and checks the section `faults`.
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let faults = FaultInjection {
            transient: section.optional_or("transient", 0.0, &value_parser::fraction),
            permanent: section.optional_or("permanent", 0.0, &value_parser::fraction),
            panic: section.optional_or("panic", 0.0, &value_parser::fraction),
            hang: section.optional_or("hang", 0.0, &value_parser::fraction),
            block: section.optional_or("block", 0.0, &value_parser::fraction),
        };
        let sum = faults.sum();
        // A sum of fractions such as 0.7 + 0.2 + 0.1 may be slightly above 1.
        if sum > 1.0 + 1e-9 {
            section.section_problem(format!("must add up to at most 1, is {sum}"));
        } else if faults.is_on() {
            section.section_warning(format!("faults are injected on purpose into {:.1} % of its orders", sum * 100.0));
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

    /// `5 % fail once, 1 % panic`; `None` if no fault is injected.
    pub(super) fn summary(&self) -> Option<String> {
        let fractions = [
            ("fail once", self.transient),
            ("fail permanently", self.permanent),
            ("panic", self.panic),
            ("hang", self.hang),
            ("block", self.block),
        ];
        let shown = fractions.iter().filter(|(_, fraction)| *fraction > 0.0);
        let shown: Vec<String> = shown.map(|(effect, fraction)| format!("{} % {effect}", fraction * 100.0)).collect();
        self.is_on().then(|| shown.join(", "))
    }

    /// The fault to inject into an attempt at an order, if any.
    ///
    /// `retries` is the number of delayed retries so far. Only a permanent fault is still injected after the first, so that a
    /// run with faults ends.
    pub(super) fn fault_for(&self, id: &OrderId, retries: u32) -> Option<FaultKind> {
        let point = unit_interval(id);
        let mut upper = 0.0;
        for (fraction, kind) in [
            (self.permanent, FaultKind::Permanent),
            (self.transient, FaultKind::Transient),
            (self.panic, FaultKind::Panic),
            (self.hang, FaultKind::Hang),
            (self.block, FaultKind::Block),
        ] {
            upper += fraction;
            if point < upper {
                return (kind == FaultKind::Permanent || retries == 0).then_some(kind);
            }
        }
        None
    }
}

/// Maps an id to a point in `[0, 1)`: FNV-1a over its bytes, then the finaliser of splitmix64, since FNV alone gives similar
/// ids similar high bits.
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
    fn the_fractions_are_met_over_many_orders() {
        let faults = FaultInjection { transient: 0.05, permanent: 0.01, ..FaultInjection::default() };
        let mut counts = (0, 0);
        for n in 0..100_000 {
            match faults.fault_for(&OrderId::new(format!("ord-{n}")).unwrap(), 0) {
                Some(FaultKind::Transient) => counts.0 += 1,
                Some(FaultKind::Permanent) => counts.1 += 1,
                Some(FaultKind::Panic | FaultKind::Hang | FaultKind::Block) => {
                    panic!("a fault with a fraction of 0 was injected")
                }
                None => {}
            }
        }
        assert!((4_500..5_500).contains(&counts.0), "{counts:?}");
        assert!((850..1_150).contains(&counts.1), "{counts:?}");
    }

    #[test]
    fn only_a_permanent_fault_is_injected_again_after_a_retry() {
        let fault = |faults: FaultInjection, retries| faults.fault_for(&OrderId::new("ord-7").unwrap(), retries);
        assert_eq!(fault(FaultInjection { transient: 1.0, ..FaultInjection::default() }, 1), None);
        assert_eq!(
            fault(FaultInjection { permanent: 1.0, ..FaultInjection::default() }, 9),
            Some(FaultKind::Permanent)
        );
        assert_eq!(fault(FaultInjection::default(), 0), None);
    }
}
