//! What the traits promise, as rules that are tested against every implementation.
//!
//! Rules use the traits alone and never inspect a store. Each gets an empty ledger of its own.

mod alerts;
mod cancellation;
mod dead_letters;
pub(in crate::ledger) mod fixtures;
mod journal;
mod late_outcomes;
mod maintenance;
mod recording;
mod replay_outcomes;
pub(crate) mod replays;
pub(super) mod reports;
mod run_claims;
pub(in crate::ledger) mod step_runs;
mod totals;
mod traces;

use std::sync::Arc;

use tempfile::TempDir;

use super::Ledger;
use super::memory::MemoryLedger;
use super::sqlite::SqliteLedger;

pub(crate) use fixtures::*;

/// An empty ledger, removed when dropped.
struct TestLedger {
    ledger: Arc<dyn Ledger>,
    _directory: Option<TempDir>,
}

impl TestLedger {
    fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        TestLedger { ledger: Arc::new(ledger), _directory: Some(directory) }
    }

    fn memory() -> Self {
        TestLedger { ledger: Arc::new(MemoryLedger::default()), _directory: None }
    }
}

/// Makes one test per rule and implementation. A rule is an `async fn(&dyn Ledger)`.
macro_rules! rules {
    ($($rule:ident),+ $(,)?) => {
        crate::ledger::conformance::rules_of! { sqlite: $($rule),+ }
        crate::ledger::conformance::rules_of! { memory: $($rule),+ }
    };
}

macro_rules! rules_of {
    ($implementation:ident: $($rule:ident),+) => {
        mod $implementation {
            $(
                #[tokio::test]
                async fn $rule() {
                    let test = crate::ledger::conformance::TestLedger::$implementation();
                    super::$rule(&*test.ledger).await;
                    test.ledger.close().await;
                }
            )+
        }
    };
}

use {rules, rules_of};
