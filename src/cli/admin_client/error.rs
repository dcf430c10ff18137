//! Why a daemon's admin listener gave no usable answer, and the exit code for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reqwest::StatusCode;

use crate::chain::chain;
use crate::cli::Exit;
use crate::config::{DEFAULT_PATH, LoadError};
use crate::control::ControlError;

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum AdminClientError {
    /// The configuration cannot be loaded.
    #[error("cannot find the daemon's address, use --address and --token-file: {}", chain(.0))]
    Load(LoadError),
    /// The file of `--token-file` cannot be used.
    #[error("cannot use token file {path:?}: {problem}")]
    TokenFile { path: PathBuf, problem: String },
    /// The configuration has no address of the admin listener.
    #[error(
        "cannot ask the daemon: admin.listen is {listen} in {config:?}; set it to an address and restart the daemon \
         (to reload the configuration without it, use SIGHUP or `systemctl reload orderd`)"
    )]
    NoAddress { listen: &'static str, config: PathBuf },
    /// The HTTP client cannot be created.
    #[error("cannot create an HTTP client")]
    Client(#[source] reqwest::Error),
    /// Nothing answers at the address in the configuration. `is_sent`: the connection was lost once there was one.
    #[error(
        "no daemon answers at {address} ({problem}): start it with `{}`, or name another one with --config (now {config:?}) or --address",
        start_command(config)
    )]
    Unreachable { address: SocketAddr, config: PathBuf, problem: String, is_sent: bool },
    /// Nothing answers at the address of `--address`. `is_sent`: the connection was lost once there was one.
    #[error("no daemon answers at {address}: {problem}")]
    UnreachableAddress { address: SocketAddr, problem: String, is_sent: bool },
    /// The daemon accepts the connection and does not answer. What was asked for may still be done.
    #[error("the daemon at {address} does not answer in time: it is stopped or overloaded")]
    NoAnswer { address: SocketAddr },
    /// The same, of a command. Since the daemon looks whether its client still waits, one that had not begun is not carried out later.
    #[error(
        "the daemon at {address} does not answer in time: it is stopped or overloaded; a command that it has not begun by now \
         is not carried out later, see `orderd status`"
    )]
    NoAnswerToCommand { address: SocketAddr },
    /// The daemon rejects the request, as for a wrong token.
    #[error("the daemon at {address} rejects the request ({status}): {message}{}", remedy(*status))]
    Rejected { address: SocketAddr, status: StatusCode, message: String },
    /// The answer is not one of orderd's.
    #[error("the server at {address} is not an orderd of this version ({problem})")]
    NotOrderd { address: SocketAddr, problem: String },
    /// The configuration has errors, and another daemon answers at the address found in it.
    #[error(
        "the daemon at {address} uses the configuration {theirs:?}, not {ours:?}, whose errors make its address unreliable; \
         use --address"
    )]
    AnotherDaemon { address: SocketAddr, theirs: String, ours: PathBuf },
    /// The daemon understood the command and did not carry it out.
    #[error(transparent)]
    Control(ControlError),
    /// The daemon does not carry out a request about dead letters.
    #[error("{message}")]
    Refused { message: String, is_usage: bool },
    /// A long answer has ended before its end.
    #[error("the daemon at {address} has not sent all ({problem}): what was written is not complete; try again")]
    CutOff { address: String, problem: String },
    /// The daemon is too busy, or has not finished the command in time. `is_begun`: it may have begun it.
    #[error("the daemon at {address}: {message}")]
    Busy { address: SocketAddr, message: String, is_begun: bool },
}

/// How the daemon of a configuration is started on this machine.
fn start_command(config: &Path) -> &'static str {
    // As sd_booted(3). The unit has the default configuration.
    let is_service = config == Path::new(DEFAULT_PATH) && Path::new("/run/systemd/system").is_dir();
    if is_service { "systemctl start orderd" } else { "orderd run" }
}

/// What to do about a rejection.
fn remedy(status: StatusCode) -> &'static str {
    if status == StatusCode::UNAUTHORIZED {
        "; name a file with the token of a user in admin.users with --token-file"
    } else {
        ""
    }
}

impl AdminClientError {
    /// Whether the daemon may have carried out what it was asked for, or a part of it: no answer says that it has not.
    pub(in crate::cli) fn may_be_done(&self) -> bool {
        match self {
            AdminClientError::Unreachable { is_sent, .. } | AdminClientError::UnreachableAddress { is_sent, .. } => {
                *is_sent
            }
            AdminClientError::Busy { is_begun, .. } => *is_begun,
            // Also an answer that this version does not understand.
            AdminClientError::NoAnswer { .. }
            | AdminClientError::NoAnswerToCommand { .. }
            | AdminClientError::CutOff { .. }
            | AdminClientError::NotOrderd { .. } => true,
            AdminClientError::Load(_)
            | AdminClientError::TokenFile { .. }
            | AdminClientError::NoAddress { .. }
            | AdminClientError::Client(_)
            | AdminClientError::Rejected { .. }
            | AdminClientError::AnotherDaemon { .. }
            | AdminClientError::Control(_)
            | AdminClientError::Refused { .. } => false,
        }
    }

    /// The exit code of a command that fails with this error.
    pub(in crate::cli) fn exit(&self) -> Exit {
        match self {
            AdminClientError::Load(_) | AdminClientError::TokenFile { .. } | AdminClientError::NoAddress { .. } => {
                Exit::Config
            }
            AdminClientError::Rejected { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => Exit::Denied,
            // The address is not one that the daemon answers to.
            AdminClientError::Rejected { .. } => Exit::Config,
            AdminClientError::Unreachable { .. }
            | AdminClientError::UnreachableAddress { .. }
            | AdminClientError::NoAnswer { .. }
            | AdminClientError::NoAnswerToCommand { .. }
            | AdminClientError::NotOrderd { .. }
            | AdminClientError::AnotherDaemon { .. }
            | AdminClientError::CutOff { .. }
            | AdminClientError::Busy { .. } => Exit::Unavailable,
            AdminClientError::Refused { is_usage: true, .. } => Exit::Usage,
            AdminClientError::Refused { is_usage: false, .. } => Exit::Refused,
            AdminClientError::Client(_) => Exit::Internal,
            AdminClientError::Control(error) => match error {
                ControlError::UnknownConsumer { .. } => Exit::Usage,
                ControlError::NotPersisted { .. } => Exit::Internal,
                ControlError::Busy { .. } | ControlError::NotRunning | ControlError::Expired => Exit::Unavailable,
            },
        }
    }
}
