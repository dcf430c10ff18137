//! The kinds of faults as one table, and the random plan of a run. Pure, except for the functions that the table names.

use std::cmp::Ordering;
use std::time::Duration;

use fastrand::Rng;

use super::super::Outcome;
use super::faults::{broker, events, ledger, network, orderd, topology};
use super::targets::Targets;

/// A kind of fault: a row of [`KINDS`].
#[derive(Debug)]
pub struct FaultKind {
    /// Its name in tables and on the command line.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// Carries one out, and returns whether it happened: there may be nothing to do. It waits for no recovery.
    pub inject: fn(&mut Targets<'_>, &mut Fault) -> Outcome<bool>,
    /// Whether orderd may be killed while it lasts, and when it is started again.
    pub kill: Kill,
    /// How often it is chosen, relative to the others: those that take long are rarer.
    pub weight: usize,
    /// Whether it needs file systems of their own, which only root can mount.
    pub needs_mount: bool,
}

/// Whether orderd is killed while a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// The fault does not last, or it has a restart of its own.
    Never,
    /// It may be, and is started again meanwhile: it must wait for the end of the fault.
    RestartMeanwhile,
    /// It may be, and is started again afterwards: until then it would refuse to start, rightly.
    RestartAfterwards,
}

/// One fault.
#[derive(Debug)]
pub struct Fault {
    pub kind: &'static FaultKind,
    pub random: Rng,
    /// How long it lasts, if it does.
    pub length: Duration,
    /// Whether orderd is killed meanwhile.
    pub kill: bool,
}

const fn kind(
    name: &'static str,
    about: &'static str,
    inject: fn(&mut Targets<'_>, &mut Fault) -> Outcome<bool>,
    kill: Kill,
    weight: usize,
) -> FaultKind {
    FaultKind { name, about, inject, kill, weight, needs_mount: false }
}

impl FaultKind {
    const fn on_disk(self) -> FaultKind {
        FaultKind { needs_mount: true, ..self }
    }

    /// Every kind.
    pub fn all() -> Vec<&'static FaultKind> {
        KINDS.iter().collect()
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<&'static FaultKind> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

use Kill::{Never, RestartAfterwards, RestartMeanwhile};

/// Every kind.
static KINDS: [FaultKind; 36] = [
    kind("orderd_killed", "orderd gets SIGKILL and is started again", orderd::kill, Never, 4),
    kind("orderd_restarted", "orderd gets SIGTERM and is started again", orderd::restart, Never, 2),
    kind("orderd_frozen", "orderd gets SIGSTOP, and SIGCONT later", orderd::freeze, Never, 4),
    kind("second_instance", "another orderd starts, and is stopped or killed", orderd::second_instance, Never, 2),
    kind("reload", "orderd gets SIGHUP", orderd::reload, Never, 2),
    kind("workers_changed", "the configuration changes, and orderd gets SIGHUP", orderd::change_workers, Never, 4),
    kind("pause", "a consumer is paused and resumed", orderd::pause, RestartMeanwhile, 4),
    kind("broker_killed", "the broker gets SIGKILL and is started again", broker::kill, RestartMeanwhile, 1),
    kind("broker_restarted", "the broker is stopped and started again", broker::restart, RestartMeanwhile, 1),
    kind("memory_alarm", "the broker has a memory alarm", broker::memory_alarm, RestartMeanwhile, 2),
    kind("disk_alarm", "the broker has a disk alarm", broker::disk_alarm, RestartMeanwhile, 2),
    kind("permissions_taken", "orderd's user may do nothing", broker::take_permissions, RestartAfterwards, 3),
    kind("management_stopped", "the management API is stopped", broker::stop_management, RestartMeanwhile, 1),
    kind("policy_set", "a policy limits a queue", broker::set_policy, RestartAfterwards, 3),
    kind("connections_cut", "connections are closed by the network", network::cut, Never, 4),
    kind("connections_black_holed", "connections carry nothing", network::black_hole, Never, 4),
    kind("half_open_to_broker", "nothing reaches the broker", network::half_open_to_broker, Never, 4),
    kind("half_open_to_orderd", "nothing reaches orderd", network::half_open_to_orderd, Never, 4),
    kind("connections_force_closed", "the broker closes all connections", network::force_close, Never, 4),
    kind("virtual_host_recreated", "the virtual host is deleted", topology::virtual_host, RestartAfterwards, 1),
    kind("exchange_deleted", "an exchange is deleted", topology::exchange, RestartMeanwhile, 4),
    kind("binding_deleted", "a binding is deleted", topology::binding, RestartMeanwhile, 4),
    kind("work_queue_deleted", "a work queue is deleted", topology::work_queue, RestartMeanwhile, 1),
    kind("retry_queue_deleted", "a retry queue is deleted", topology::retry_queue, RestartMeanwhile, 1),
    kind("dead_letter_queue_deleted", "its queue is deleted", topology::dead_letter_queue, RestartMeanwhile, 1),
    kind("unrouted_queue_deleted", "its queue is deleted", topology::unrouted_queue, RestartMeanwhile, 1),
    kind("ledger_locked", "another program locks the ledger", ledger::lock, RestartMeanwhile, 4),
    kind("ledger_moved", "the ledger is moved away and back", ledger::move_away, RestartAfterwards, 3),
    kind("ledger_deleted", "the ledger is deleted and put back", ledger::delete, RestartAfterwards, 3),
    kind("ledger_disk_full", "the ledger's disk is full", ledger::fill_disk, RestartMeanwhile, 4).on_disk(),
    kind("ledger_disk_hung", "the ledger's disk hangs", ledger::hang_disk, RestartAfterwards, 3).on_disk(),
    kind("event_files_moved", "the event files are rotated by another program", events::move_files, Never, 3),
    kind("event_files_deleted", "the event files are deleted", events::delete_files, Never, 3),
    kind("events_disk_full", "the event files' disk is full", events::fill_disk, RestartMeanwhile, 4).on_disk(),
    kind("events_disk_hung", "the event files' disk hangs", events::hang_disk, RestartAfterwards, 3).on_disk(),
    kind("both_disks_full", "both disks are full", ledger::fill_both_disks, RestartMeanwhile, 2).on_disk(),
];

impl PartialEq for FaultKind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for FaultKind {}

/// By their order in the table.
impl Ord for FaultKind {
    fn cmp(&self, other: &Self) -> Ordering {
        let position = |kind: &FaultKind| KINDS.iter().position(|other| other == kind);
        position(self).cmp(&position(other))
    }
}

impl PartialOrd for FaultKind {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Chooses kinds without end, the same for the same seed. Each kind comes once before any is repeated.
pub fn plan(seed: u64, kinds: &[&'static FaultKind]) -> impl Iterator<Item = &'static FaultKind> {
    let mut random = Rng::with_seed(seed);
    let weighted: Vec<_> = kinds.iter().flat_map(|kind| std::iter::repeat_n(*kind, kind.weight)).collect();
    let mut first = kinds.to_vec();
    random.shuffle(&mut first);
    let later = std::iter::from_fn(move || random.choice(&weighted).copied());
    first.into_iter().chain(later)
}

/// The `number`th fault of a run.
pub fn fault(seed: u64, number: usize, kind: &'static FaultKind) -> Fault {
    let mut random = Rng::with_seed(seed.wrapping_add(number as u64 + 1));
    let length = Duration::from_millis(random.u64(1_000..4_000));
    let kill = kind.kill != Kill::Never && random.u8(..3) == 0;
    Fault { kind, random, length, kill }
}
