//! Deleted parts of the topology. orderd must declare them again, by itself or at a reload.
//!
//! What a deleted queue holds is gone. So before one is deleted, nothing is under way; and orders are published again as soon as
//! it is deleted.

use std::io;

use serde_json::json;

use super::super::super::{Outcome, interrupt};
use super::super::broker_api::BrokerApi;
use super::super::fault::Fault;
use super::super::targets::Targets;
use super::broker::{USER, set_permissions};

/// The exchange that producers publish to.
const ORDERS: &str = "orders";
const EXCHANGES: [&str; 5] = [ORDERS, "orders.retry", "orders.requeue", "orders.dead_letter", "orders.unrouted"];
/// The queues that orderd consumes.
pub const WORK_QUEUES: [&str; 5] =
    ["order_queue", "priority_order_queue", "notification_queue", "analytics_queue", "failed_order_queue"];
const RETRY_QUEUES: [&str; 5] = [
    "order_queue.retry.1s",
    "order_queue.retry.2s",
    "priority_order_queue.retry.10s",
    "notification_queue.retry.1s",
    "analytics_queue.retry.5s",
];
/// Bindings: exchange, queue and key, as they appear in the path of a request. `~` is an empty key.
const BINDINGS: [(&str, &str, &str); 13] = [
    (ORDERS, "priority_order_queue", "order.priority.%23"),
    (ORDERS, "order_queue", "order.normal.*"),
    (ORDERS, "failed_order_queue", "order.failed.%23"),
    (ORDERS, "notification_queue", "order.notification.*"),
    (ORDERS, "analytics_queue", "order.analytics.*"),
    ("orders.requeue", "order_queue", "order_queue"),
    ("orders.requeue", "notification_queue", "notification_queue"),
    ("orders.requeue", "analytics_queue", "analytics_queue"),
    ("orders.requeue", "failed_order_queue", "failed_order_queue"),
    ("orders.retry", "order_queue.retry.1s", "order_queue.retry.1s"),
    ("orders.retry", "order_queue.retry.5s", "order_queue.retry.5s"),
    ("orders.dead_letter", "dead_letter_queue", "~"),
    ("orders.unrouted", "unrouted_queue", "~"),
];

pub fn exchange(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let name = *fault.random.choice(EXCHANGES.iter()).expect("not empty");
    let unbound: &[&str] = if name == ORDERS { &WORK_QUEUES } else { &[] };
    let deleted = targets.open_routing_gap(unbound, |api| api.delete("exchanges", name))?;
    await_declaration(targets, fault, deleted)
}

pub fn binding(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let (exchange, queue, key) = *fault.random.choice(BINDINGS.iter()).expect("not empty");
    let unbound: &[&str] = if exchange == ORDERS { &[queue] } else { &[] };
    let path = format!("e/{exchange}/q/{queue}/{key}");
    let deleted = targets.open_routing_gap(unbound, |api| api.delete("bindings", &path))?;
    await_declaration(targets, fault, deleted)
}

pub fn work_queue(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    queue(targets, fault, &WORK_QUEUES, true)
}

pub fn retry_queue(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    queue(targets, fault, &RETRY_QUEUES, false)
}

pub fn dead_letter_queue(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    queue(targets, fault, &["dead_letter_queue"], false)
}

pub fn unrouted_queue(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    queue(targets, fault, &["unrouted_queue"], false)
}

/// `of_orders`: whether the queues are bound to the exchange of orders.
fn queue(targets: &mut Targets<'_>, fault: &mut Fault, names: &[&'static str], of_orders: bool) -> Outcome<bool> {
    let name = *fault.random.choice(names.iter()).expect("not empty");
    targets.quiesce()?;
    let unbound: &[&str] = if of_orders { &[name] } else { &[] };
    let deleted = targets.open_routing_gap(unbound, |api| api.delete("queues", name))?;
    targets.resume();
    await_declaration(targets, fault, deleted)
}

/// The virtual host is deleted with everything in it, and created again, empty, with the permissions of its users.
pub fn virtual_host(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    targets.quiesce()?;
    targets.outage(
        fault,
        |targets| {
            targets.open_routing_gap(&WORK_QUEUES, BrokerApi::delete_virtual_host)?;
            targets.resume();
            Ok(())
        },
        |targets| {
            targets.api().put("/vhosts/{vhost}", &json!({}))?;
            set_permissions(targets, "guest", ".*")?;
            set_permissions(targets, USER, ".*")
        },
    )?;
    Ok(true)
}

/// Whether each work queue has its binding to the exchange of orders.
pub fn has_bindings_of_work_queues(api: BrokerApi) -> io::Result<bool> {
    let mut of_orders = BINDINGS.iter().filter(|(exchange, ..)| *exchange == ORDERS);
    of_orders.try_fold(true, |all, (exchange, queue, key)| Ok(all && api.has_binding(exchange, queue, key)?))
}

/// Half of the deletions are followed by a reload; orderd must notice the others by itself.
fn await_declaration(targets: &mut Targets<'_>, fault: &mut Fault, deleted: bool) -> Outcome<bool> {
    if deleted {
        targets.outage(fault, |_| Ok(()), |_| Ok(()))?;
        if fault.random.bool() {
            // It fails if orderd has just been started, or if the rest of the topology cannot be declared.
            let _ = targets.command(&["reload"])?;
            interrupt::check()?;
        }
    }
    Ok(deleted)
}
