//! `orderd check --connect`: asks whether the servers of notification channels can be used. It sends no notification.

use serde::Serialize;

use crate::config::Config;
use crate::notify::{self, NotifySettings, ProbedServer};

/// The result for one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelServerReport {
    /// The channel.
    pub channel: String,
    /// `host:port`.
    pub address: String,
    /// Why it cannot be used; `None` if it can. Its `code` is the one that a notification would fail with.
    pub error: Option<ChannelServerError>,
}

/// Why the server of a channel cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelServerError {
    /// The failure's stable code, such as `login_refused`.
    pub code: String,
    /// In words.
    pub reason: String,
}

/// Connects to the server of each channel, and logs in to those for e-mail.
pub(super) async fn ask(config: &Config) -> Vec<ChannelServerReport> {
    let Some(settings) = config.notify.constructor::<NotifySettings>() else { return Vec::new() };
    let servers = notify::probe(settings).await.into_iter();
    let report = |ProbedServer { channel, address, error }| {
        // A failure begins with the address, which is shown anyway.
        let begins_with_address = format!("{address}: ");
        let error = error.map(|(code, reason)| ChannelServerError {
            code,
            reason: reason.strip_prefix(&begins_with_address).map_or(reason.clone(), str::to_owned),
        });
        ChannelServerReport { channel, address, error }
    };
    servers.map(report).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::handlers;

    #[tokio::test]
    async fn the_server_of_each_channel_is_asked_and_what_is_wrong_has_its_code() {
        let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (busy_at, away_at) = (busy.local_addr().unwrap(), away.local_addr().unwrap());
        drop(away);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = busy.accept().await {
                let _ = stream.write_all(b"554 5.3.2 not now\r\n").await;
            }
        });
        let file = format!(
            "[notify.email]\ntype = \"smtp\"\naddress = \"{busy_at}\"\nfrom = \"a@example.com\"\n\
             [notify.file]\ntype = \"log\"\n\
             [notify.sms]\ntype = \"webhook\"\nhttp = {{ url = \"https://{away_at}/a\" }}\n\
             [notify.there]\ntype = \"webhook\"\nhttp = {{ url = \"http://{busy_at}/a\" }}\n"
        );
        let loaded = Config::from_bytes(file.as_bytes(), "orderd.toml".into(), &handlers::sources()).unwrap();
        let reports = ask(&loaded.config).await;
        let codes: Vec<_> = reports
            .iter()
            .map(|report| (report.channel.as_str(), report.error.as_ref().map(|error| error.code.as_str())))
            .collect();
        assert_eq!(codes, [("email", Some("smtp_554")), ("sms", Some("unreachable")), ("there", None)]);
        assert_eq!(reports[1].address, away_at.to_string());
        for ChannelServerReport { address, error, .. } in reports {
            assert!(error.is_none_or(|error| !error.reason.contains(&address)), "the address is shown twice");
        }
    }
}
