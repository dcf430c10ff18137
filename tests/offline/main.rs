//! Tests that need no broker.

mod ledger_kill;
mod tidy;
