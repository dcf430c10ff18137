//! Tests that need no broker but more than one process, or the source tree.

mod ledger_kill;
