//! Faults of the broker, and changes of its settings.

use serde_json::{Value, json};

use super::super::super::Outcome;
use super::super::super::node::Node;
use super::super::fault::Fault;
use super::super::targets::Targets;
use super::topology::WORK_QUEUES;

/// orderd's user on the broker.
pub const USER: &str = "orderd";

pub fn kill(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    targets.node.kill()?;
    start_again(targets, fault)
}

pub fn restart(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    targets.node.stop()?;
    start_again(targets, fault)
}

fn start_again(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    if fault.kill {
        targets.daemon.kill()?;
        targets.start_daemon()?;
    }
    Node::start(&targets.node.name)?;
    Ok(true)
}

pub fn memory_alarm(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    while_set(targets, fault, ["set_vm_memory_high_watermark", "0.000001"], ["set_vm_memory_high_watermark", "0.4"])
}

pub fn disk_alarm(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    while_set(targets, fault, ["set_disk_free_limit", "900000GB"], ["set_disk_free_limit", "50MB"])
}

pub fn stop_management(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let eval = |what: &str| format!("ok = application:{what}(rabbitmq_management).");
    while_set(targets, fault, ["eval", &eval("stop")], ["eval", &eval("start")])
}

/// Runs `rabbitmqctl`, and at the end again.
fn while_set(targets: &mut Targets<'_>, fault: &mut Fault, set: [&str; 2], reset: [&str; 2]) -> Outcome<bool> {
    let ctl = |targets: &mut Targets<'_>, arguments: &[&str]| targets.node.ctl(arguments).map(drop);
    targets.outage(fault, |targets| Ok(ctl(targets, &set)?), |targets| Ok(ctl(targets, &reset)?))?;
    Ok(true)
}

/// Existing channels may use the permissions that they have looked up before, so the connections are closed.
pub fn take_permissions(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    targets.outage(
        fault,
        |targets| {
            set_permissions(targets, USER, "^$")?;
            targets.api().close_connections()?;
            Ok(())
        },
        |targets| set_permissions(targets, USER, ".*"),
    )?;
    Ok(true)
}

/// Lets a user configure, write and read what the pattern matches.
pub fn set_permissions(targets: &Targets<'_>, user: &str, pattern: &str) -> Outcome<()> {
    let permissions = json!({"configure": pattern, "write": pattern, "read": pattern});
    Ok(targets.api().put(&format!("/permissions/{{vhost}}/{user}"), &permissions)?)
}

/// A policy that could lose messages, with limits that this run does not reach.
pub fn set_policy(targets: &mut Targets<'_>, fault: &mut Fault) -> Outcome<bool> {
    let definitions = [
        json!({"message-ttl": 86_400_000}),
        json!({"max-length": 10_000_000}),
        json!({"max-length-bytes": 100_000_000_000_u64, "overflow": "drop-head"}),
    ];
    let definition: Value = fault.random.choice(definitions).expect("not empty");
    let queue = *fault.random.choice(WORK_QUEUES.iter()).expect("not empty");
    let policy = json!({"pattern": format!("^{queue}$"), "definition": definition, "apply-to": "queues"});
    targets.outage(
        fault,
        |targets| Ok(targets.api().put("/policies/{vhost}/soak", &policy)?),
        |targets| Ok(targets.api().delete("policies", "soak").map(drop)?),
    )?;
    Ok(true)
}
