//! The whole daemon as a process, on a real broker: what its users see of it.

mod failures;
mod orders;
mod start;
mod stop;
