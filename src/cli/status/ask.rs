//! Asks the admin listener of a running daemon, with deadlines and a limit on the answer. It shows nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::redirect::Policy;
use serde_json::Value;

use crate::admin::{AUTHORIZATION, bearer};
use crate::cli::Exit;
use crate::config::{Admin, Secret};
use crate::monitor::status::Status;
use crate::tls;

/// How long the answer may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Largest answer, in bytes.
const LARGEST_ANSWER: usize = 8 << 20;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum AskError {
    /// The configuration says that nobody answers.
    #[error(
        "the daemon cannot be asked: admin.listen is {listen} in {config:?}; give it an address, and restart the daemon"
    )]
    Nowhere { listen: &'static str, config: PathBuf },
    /// No HTTP client can be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// Nobody answers.
    #[error(
        "no daemon answers at {address}: start it with `orderd run`, or name the configuration it runs by with --config \
         (this one is {config:?})"
    )]
    Unreachable {
        address: SocketAddr,
        config: PathBuf,
        #[source]
        source: reqwest::Error,
    },
    /// It does not let us ask.
    #[error("the daemon at {address} refuses to answer ({status}): {said}")]
    Refused { address: SocketAddr, status: StatusCode, said: String },
    /// It answers, but with something else.
    #[error("what answers at {address} is no orderd of this version ({problem})")]
    Foreign { address: SocketAddr, problem: String },
}

impl AskError {
    pub(in crate::cli) fn exit(&self) -> Exit {
        match self {
            AskError::Nowhere { .. } | AskError::Refused { .. } => Exit::Config,
            AskError::Unreachable { .. } | AskError::Foreign { .. } => Exit::Unavailable,
            AskError::Client(_) => Exit::Internal,
        }
    }
}

/// Knows where to ask and by which token.
pub(in crate::cli) struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    token: Option<Secret>,
    config: PathBuf,
}

impl Client {
    pub(in crate::cli) fn new(admin: &Admin, config: &Path) -> Result<Self, AskError> {
        let nowhere = |listen| AskError::Nowhere { listen, config: config.to_owned() };
        let mut address = admin.listen.ok_or_else(|| nowhere("\"off\""))?;
        if address.port() == 0 {
            return Err(nowhere("any free port"));
        }
        // What listens everywhere listens here.
        address.set_ip(match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            own => own,
        });
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .tls_backend_preconfigured(tls::unused())
            .build()
            .map_err(AskError::Client)?;
        Ok(Client { http, address, token: admin.token.clone(), config: config.to_owned() })
    }

    /// Where it asks.
    pub(in crate::cli) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The status, as it was told and as this version understands it.
    pub(super) async fn status(&self) -> Result<(Value, Status), AskError> {
        let address = self.address;
        let foreign = |problem: String| AskError::Foreign { address, problem };
        let (status, body) = self.get("/api/v1/status", DEADLINE).await?;
        let said = || String::from_utf8_lossy(&body).trim().chars().take(200).collect();
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => {
                return Err(AskError::Refused { address, status, said: said() });
            }
            other => return Err(foreign(format!("{other}"))),
        }
        let told: Value = serde_json::from_slice(&body).map_err(|error| foreign(error.to_string()))?;
        let status = serde_json::from_slice(&body).map_err(|error| foreign(error.to_string()))?;
        Ok((told, status))
    }

    /// What a path answers within a time: any status, and at most [`LARGEST_ANSWER`] bytes.
    pub(in crate::cli) async fn get(&self, path: &str, within: Duration) -> Result<(StatusCode, Vec<u8>), AskError> {
        let address = self.address;
        let unreachable = |source: reqwest::Error| AskError::Unreachable {
            address,
            config: self.config.clone(),
            source: source.without_url(),
        };
        let mut request = self.http.get(format!("http://{address}{path}")).timeout(within);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, bearer(token));
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST_ANSWER {
                return Err(AskError::Foreign { address, problem: format!("more than {LARGEST_ANSWER} bytes") });
            }
        }
        Ok((response.status(), body))
    }
}
