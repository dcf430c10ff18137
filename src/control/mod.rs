//! Commands to a running daemon: reload the configuration, pause a consumer, resume it.
//!
//! Owns the commands, their answers, and the channel from the senders of commands (signal, file watcher, HTTP) to the one
//! task that carries them out. It carries out no command itself.

mod permit;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

pub use permit::Permit;

/// Maximum number of queued commands. When the queue is full, senders wait.
const MAX_QUEUED_COMMANDS: usize = 16;

/// A command, with the sender of its answer. The receiver may be gone by the time it is answered.
#[derive(Debug)]
pub enum ControlCommand {
    /// Reload the configuration.
    Reload {
        /// What requested it, for the log and the status: `SIGHUP`, `admin` or `file`.
        by: &'static str,
        /// Who requested it, for the journal.
        actor: String,
        /// Whether it may still be carried out.
        permit: Permit,
        /// Receives the result.
        answer: oneshot::Sender<Result<ReloadReport, ControlError>>,
    },
    /// Pause or resume the intake of one consumer.
    SetPaused {
        /// The consumer's name.
        consumer: String,
        /// `true` pauses it, `false` resumes it.
        paused: bool,
        /// Who requested it, for the journal.
        actor: String,
        /// Whether it may still be carried out.
        permit: Permit,
        /// Receives the result.
        answer: oneshot::Sender<Result<PauseReport, ControlError>>,
    },
}

/// The result of a reload. Its JSON form is stable: fields and values stay, new ones may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadReport {
    /// The result as a whole.
    pub outcome: ReloadOutcome,
    /// Generation of the active configuration: 1 at the start, plus 1 for each reload that changed something.
    pub generation: u64,
    /// Each changed key, sorted by key. For a rejected configuration, the changes found before it was rejected.
    pub changes: Vec<ConfigChange>,
    /// How long it took until the changes were active, in milliseconds; `null` if none is. Comparing the broker with the
    /// configuration follows, and may take longer.
    #[serde(default)]
    pub applied_after_ms: Option<u64>,
    /// Why it was rejected, or, if it was not, how the broker differs from the configuration: one text for each problem.
    pub problems: Vec<String>,
    /// It was rejected only for a temporary reason, such as an unreachable broker: the same configuration may be accepted
    /// later.
    #[serde(default)]
    pub temporary: bool,
    /// Warnings, and what must be done outside orderd.
    pub notes: Vec<String>,
}

/// The result of a reload as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// The file does not differ from the active configuration. The broker may: see [`ReloadReport::problems`].
    Unchanged,
    /// All changes are active.
    Applied,
    /// Some changes are active; the others need a restart or a change at the broker. Or the broker does not match the
    /// configuration: see [`ReloadReport::problems`].
    PartlyApplied,
    /// No change is active; the configuration is the same as before.
    Rejected,
}

/// One changed key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigChange {
    /// Such as `consumers.order.workers`.
    pub key: String,
    /// The previous value; `null` for a new key. A secret is shown as `[redacted]`.
    pub from: Option<String>,
    /// The new value; `null` for a removed key.
    pub to: Option<String>,
    /// When the change becomes active.
    pub effect: Effect,
}

/// When a change becomes active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// With the reload.
    Live,
    /// After a restart.
    Restart,
    /// Once somebody changes the broker, since orderd never removes anything there. A note says what to do.
    Broker,
}

/// The result of a pause or a resume. Its JSON form is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseReport {
    /// The consumer's name.
    pub consumer: String,
    /// Whether the consumer is paused now.
    pub paused: bool,
    /// `false` if it was already in this state before the command.
    pub changed: bool,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "error")]
pub enum ControlError {
    /// There is no such consumer.
    #[error("unknown consumer {consumer:?}; known consumers: {}", known.join(", "))]
    UnknownConsumer {
        /// The name in the command.
        consumer: String,
        /// The names of all consumers.
        known: Vec<String>,
    },
    /// It could not be written to disk, so it would be lost at a restart. Nothing was changed.
    #[error("cannot write the pause to disk, nothing changed: {reason}")]
    NotPersisted {
        /// The operating system's error.
        reason: String,
    },
    /// The consumer's former pools are still draining, and one more would exceed the limit.
    #[error("consumer {consumer:?} was changed too often: {draining} former pools are still draining; try again later")]
    Busy {
        /// The consumer's name.
        consumer: String,
        /// How many pools are draining.
        draining: usize,
    },
    /// Its time was over, or its caller was gone, before it began. Nothing was changed.
    #[error(
        "not carried out: the time for it was over before it began, or its sender no longer waited; nothing changed"
    )]
    Expired,
    /// The daemon is still starting, or is stopping.
    #[error("the daemon is starting or stopping; try again later")]
    NotRunning,
}

/// Handle to the task that carries out commands; cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<ControlCommand>,
}

/// The receiving end of [`Control`].
pub type CommandReceiver = mpsc::Receiver<ControlCommand>;

impl Control {
    /// Creates a handle and its receiving end.
    pub fn new() -> (Self, CommandReceiver) {
        let (commands, receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
        (Control { commands }, receiver)
    }

    /// Reloads the configuration and waits for the result, which takes as long as comparing the broker with it does.
    /// Dropping the future stops waiting, not the reload: `permit` decides. `by` names what requested it, `actor` who did.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] or [`ControlError::Expired`].
    pub async fn reload(&self, by: &'static str, actor: String, permit: Permit) -> Result<ReloadReport, ControlError> {
        self.send(|answer| ControlCommand::Reload { by, actor, permit, answer }).await?
    }

    /// Pauses or resumes a consumer. Dropping the future stops waiting, not the command: `permit` decides.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn set_paused(
        &self,
        consumer: String,
        paused: bool,
        actor: String,
        permit: Permit,
    ) -> Result<PauseReport, ControlError> {
        self.send(|answer| ControlCommand::SetPaused { consumer, paused, actor, permit, answer }).await?
    }

    async fn send<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> ControlCommand) -> Result<T, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| ControlError::NotRunning)?;
        answered.await.map_err(|_| ControlError::NotRunning)
    }
}
