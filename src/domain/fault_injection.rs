//! Injected faults, for demonstrations and tests: which orders fail, and how.
//!
//! Decided by a hash of the order's id alone, so that a run can be repeated. Off unless configured.

use super::OrderId;

/// Shares of orders that are made to fail, each from 0 to 1; together at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultInjection {
    /// Fails with a transient error until it has been retried `x-retry-count` ≥ 1 times.
    pub transient: f64,
    /// Fails with a permanent error, always.
    pub permanent: f64,
    /// Panics until it has been retried once.
    pub panic: f64,
    /// Never finishes, so that the deadline ends it, until it has been retried once.
    pub hang: f64,
    /// Blocks its thread for good, where no deadline reaches it, until it has been retried once.
    pub block: f64,
}

/// How an order is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
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
    /// The fault this order meets at this attempt, if any.
    ///
    /// `retries` is the number of delayed retries so far: all faults but the permanent one are over after
    /// the first, so that a run with them ends.
    pub fn strike(&self, id: &OrderId, retries: u32) -> Option<FaultKind> {
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
            match faults.strike(&OrderId::new(format!("ord-{n}")).unwrap(), 0) {
                Some(FaultKind::Transient) => counts.0 += 1,
                Some(FaultKind::Permanent) => counts.1 += 1,
                Some(FaultKind::Panic | FaultKind::Hang | FaultKind::Block) => panic!("a share of zero struck"),
                None => {}
            }
        }
        assert!((4_500..5_500).contains(&counts.0), "{counts:?}");
        assert!((850..1_150).contains(&counts.1), "{counts:?}");
    }

    #[test]
    fn only_a_permanent_fault_outlives_a_retry() {
        let all = |faults: FaultInjection, retries| faults.strike(&OrderId::new("ord-7").unwrap(), retries);
        assert_eq!(all(FaultInjection { transient: 1.0, ..FaultInjection::default() }, 1), None);
        assert_eq!(all(FaultInjection { permanent: 1.0, ..FaultInjection::default() }, 9), Some(FaultKind::Permanent));
        assert_eq!(all(FaultInjection::default(), 0), None);
    }
}
