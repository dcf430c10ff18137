//! The whole daemon as a process, on a real broker: what its users see of it.

mod admin;
mod crash;
mod failures;
mod insight;
mod load;
mod orders;
mod own_node;
mod permissions;
mod poison;
mod probe;
mod reload;
mod secrets;
mod start;
mod status;
mod stop;
mod tls;
