//! Tests that need no broker.

mod tidy;
