//! The kinds of faults, and the random plan of a run. Pure: the plan is the same for the same seed.

use fastrand::Rng;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    OrderdKilled,
    OrderdFrozen,
    BrokerKilled,
    BrokerRestarted,
    ConnectionsCut,
    ConnectionsBlackHoled,
    HalfOpenToBroker,
    HalfOpenToOrderd,
    ConnectionsForceClosed,
    MemoryAlarm,
    DiskAlarm,
    ExchangeDeleted,
    QueueDeleted,
    BindingDeleted,
    LedgerLocked,
    DiskFull,
    DiskHung,
    Reload,
    Pause,
}

use FaultKind::*;

impl FaultKind {
    /// Every kind.
    pub const ALL: [FaultKind; 19] = [
        OrderdKilled,
        OrderdFrozen,
        BrokerKilled,
        BrokerRestarted,
        ConnectionsCut,
        ConnectionsBlackHoled,
        HalfOpenToBroker,
        HalfOpenToOrderd,
        ConnectionsForceClosed,
        MemoryAlarm,
        DiskAlarm,
        ExchangeDeleted,
        QueueDeleted,
        BindingDeleted,
        LedgerLocked,
        DiskFull,
        DiskHung,
        Reload,
        Pause,
    ];

    /// Its name in tables and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            OrderdKilled => "orderd_killed",
            OrderdFrozen => "orderd_frozen",
            BrokerKilled => "broker_killed",
            BrokerRestarted => "broker_restarted",
            ConnectionsCut => "connections_cut",
            ConnectionsBlackHoled => "connections_black_holed",
            HalfOpenToBroker => "half_open_to_broker",
            HalfOpenToOrderd => "half_open_to_orderd",
            ConnectionsForceClosed => "connections_force_closed",
            MemoryAlarm => "memory_alarm",
            DiskAlarm => "disk_alarm",
            ExchangeDeleted => "exchange_deleted",
            QueueDeleted => "queue_deleted",
            BindingDeleted => "binding_deleted",
            LedgerLocked => "ledger_locked",
            DiskFull => "disk_full",
            DiskHung => "disk_hung",
            Reload => "reload",
            Pause => "pause",
        }
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<FaultKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether it needs a file system of its own, which only root can mount.
    pub fn needs_mount(self) -> bool {
        matches!(self, DiskFull | DiskHung)
    }

    /// Whether it deletes a part of the topology.
    pub fn deletes_topology(self) -> bool {
        matches!(self, ExchangeDeleted | QueueDeleted | BindingDeleted)
    }

    /// How often it is chosen, relative to the others. A restart of the broker takes long.
    fn weight(self) -> usize {
        match self {
            BrokerKilled | BrokerRestarted => 1,
            _ => 4,
        }
    }
}

/// Chooses `count` faults. Each kind comes once before any is repeated, if there are enough.
pub fn plan(seed: u64, count: usize, kinds: &[FaultKind]) -> Vec<FaultKind> {
    let mut random = Rng::with_seed(seed);
    let weighted: Vec<FaultKind> = kinds.iter().flat_map(|kind| std::iter::repeat_n(*kind, kind.weight())).collect();
    let mut plan: Vec<FaultKind> = kinds.to_vec();
    random.shuffle(&mut plan);
    plan.truncate(count);
    while plan.len() < count
        && let Some(kind) = random.choice(&weighted)
    {
        plan.push(*kind);
    }
    plan
}
