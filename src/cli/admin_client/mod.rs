//! HTTP client for the admin listener of a running daemon, with deadlines and a limit on answers. It prints nothing.

mod error;
mod reading;
mod target;
#[cfg(test)]
pub(super) mod test_server;

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(super) use error::AdminClientError;
pub(super) use reading::{DocumentLines, Query};
pub(super) use target::DaemonTarget;

use super::local_actor::os_user;
use crate::admin::{AUTHORIZATION, COMMAND_CONTENT_TYPE, LOCAL_USER, VALID_UNTIL, bearer};
use crate::config::{Admin, Secret, Sources};
use crate::status::Status;
use crate::tls;

/// Deadline of a request that only reads.
const READ_DEADLINE: Duration = Duration::from_secs(15);
/// Deadline of a request that asks for an action on dead letters. The daemon gives up after 20 s, 10 of which are for the body to arrive.
const ACTION_DEADLINE: Duration = Duration::from_secs(30);
/// How long to wait for the answer to a command, beyond the daemon's own deadline.
const COMMAND_GRACE: Duration = Duration::from_secs(6);
/// Deadline of a connection attempt.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Maximum size of an answer, in bytes: a body of 16 MiB in Base64, and more.
const MAX_ANSWER_BYTES: usize = 24 << 20;
/// Maximum length of the message of a rejection that is shown, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// Client for one daemon.
pub(super) struct AdminClient {
    http: reqwest::Client,
    address: SocketAddr,
    token: Option<Secret>,
    /// The configuration file the address was read from; `None` for `--address`.
    config: Option<ConfigFile>,
}

/// The configuration file that an address was read from.
struct ConfigFile {
    path: PathBuf,
    /// `false` if it has errors, so that the address may belong to another daemon.
    is_valid: bool,
}

impl AdminClient {
    fn new(
        mut address: SocketAddr,
        token: Option<Secret>,
        config: Option<ConfigFile>,
    ) -> Result<Self, AdminClientError> {
        // A daemon that listens on all addresses is asked on the loopback address.
        address.set_ip(match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            specific => specific,
        });
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .tls_backend_preconfigured(tls::without_trust())
            .build()
            .map_err(AdminClientError::Client)?;
        Ok(AdminClient { http, address, token, config })
    }

    /// A client for the daemon of a valid configuration.
    ///
    /// # Errors
    /// [`AdminClientError::NoAddress`] or [`AdminClientError::Client`].
    pub(super) fn from_config(admin: &Admin, sources: &Sources) -> Result<Self, AdminClientError> {
        let path = sources.path();
        let address = target::listen_address(admin, &path)?;
        AdminClient::new(address, target::local_token(sources), Some(ConfigFile { path, is_valid: true }))
    }

    /// Whether it sends a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The daemon's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gets a path, within a deadline. Any status counts as an answer; a body may have at most [`MAX_ANSWER_BYTES`].
    pub(super) async fn get(&self, path: &str, within: Duration) -> Result<(StatusCode, Vec<u8>), AdminClientError> {
        self.exchange(self.http.get(format!("http://{}{path}", self.address)).timeout(within)).await
    }

    /// The daemon's status: as JSON, and as this version understands it.
    pub(super) async fn status(&self) -> Result<(Value, Status), AdminClientError> {
        let (code, body) = self.get("/api/v1/status", READ_DEADLINE).await?;
        self.check_accepted(code, &body)?;
        if code != StatusCode::OK {
            return Err(self.not_orderd(code.to_string()));
        }
        let (json, status): (Value, Status) = self.parse(&body)?;
        self.check_daemon(&status.daemon.config)?;
        Ok((json, status))
    }

    /// Sends a command. Returns the answer: as JSON, and as this version understands it.
    ///
    /// The daemon begins it within `time`, or never. An answer is awaited a little longer.
    pub(super) async fn command<T: DeserializeOwned>(
        &self,
        path: &str,
        time: Duration,
    ) -> Result<(Value, T), AdminClientError> {
        if self.config.as_ref().is_some_and(|config| !config.is_valid) {
            // Fails if the address belongs to another daemon.
            self.status().await?;
        }
        let request = self.http.post(format!("http://{}{path}", self.address)).timeout(time + COMMAND_GRACE);
        let valid_until = Timestamp::now() + time;
        let request = request.header("content-type", COMMAND_CONTENT_TYPE).header(VALID_UNTIL, valid_until.to_string());
        let (code, body) = self.exchange(request).await.map_err(|error| match error {
            AdminClientError::NoAnswer { address } => AdminClientError::NoAnswerToCommand { address },
            error => error,
        })?;
        self.check_accepted(code, &body)?;
        match code {
            StatusCode::OK => self.parse(&body),
            StatusCode::METHOD_NOT_ALLOWED => Err(self.not_orderd(code.to_string())),
            _ => Err(match serde_json::from_slice(&body) {
                Ok(error) => AdminClientError::Control(error),
                Err(_) => self.busy(code, &body),
            }),
        }
    }

    /// Sends a request about dead letters, and returns the answer: as JSON, and as this version understands it. `body`: none for what
    /// only reads.
    pub(super) async fn dead_letters<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Value, T), AdminClientError> {
        if body.is_some() && self.config.as_ref().is_some_and(|config| !config.is_valid) {
            // Fails if the address belongs to another daemon.
            self.status().await?;
        }
        let url = format!("http://{}/api/v1/dead-letters/{path}", self.address);
        let request = match body {
            None => self.http.get(url).timeout(READ_DEADLINE),
            Some(body) => {
                let request = self.http.post(url).timeout(ACTION_DEADLINE);
                request.header("content-type", COMMAND_CONTENT_TYPE).body(body.to_string())
            }
        };
        let (code, answer) = self.exchange(request).await?;
        self.check_accepted(code, &answer)?;
        let message = || serde_json::from_slice::<Value>(&answer).ok()?["message"].as_str().map(str::to_owned);
        match code {
            StatusCode::OK => self.parse(&answer),
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
                Err(match message() {
                    Some(message) => {
                        let is_usage = matches!(code, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE);
                        AdminClientError::Refused { message, is_usage }
                    }
                    None => self.not_orderd(code.to_string()),
                })
            }
            _ => Err(self.busy(code, &answer)),
        }
    }

    /// The error for an answer that is neither a result nor a [`ControlError`](crate::control::ControlError).
    fn busy(&self, code: StatusCode, body: &[u8]) -> AdminClientError {
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = json["error"].as_str().unwrap_or_default();
        let is_begun = !matches!(error, "not_running" | "body_timeout") && !error.starts_with("too_many_");
        match json["message"].as_str() {
            Some(message) => AdminClientError::Busy { address: self.address, message: message.to_owned(), is_begun },
            None => self.not_orderd(code.to_string()),
        }
    }

    /// Checks that the daemon runs with our configuration file. This matters only if our file has errors, so that the address
    /// read from it may be wrong. `theirs` is the daemon's file.
    fn check_daemon(&self, theirs: &str) -> Result<(), AdminClientError> {
        match &self.config {
            Some(ConfigFile { path: ours, is_valid: false }) if !is_same_file(ours, Path::new(theirs)) => {
                Err(AdminClientError::AnotherDaemon {
                    address: self.address,
                    theirs: theirs.to_owned(),
                    ours: ours.clone(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), AdminClientError> {
        let mut response = self.send(request).await?;
        let code = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(self.not_orderd(format!("more than {MAX_ANSWER_BYTES} bytes")));
            }
        }
        Ok((code, body))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, AdminClientError> {
        let request = match &self.token {
            Some(token) => request.header(AUTHORIZATION, bearer(token)).header(LOCAL_USER, os_user()),
            None => request,
        };
        request.send().await.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, source: reqwest::Error) -> AdminClientError {
        let address = self.address;
        if source.is_timeout() && !source.is_connect() {
            return AdminClientError::NoAnswer { address };
        }
        let (problem, is_sent) = (innermost(&source), !source.is_connect());
        match &self.config {
            Some(config) => AdminClientError::Unreachable { address, config: config.path.clone(), problem, is_sent },
            None => AdminClientError::UnreachableAddress { address, problem, is_sent },
        }
    }

    fn check_accepted(&self, status: StatusCode, body: &[u8]) -> Result<(), AdminClientError> {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => {
                let json: Value = serde_json::from_slice(body).unwrap_or_default();
                let text = String::from_utf8_lossy(body);
                let message = json["message"].as_str().unwrap_or(text.trim()).chars().take(MAX_MESSAGE_CHARS).collect();
                Err(AdminClientError::Rejected { address: self.address, status, message })
            }
            _ => Ok(()),
        }
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<(Value, T), AdminClientError> {
        let not_orderd = |error: serde_json::Error| self.not_orderd(error.to_string());
        Ok((serde_json::from_slice(body).map_err(not_orderd)?, serde_json::from_slice(body).map_err(not_orderd)?))
    }

    /// The error for an answer that is not what this version expects.
    pub(super) fn unusable_answer(&self, problem: &str) -> AdminClientError {
        self.not_orderd(problem.to_owned())
    }

    fn not_orderd(&self, problem: String) -> AdminClientError {
        AdminClientError::NotOrderd { address: self.address, problem }
    }
}

/// The first cause of an error. Those above it only say which layer has failed.
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    // The number of a system error says nothing to a person.
    let text = error.to_string();
    text.split_once(" (os error").map_or_else(|| text.clone(), |(text, _)| text.to_owned())
}

/// Whether two paths lead to the same file, as far as this process can determine: the daemon's path may be relative to
/// the directory in which it was started.
fn is_same_file(ours: &Path, theirs: &Path) -> bool {
    let resolve = |path: &Path| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    let ours = resolve(ours).unwrap_or_else(|_| ours.to_owned());
    let is_same = resolve(theirs).is_ok_and(|theirs| theirs == ours);
    is_same || theirs.is_relative() && ours.ends_with(theirs.strip_prefix(".").unwrap_or(theirs))
}

#[cfg(test)]
mod tests {
    use super::test_server::Answer;
    use super::*;

    #[test]
    fn a_system_error_is_named_without_its_number() {
        assert_eq!(innermost(&std::io::Error::from_raw_os_error(111)), "Connection refused");
        assert_eq!(innermost(&std::io::Error::other("timed out")), "timed out");
    }

    #[tokio::test]
    async fn only_an_answer_that_nothing_was_begun_says_that_nothing_was_done() {
        let asked = async |answer| {
            let client = AdminClient::new(test_server::serve(vec![answer]).await, None, None).unwrap();
            let body = serde_json::json!({});
            client.dead_letters::<Value>("hold", Some(&body)).await.unwrap_err()
        };
        let refused = |status, error| Answer::Json(status, format!(r#"{{"error":"{error}","message":"x"}}"#));
        for (answer, may_be_done) in [
            (Answer::Lost, true),
            (Answer::Json(200, "[".to_owned()), true),
            (refused(503, "answer_timeout"), true),
            (refused(503, "ledger"), true),
            (refused(503, "too_many_edits"), false),
            (refused(503, "not_running"), false),
            (refused(409, "conflict"), false),
            (refused(401, "no_token"), false),
        ] {
            let error = asked(answer.clone()).await;
            assert_eq!(error.may_be_done(), may_be_done, "{answer:?}: {error:?}");
        }
        // Nothing listens on this port.
        let client = AdminClient::new("127.0.0.1:1".parse().unwrap(), None, None).unwrap();
        let error = client.dead_letters::<Value>("hold", Some(&serde_json::json!({}))).await.unwrap_err();
        assert!(!error.may_be_done(), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_is_waited_for_longer_than_the_daemon_gives_it() {
        let client = AdminClient::new(test_server::serve(vec![Answer::Silence]).await, None, None).unwrap();
        let begun = tokio::time::Instant::now();
        let asked = client.dead_letters::<Value>("hold", Some(&serde_json::json!({}))).await;
        assert!(matches!(asked, Err(AdminClientError::NoAnswer { .. })));
        assert!(begun.elapsed() > Duration::from_secs(25), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_selection_that_is_too_large_is_a_wrong_argument_and_no_absent_daemon() {
        let answer = r#"{"error":"body_too_large","message":"the body must have at most 262144 bytes"}"#;
        let answer = Answer::Json(413, answer.to_owned());
        let client = AdminClient::new(test_server::serve(vec![answer]).await, None, None).unwrap();
        let refused = client.dead_letters::<Value>("hold", Some(&serde_json::json!({}))).await.unwrap_err();
        assert_eq!(refused.exit(), crate::cli::Exit::Usage, "{refused:?}");
    }

    /// Dead letters may be changed although nobody waits for the answer.
    #[tokio::test]
    async fn only_a_command_that_is_not_answered_is_said_not_to_be_carried_out_later() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = AdminClient::new(listener.local_addr().unwrap(), None, None).unwrap();
        let error = |is_command: bool| {
            let (client, listener) = (&client, &listener);
            async move {
                let asked = async {
                    let body = serde_json::json!({});
                    if is_command {
                        client.command::<Value>("/api/v1/reload", Duration::ZERO).await
                    } else {
                        client.dead_letters::<Value>("hold", Some(&body)).await
                    }
                };
                let accepted = async {
                    let accepted = listener.accept().await.unwrap();
                    tokio::time::pause();
                    accepted
                };
                let (answer, _connection) = tokio::join!(asked, accepted);
                tokio::time::resume();
                answer.unwrap_err()
            }
        };
        let (command, action) = (error(true).await, error(false).await);
        assert!(matches!(command, AdminClientError::NoAnswerToCommand { .. }), "{command}");
        assert!(matches!(action, AdminClientError::NoAnswer { .. }), "{action}");
        let promises = |error: AdminClientError| error.to_string().contains("not carried out later");
        assert_eq!((promises(command), promises(action)), (true, false));
    }

    #[test]
    fn a_daemons_file_is_recognized_however_its_path_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        std::fs::write(&file, "").unwrap();
        let name = directory.path().file_name().unwrap();
        for theirs in [file.clone(), directory.path().join("./orderd.toml"), Path::new(name).join("orderd.toml")] {
            assert!(is_same_file(&file, &theirs), "{theirs:?}");
        }
        for theirs in ["/etc/orderd/orderd.toml", "derd.toml", "other/orderd.toml", "orderd.toml.bak"] {
            assert!(!is_same_file(&file, Path::new(theirs)), "{theirs}");
        }
    }
}
