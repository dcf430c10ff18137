//! The whole daemon as a process, on a real broker, tested through what its users see.

mod admin;
mod backlog;
mod control;
mod delivery_limit;
mod drain;
mod erase;
mod failures;
mod forged_messages;
mod ledger_outages;
mod lost_topology;
mod memory;
mod multiple_instances;
mod odd_headers;
mod orders;
mod own_node;
mod pause;
mod permissions;
mod probe;
mod publish;
mod reload;
mod report_and_trace;
mod secrets;
mod start;
mod status;
mod systemd;
mod tls;
