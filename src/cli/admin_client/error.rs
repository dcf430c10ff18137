//! Why the admin listener of a daemon gave no answer, and the exit code for it.

use std::net::SocketAddr;
use std::path::PathBuf;

use reqwest::StatusCode;

use crate::chain::chain;
use crate::cli::Exit;
use crate::config::LoadError;
use crate::control::ControlError;

/// Why there is no answer.
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
         (SIGHUP and `systemctl reload orderd` reload the configuration without it)"
    )]
    NoAddress { listen: &'static str, config: PathBuf },
    /// No HTTP client can be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// Nothing answers at the address in the configuration.
    #[error(
        "no daemon answers at {address}: start it with `orderd run`, or name its configuration file with --config (now \
         {config:?}); if admin.listen was changed since the daemon started, name its former address with --address"
    )]
    Unreachable {
        address: SocketAddr,
        config: PathBuf,
        #[source]
        source: reqwest::Error,
    },
    /// Nothing answers at the address of `--address`.
    #[error("no daemon answers at {address}")]
    UnreachableAddress {
        address: SocketAddr,
        #[source]
        source: reqwest::Error,
    },
    /// The daemon rejects the request, as for a wrong token.
    #[error("the daemon at {address} rejects the request ({status}): {message}")]
    Rejected { address: SocketAddr, status: StatusCode, message: String },
    /// The answer is not one of orderd's.
    #[error("the server at {address} is not an orderd of this version ({problem})")]
    NotOrderd { address: SocketAddr, problem: String },
    /// The configuration has errors, and another daemon answers at the address found in it.
    #[error(
        "the daemon at {address} runs with {theirs:?}, not with {ours:?}, whose errors may hide its daemon's address; use \
         --address"
    )]
    AnotherDaemon { address: SocketAddr, theirs: String, ours: PathBuf },
    /// The daemon understood the command and did not carry it out.
    #[error(transparent)]
    Control(ControlError),
    /// The daemon is too busy, or has not finished the command in time.
    #[error("the daemon at {address}: {message}")]
    Busy { address: SocketAddr, message: String },
}

impl AdminClientError {
    /// The exit code of a command that fails with this error.
    pub(in crate::cli) fn exit(&self) -> Exit {
        match self {
            AdminClientError::Load(_)
            | AdminClientError::TokenFile { .. }
            | AdminClientError::NoAddress { .. }
            | AdminClientError::Rejected { .. } => Exit::Config,
            AdminClientError::Unreachable { .. }
            | AdminClientError::UnreachableAddress { .. }
            | AdminClientError::NotOrderd { .. }
            | AdminClientError::AnotherDaemon { .. }
            | AdminClientError::Busy { .. } => Exit::Unavailable,
            AdminClientError::Client(_) => Exit::Internal,
            AdminClientError::Control(error) => match error {
                ControlError::UnknownConsumer { .. } => Exit::Usage,
                ControlError::NotPersisted { .. } => Exit::Internal,
                ControlError::Busy { .. } | ControlError::NotRunning => Exit::Unavailable,
            },
        }
    }
}
