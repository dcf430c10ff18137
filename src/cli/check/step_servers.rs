//! `orderd check --connect`: asks whether the servers of steps accept connections. It sends nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use crate::config::{Config, duration};

/// How long to wait for each server.
const DEADLINE: Duration = Duration::from_secs(5);

/// The result of connecting to one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepServerReport {
    /// `host:port`.
    pub address: String,
    /// The steps that it performs, as `<consumer>.<step>`, and the undos, as `<consumer>.<step>.undo`.
    pub steps: Vec<String>,
    /// Why it does not accept connections; `None` if it does.
    pub error: Option<String>,
}

/// Connects to each server once, whatever the number of its steps.
pub(super) async fn ask(config: &Config) -> Vec<StepServerReport> {
    let mut reports = Vec::new();
    for ((host, port), steps) in servers(config) {
        let connecting = TcpStream::connect((host.trim_matches(['[', ']']), port));
        let error = match timeout(DEADLINE, connecting).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no connection within {}", duration::format(DEADLINE))),
        };
        reports.push(StepServerReport { address: format!("{host}:{port}"), steps, error });
    }
    reports
}

/// The hosts and ports of all steps, with the steps of each.
fn servers(config: &Config) -> BTreeMap<(String, u16), Vec<String>> {
    let mut servers = BTreeMap::<_, Vec<_>>::new();
    let mut add = |service: &Value, step: String| {
        let url = service["http"]["url"].as_str().and_then(|url| Url::parse(url).ok());
        let address = url.as_ref().and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
        if let Some(address) = address {
            servers.entry(address).or_default().push(step);
        }
    };
    for (consumer, settings) in &config.consumers {
        let keys = settings.handler_settings.keys();
        for step in keys.get("steps").and_then(Value::as_array).into_iter().flatten() {
            let name = format!("{consumer}.{}", step["name"].as_str().unwrap_or_default());
            add(step, name.clone());
            add(&step["undo"], format!("{name}.undo"));
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::DEFAULT_FILE;
    use crate::handlers;

    #[tokio::test]
    async fn each_server_of_steps_is_asked_once_and_the_one_that_is_away_is_named() {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (there_at, away_at) = (there.local_addr().unwrap(), away.local_addr().unwrap());
        drop(away);
        let file = format!(
            "{DEFAULT_FILE}\n[[consumers.order.steps]]\nname = \"charge\"\nhttp = {{ url = \"http://{there_at}/a\" }}\n\
             undo = {{ http = {{ url = \"http://{there_at}/b\" }} }}\n[[consumers.priority.steps]]\nname = \"ship\"\n\
             http = {{ url = \"http://{away_at}\" }}\n"
        );
        let loaded = Config::from_bytes(file.as_bytes(), "orderd.toml".into(), &handlers::sources()).unwrap();
        let mut reports = ask(&loaded.config).await;
        reports.sort_by_key(|report| report.error.is_some());
        assert_eq!(reports[0].address, there_at.to_string());
        assert_eq!(reports[0].steps, ["order.charge", "order.charge.undo"]);
        assert_eq!((&reports[1].steps[..], reports[1].error.is_some()), (&["priority.ship".to_owned()][..], true));
        assert_eq!(reports.len(), 2);
    }
}
