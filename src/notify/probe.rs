//! Asks whether the servers of channels can be used, for `orderd check --connect`: connects, and logs in to SMTP servers. It never
//! sends a notification, and requests nothing of a webhook.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::settings::{ChannelKind, ChannelSettings, NotifySettings};
use super::smtp::SmtpProvider;
use super::templates::Templates;
use crate::chain::chain;
use crate::config::duration;
use crate::recovery::Failure;
use crate::steps::HttpSettings;
use crate::tls::{TlsError, TlsReloader};

/// The longest time for one server; less for a channel with a shorter timeout.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Whether the server of one channel can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbedServer {
    /// The channel.
    pub channel: String,
    /// `host:port`.
    pub address: String,
    /// Why it cannot be used, with the code that a notification would fail with.
    pub error: Option<(String, String)>,
}

/// Asks the servers of all channels at the same time.
pub async fn probe(settings: &NotifySettings) -> Vec<ProbedServer> {
    let probes = settings.0.iter().map(|(name, channel)| probe_channel(name, channel));
    join_all(probes).await.into_iter().flatten().collect()
}

/// `None`: it is a file.
async fn probe_channel(name: &str, channel: &ChannelSettings) -> Option<ProbedServer> {
    let limit = channel.timeout.min(MAX_TIME);
    let (address, result) = match &channel.kind {
        ChannelKind::Smtp(smtp, texts) => {
            let templates =
                Templates::new(&texts.files, &texts.options).expect("they were checked when they were read");
            let provider = SmtpProvider::new((**smtp).clone(), Arc::new(templates));
            let result = provider.probe(limit).await.map_err(|failure| failure.failure);
            (smtp.address.to_string(), result)
        }
        ChannelKind::Webhook(http, ..) => {
            let host = http.url.host_str().unwrap_or_default();
            let port = http.url.port_or_known_default().unwrap_or_default();
            let result = match timeout(limit, connect(http, host, port)).await {
                Ok(result) => result,
                Err(_) => Err(failure("timed_out", format!("no connection within {}", duration::format(limit)))),
            };
            (format!("{host}:{port}"), result)
        }
        ChannelKind::Log => return None,
    };
    let error = result.err().map(|Failure { code, reason, .. }| (code, reason));
    Some(ProbedServer { channel: name.to_owned(), address, error })
}

async fn connect(http: &HttpSettings, host: &str, port: u16) -> Result<(), Failure> {
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|error| failure("unreachable", error.to_string()))?;
    if http.url.scheme() != "https" {
        return Ok(());
    }
    let tls = TlsReloader::new(&*http.section, http.tls.clone());
    let read = tokio::task::spawn_blocking(move || tls.read()).await;
    let loaded = read.expect("reading files neither panics nor is cancelled");
    let loaded = loaded.map_err(|error| failure("tls_failed", chain(&error)))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failure("tls_failed", error.to_string()))?;
    let established = TlsConnector::from(loaded.config).connect(name, stream).await;
    established.map(drop).map_err(|error| {
        let tls = TlsError::find_in_chain(&error, loaded.identity.is_some());
        failure("tls_failed", tls.map_or_else(|| chain(&error), |tls| chain(&tls)))
    })
}

fn failure(code: &str, reason: String) -> Failure {
    Failure::new(crate::recovery::FailureKind::Transient, code, reason)
}
