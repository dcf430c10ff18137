//! `orderd probe`: checks whether the daemon on this machine is alive, or ready.
//!
//! For health checks of containers and for scripts, where no HTTP client is available. It asks only the admin listener, never
//! the broker, and sends at most two requests.

use std::io::{self, Write};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use super::admin_client::{AdminClient, AdminClientError};
use super::load_error;
use super::output::write_json_line;
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Config, Sources, duration, load_admin_or_default};
use crate::escape::escaped;

/// Maximum length of an answer that is shown, in characters.
const MAX_ANSWER_CHARS: usize = 1000;

/// Arguments of `orderd probe`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ProbeArgs {
    /// Check that the daemon is ready (connected, subscribed, recording), not only alive
    #[arg(long)]
    ready: bool,
    /// How long to wait for the answer, from 100ms to 1m
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = timeout)]
    timeout: Duration,
    /// Output format; json prints one object
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text)?;
    let range = Duration::from_millis(100)..=Duration::from_secs(60);
    if range.contains(&timeout) { Ok(timeout) } else { Err("must be from 100ms to 1m".to_owned()) }
}

/// Checks the daemon and prints the result: success to `out`, failure to `err`; as JSON everything to `out`.
///
/// Returns the exit code: 0 if the daemon is alive (with `--ready`: ready), 69 if it is not or does not answer in time, 78
/// if the configuration has no address of the daemon, or that address cannot be read.
///
/// With `--format json`, `out` gets one object: `ok`, `asked` (`live` or `ready`), `address` (null if there is none),
/// `status` (the HTTP status; null without an answer) and `message` (the answer, or the error).
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: ProbeArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let admin = match Config::load_usable(sources) {
        Ok((loaded, _)) => loaded.config.admin,
        // The daemon was started with valid files. A file that is being edited, or a certificate that has expired since,
        // says nothing about it.
        Err(error) => {
            load_error::write(&error, err)?;
            let Some(admin) = load_admin_or_default(sources) else { return Ok(Exit::Config) };
            writeln!(err, "orderd: the configuration has errors; using its admin section to find the daemon")?;
            admin
        }
    };
    let client = match AdminClient::from_config(&admin, sources) {
        Ok(client) => client,
        Err(error) => return report(args, None, Err(error), out, err),
    };
    let answer = check(args, &client).await;
    report(args, Some(&client), answer, out, err)
}

/// Gets the health page, which needs no token. If the daemon is not ready, also gets the failing checks; they need the token,
/// and this process may have a different one than the daemon, so they are left out if they cannot be read.
async fn check(args: ProbeArgs, client: &AdminClient) -> Result<(StatusCode, String), AdminClientError> {
    let text = |body: Vec<u8>| String::from_utf8_lossy(&body).trim().chars().take(MAX_ANSWER_CHARS).collect::<String>();
    let page = if args.ready { "/readyz" } else { "/livez" };
    let (status, body) = client.get(page, args.timeout).await?;
    if args.ready
        && status == StatusCode::SERVICE_UNAVAILABLE
        && let Ok((StatusCode::SERVICE_UNAVAILABLE, body)) = client.get("/readyz?verbose", args.timeout).await
    {
        let body = text(body);
        let failing: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("[-] ")).collect();
        return Ok((status, failing.join("; ")));
    }
    Ok((status, text(body)))
}

fn report(
    args: ProbeArgs,
    client: Option<&AdminClient>,
    answer: Result<(StatusCode, String), AdminClientError>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let asked = if args.ready { "ready" } else { "live" };
    let address = client.map(AdminClient::address);
    let (exit, status, message) = match answer {
        Ok((StatusCode::OK, message)) => (Exit::Done, Some(StatusCode::OK), message),
        Ok((status, message)) => (Exit::Unavailable, Some(status), message),
        Err(error) => (error.exit(), None, chain(&error)),
    };
    let ok = exit == Exit::Done;
    match (args.format, status) {
        (Format::Json, status) => {
            let status = status.map(|status| status.as_u16());
            let object = json!({"ok": ok, "asked": asked, "address": address, "status": status, "message": message});
            write_json_line(&object, out)?;
        }
        (Format::Text, Some(StatusCode::OK)) => writeln!(out, "{asked}")?,
        (Format::Text, Some(status)) => {
            let address = address.expect("an answer came from an address");
            writeln!(
                err,
                "orderd: the daemon at {address} is not {asked} ({}): {}",
                status.as_u16(),
                escaped(&message)
            )?;
        }
        (Format::Text, None) => writeln!(err, "orderd: {}", escaped(&message))?,
    }
    Ok(exit)
}
