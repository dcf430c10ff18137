//! Asks the admin listener of a running daemon, with deadlines and a limit on the answer. It shows nothing.
//!
//! Where that is, it learns from the command line, or from the configuration the daemon runs by; even if that
//! configuration cannot be used any more, for then it must be possible to ask what the daemon makes of it. What may be
//! wrong then, it asks the daemon itself: which file it runs by.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::{AUTHORIZATION, COMMAND_TYPE, COMMAND_WITHIN, bearer};
use crate::chain::chain;
use crate::cli::Exit;
use crate::config::{Admin, Config, LoadError, Secret, Sources, admin_alone, token_in};
use crate::control::ControlError;
use crate::handlers;
use crate::status::Status;
use crate::tls;

/// How long a page may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// How much longer than the daemon the answer to a command is waited for.
const GRACE: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Largest answer, in bytes.
const LARGEST_ANSWER: usize = 8 << 20;

/// Which daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Whom {
    /// Where the daemon answers, if not where its configuration says; that is not read then
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// File with the daemon's token, if it is not the configuration's admin.token_file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The configuration cannot be used.
    #[error("cannot tell where the daemon answers; --address and --token-file can: {}", chain(.0))]
    Load(LoadError),
    /// The file of `--token-file` cannot be used.
    #[error("cannot use the token file {path:?}: {problem}")]
    Token { path: PathBuf, problem: String },
    /// The configuration says that nobody answers.
    #[error(
        "the daemon cannot be asked: admin.listen is {listen} in {config:?}; give it an address, and restart the daemon \
         (to reload it, SIGHUP or `systemctl reload orderd` will do)"
    )]
    Nowhere { listen: &'static str, config: PathBuf },
    /// No HTTP client can be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// Nobody answers.
    #[error(
        "no daemon answers at {address}: start it with `orderd run`, or name the configuration it runs by with --config \
         (this one is {config:?}); if admin.listen was changed since it started, it answers at the former address until \
         it is restarted: name that with --address"
    )]
    Unreachable {
        address: SocketAddr,
        config: PathBuf,
        #[source]
        source: reqwest::Error,
    },
    /// Nobody answers where the command line says.
    #[error("no daemon answers at {address}")]
    NotThere {
        address: SocketAddr,
        #[source]
        source: reqwest::Error,
    },
    /// It does not let us ask.
    #[error("the daemon at {address} refuses to answer ({status}): {said}")]
    Refused { address: SocketAddr, status: StatusCode, said: String },
    /// It answers, but with something else.
    #[error("what answers at {address} is no orderd of this version ({problem})")]
    Foreign { address: SocketAddr, problem: String },
    /// The configuration is broken, and where it seems to say that the daemon answers is another daemon.
    #[error(
        "the daemon at {address} runs by {theirs:?}, not by {ours:?}, which has faults that may hide where its daemon \
         answers: name that with --address"
    )]
    AnotherDaemon { address: SocketAddr, theirs: String, ours: PathBuf },
    /// It understood, and did not do it.
    #[error(transparent)]
    Control(ControlError),
    /// It is too busy, or has not done it yet.
    #[error("the daemon at {address}: {said}")]
    Busy { address: SocketAddr, said: String },
}

impl AskError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            AskError::Load(_) | AskError::Token { .. } | AskError::Nowhere { .. } | AskError::Refused { .. } => {
                Exit::Config
            }
            AskError::Unreachable { .. }
            | AskError::NotThere { .. }
            | AskError::Foreign { .. }
            | AskError::AnotherDaemon { .. }
            | AskError::Busy { .. } => Exit::Unavailable,
            AskError::Client(_) => Exit::Internal,
            AskError::Control(error) => match error {
                ControlError::UnknownConsumer { .. } => Exit::Usage,
                ControlError::NotPersisted { .. } => Exit::Internal,
                ControlError::Busy { .. } | ControlError::NotRunning => Exit::Unavailable,
            },
        }
    }
}

impl Whom {
    /// Who is to be asked. Tells in `err` if the configuration has faults.
    ///
    /// # Errors
    /// The outer one when `err` cannot be written.
    pub(super) fn find(&self, sources: &Sources, err: &mut dyn Write) -> io::Result<Result<Client, AskError>> {
        let token = match &self.token_file {
            Some(path) => match token_in(path) {
                Ok(token) => Some(token),
                Err(problem) => return Ok(Err(AskError::Token { path: path.clone(), problem })),
            },
            None => None,
        };
        if let Some(address) = self.address {
            return Ok(Client::new(address, token, None));
        }
        let path = sources.path();
        let (admin, is_sound) = match Config::load(sources, &handlers::NAMES) {
            Ok(loaded) => (loaded.config.admin, true),
            Err(faults) => match admin_alone(sources) {
                Ok(admin) => {
                    writeln!(
                        err,
                        "orderd: the configuration has faults, which `orderd check` names; asking where it says that the daemon answers"
                    )?;
                    (admin, false)
                }
                Err(_) => return Ok(Err(AskError::Load(faults))),
            },
        };
        let token = token.or_else(|| admin.token.clone());
        let found = listening(&admin, &path).and_then(|address| Client::new(address, token, Some((path, is_sound))));
        Ok(found)
    }
}

/// Where a configuration says that its daemon answers.
fn listening(admin: &Admin, config: &Path) -> Result<SocketAddr, AskError> {
    let nowhere = |listen| AskError::Nowhere { listen, config: config.to_owned() };
    let address = admin.listen.ok_or_else(|| nowhere("\"off\""))?;
    if address.port() == 0 { Err(nowhere("any free port")) } else { Ok(address) }
}

/// Knows where to ask and by which token.
pub(super) struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    token: Option<Secret>,
    /// The configuration that the address is from, and whether it is without faults.
    config: Option<(PathBuf, bool)>,
}

impl Client {
    fn new(mut address: SocketAddr, token: Option<Secret>, config: Option<(PathBuf, bool)>) -> Result<Self, AskError> {
        // What listens everywhere listens here.
        address.set_ip(match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            own => own,
        });
        let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).connect_timeout(CONNECT_DEADLINE);
        let http = client.tls_backend_preconfigured(tls::without_trust()).build().map_err(AskError::Client)?;
        Ok(Client { http, address, token, config })
    }

    /// Asks where this configuration says.
    ///
    /// # Errors
    /// When that is nowhere.
    pub(super) fn of(admin: &Admin, config: &Path) -> Result<Self, AskError> {
        Client::new(listening(admin, config)?, admin.token.clone(), Some((config.to_owned(), true)))
    }

    /// Where it asks.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a path answers within a time: any status, and at most [`LARGEST_ANSWER`] bytes.
    pub(super) async fn get(&self, path: &str, within: Duration) -> Result<(StatusCode, Vec<u8>), AskError> {
        self.exchange(self.http.get(format!("http://{}{path}", self.address)).timeout(within)).await
    }

    /// The status, as it was told and as this version understands it.
    pub(super) async fn status(&self) -> Result<(Value, Status), AskError> {
        let (status, body) = self.get("/api/v1/status", DEADLINE).await?;
        self.is_let_in(status, &body)?;
        if status != StatusCode::OK {
            return Err(self.foreign(status.to_string()));
        }
        let (told, status): (Value, Status) = self.read(&body)?;
        self.verify(&status.daemon.config)?;
        Ok((told, status))
    }

    /// Has a command carried out: the answer, as it was told and as this version understands it.
    pub(super) async fn command<T: DeserializeOwned>(&self, path: &str) -> Result<(Value, T), AskError> {
        if self.config.as_ref().is_some_and(|(_, is_sound)| !is_sound) {
            self.status().await?;
        }
        let request = self.http.post(format!("http://{}{path}", self.address)).timeout(COMMAND_WITHIN + GRACE);
        let (status, body) = self.exchange(request.header("content-type", COMMAND_TYPE)).await?;
        self.is_let_in(status, &body)?;
        match status {
            StatusCode::OK => self.read(&body),
            StatusCode::METHOD_NOT_ALLOWED => Err(self.foreign(status.to_string())),
            _ => match serde_json::from_slice(&body) {
                Ok(error) => Err(AskError::Control(error)),
                Err(_) => {
                    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let said = told["message"].as_str().ok_or_else(|| self.foreign(status.to_string()))?.to_owned();
                    Err(AskError::Busy { address: self.address, said })
                }
            },
        }
    }

    /// A configuration with faults may have lost what it said about its daemon, but the daemon knows its file.
    fn verify(&self, theirs: &str) -> Result<(), AskError> {
        let Some((ours, false)) = &self.config else { return Ok(()) };
        if is_same(ours, Path::new(theirs)) {
            return Ok(());
        }
        Err(AskError::AnotherDaemon { address: self.address, theirs: theirs.to_owned(), ours: ours.clone() })
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), AskError> {
        let address = self.address;
        let unreachable = |source: reqwest::Error| {
            let source = source.without_url();
            match &self.config {
                Some((config, _)) => AskError::Unreachable { address, config: config.clone(), source },
                None => AskError::NotThere { address, source },
            }
        };
        let request = match &self.token {
            Some(token) => request.header(AUTHORIZATION, bearer(token)),
            None => request,
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST_ANSWER {
                return Err(self.foreign(format!("more than {LARGEST_ANSWER} bytes")));
            }
        }
        Ok((status, body))
    }

    fn is_let_in(&self, status: StatusCode, body: &[u8]) -> Result<(), AskError> {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => {
                let said = String::from_utf8_lossy(body).trim().chars().take(200).collect();
                Err(AskError::Refused { address: self.address, status, said })
            }
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<(Value, T), AskError> {
        let foreign = |error: serde_json::Error| self.foreign(error.to_string());
        Ok((serde_json::from_slice(body).map_err(foreign)?, serde_json::from_slice(body).map_err(foreign)?))
    }

    fn foreign(&self, problem: String) -> AskError {
        AskError::Foreign { address: self.address, problem }
    }
}

/// Whether two paths mean one file, as far as can be told: the daemon's may be relative to where it was started.
fn is_same(ours: &Path, theirs: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    let ours = real(ours).unwrap_or_else(|_| ours.to_owned());
    let direct = real(theirs).is_ok_and(|theirs| theirs == ours);
    direct || theirs.is_relative() && ours.ends_with(theirs.strip_prefix(".").unwrap_or(theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_file_is_known_by_its_path_however_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        std::fs::write(&file, "").unwrap();
        let name = directory.path().file_name().unwrap();
        for theirs in [file.clone(), directory.path().join("./orderd.toml"), Path::new(name).join("orderd.toml")] {
            assert!(is_same(&file, &theirs), "{theirs:?}");
        }
        for theirs in ["/etc/orderd/orderd.toml", "derd.toml", "other/orderd.toml", "orderd.toml.bak"] {
            assert!(!is_same(&file, Path::new(theirs)), "{theirs}");
        }
    }
}
