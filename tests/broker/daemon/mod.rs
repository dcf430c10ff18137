//! The whole daemon as a process, on a real broker: what its users see of it.

mod admin;
mod crash;
mod failures;
mod insight;
mod load;
mod many;
mod orders;
mod own_node;
mod pause;
mod poison;
mod probe;
mod reload;
mod secrets;
mod service;
mod start;
mod status;
mod stop;
mod tell;
