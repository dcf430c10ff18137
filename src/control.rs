//! What a running daemon can be told: to read its configuration again, to pause a consumer, to resume it.
//!
//! Owns the commands, their answers and the way from whoever asks (signal, file, admin listener) to the one task that
//! obeys. It never carries anything out.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Commands that wait at a time; those who ask wait for room.
const WAITING: usize = 16;

/// What to do, and where the answer goes. Whoever asked may be gone by then.
#[derive(Debug)]
pub enum Command {
    /// Read the configuration again.
    Reload {
        /// Who wants it, for the log: `SIGHUP`, `admin`, `file`.
        by: &'static str,
        /// What became of it.
        answer: oneshot::Sender<ReloadReport>,
    },
    /// Stop or restart the intake of one consumer.
    Intake {
        /// The consumer's name.
        consumer: String,
        /// Whether it is to be paused.
        pause: bool,
        /// What became of it.
        answer: oneshot::Sender<Result<Intake, ControlError>>,
    },
}

/// What became of a reload. Names of fields and words are a contract; new ones may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Altogether.
    pub outcome: Outcome,
    /// The generation in force now; 1 is the one of the start, each reload that changed anything counts one up.
    pub generation: u64,
    /// Each changed key, sorted by key. Of a rejected configuration: those that could be told.
    pub changes: Vec<Change>,
    /// Why it was rejected, one text for each fault.
    pub problems: Vec<String>,
    /// Whether it was rejected for nothing but what passes, such as a broker that is away: later it may be taken as it is.
    #[serde(default)]
    pub passing: bool,
    /// What a person should know or do besides.
    pub notes: Vec<String>,
}

/// What became of a reload, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The file says what is in force already.
    Unchanged,
    /// All of it is in force.
    Applied,
    /// Part of it is in force; the rest waits for a restart or for a person.
    Partly,
    /// Nothing of it is in force; what was in force before still is.
    Rejected,
}

/// One changed key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Such as `consumers.order.workers`.
    pub key: String,
    /// The value in force before; `null` if the key was not there. Secrets read `[redacted]`.
    pub from: Option<String>,
    /// The value asked for; `null` if the key is gone.
    pub to: Option<String>,
    /// When it is in force.
    pub effect: Effect,
}

/// When a changed key is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Now.
    Live,
    /// After a restart.
    Restart,
    /// Once a person has changed the broker too, for orderd never takes anything away there; a note says what.
    Broker,
}

/// What became of a pause or a resumption. The names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intake {
    /// The consumer.
    pub consumer: String,
    /// Whether it is paused now.
    pub paused: bool,
    /// Whether it was not so before.
    pub changed: bool,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "error")]
pub enum ControlError {
    /// There is no such consumer.
    #[error("there is no consumer {consumer:?}; there are {}", known.join(", "))]
    UnknownConsumer {
        /// The name asked for.
        consumer: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// It could not be written down, so it would be forgotten at a restart; nothing was changed.
    #[error("cannot remember it: {reason}")]
    NotRemembered {
        /// What the system said.
        reason: String,
    },
    /// Former pools of the consumer have not finished what they were handed, and another one would be too many.
    #[error(
        "consumer {consumer:?} was changed too often: {draining} former pools still finish their work; try again later"
    )]
    Busy {
        /// The consumer's name.
        consumer: String,
        /// How many there are.
        draining: usize,
    },
    /// The daemon is still starting, or is stopping.
    #[error("the daemon is starting or stopping; try again later")]
    NotNow,
}

/// The way to the task that obeys. A clone leads there too.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
}

/// What arrives by it.
pub type Commands = mpsc::Receiver<Command>;

impl Control {
    /// Both ends of the way.
    pub fn new() -> (Self, Commands) {
        let (commands, inbox) = mpsc::channel(WAITING);
        (Control { commands }, inbox)
    }

    /// Has the configuration read again, and waits for the verdict, which takes as long as changing the broker's
    /// topology does. Dropping the future gives up waiting, not reloading.
    ///
    /// # Errors
    /// [`ControlError::NotNow`].
    pub async fn reload(&self, by: &'static str) -> Result<ReloadReport, ControlError> {
        self.ask(|answer| Command::Reload { by, answer }).await
    }

    /// Pauses or resumes a consumer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn intake(&self, consumer: String, pause: bool) -> Result<Intake, ControlError> {
        self.ask(|answer| Command::Intake { consumer, pause, answer }).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| ControlError::NotNow)?;
        answered.await.map_err(|_| ControlError::NotNow)
    }
}

impl ReloadReport {
    /// Whether everything asked for is in force.
    pub fn is_in_force(&self) -> bool {
        match self.outcome {
            Outcome::Unchanged | Outcome::Applied => true,
            Outcome::Partly | Outcome::Rejected => false,
        }
    }
}
