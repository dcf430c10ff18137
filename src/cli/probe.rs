//! `orderd probe`: asks the daemon on this machine whether it lives, or whether it is ready.
//!
//! For health checks of containers and for scripts, where there is neither shell nor HTTP client. It asks the admin
//! listener only, never the broker, and sends one request, two at most.

use std::io::{self, Write};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use super::admin_client::{AdminClient, AdminClientError};
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Config, Sources, admin_without_token, duration};

/// Longest part of an answer that is shown, in characters.
const SHOWN: usize = 1000;

/// Arguments of `orderd probe`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ProbeArgs {
    /// Ask whether it is ready: connected, subscribed, recording; else only whether it lives
    #[arg(long)]
    ready: bool,
    /// How long the answer may take, 100ms to 1m
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = within)]
    timeout: Duration,
    /// How to print; JSON is one object
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn within(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text)?;
    let range = Duration::from_millis(100)..=Duration::from_secs(60);
    if range.contains(&timeout) { Ok(timeout) } else { Err("must be from 100ms to 1m".to_owned()) }
}

/// Asks, and prints the answer: a good one to `out`, any other one to `err`; as JSON all to `out`.
///
/// Returns the exit code: 0 when the daemon lives (with `--ready`: is ready), 69 when it does not or nobody answers in
/// time, 78 when the configuration says that nobody answers, or cannot be made out.
///
/// With `--format json`, `out` gets one object: `ok`, `asked` (`live` or `ready`), `address` (null if nobody can be
/// asked), `status` (of HTTP; null if there was no answer) and `said`.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(args: ProbeArgs, sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let admin = match Config::load(sources) {
        Ok(loaded) => loaded.config.admin,
        // A file that someone is at work on, or a certificate that has ended, says nothing about the daemon, which was
        // started by another one.
        Err(error) => {
            writeln!(err, "orderd: {}", chain(&error))?;
            let Some(admin) = admin_without_token(sources) else { return Ok(Exit::Config) };
            writeln!(err, "orderd: asking where the daemon answers as far as can be made out")?;
            admin
        }
    };
    let client = match AdminClient::of_config(&admin, &sources.path()) {
        Ok(client) => client,
        Err(error) => return tell(args, None, Err(error), out, err),
    };
    let answer = ask(args, &client).await;
    tell(args, Some(&client), answer, out, err)
}

/// Asks the page that is open to everybody, and for the reasons only if it says no: they are told to those who know
/// the token, and this process may have an older one than the daemon.
async fn ask(args: ProbeArgs, client: &AdminClient) -> Result<(StatusCode, String), AdminClientError> {
    let text = |body: Vec<u8>| String::from_utf8_lossy(&body).trim().chars().take(SHOWN).collect::<String>();
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

fn tell(
    args: ProbeArgs,
    client: Option<&AdminClient>,
    answer: Result<(StatusCode, String), AdminClientError>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let asked = if args.ready { "ready" } else { "live" };
    let address = client.map(AdminClient::address);
    let (exit, status, said) = match answer {
        Ok((StatusCode::OK, said)) => (Exit::Done, Some(StatusCode::OK), said),
        Ok((status, said)) => (Exit::Unavailable, Some(status), said),
        Err(error) => (error.exit(), None, chain(&error)),
    };
    let ok = exit == Exit::Done;
    match (args.format, status) {
        (Format::Json, status) => {
            let status = status.map(|status| status.as_u16());
            let object = json!({"ok": ok, "asked": asked, "address": address, "status": status, "said": said});
            writeln!(out, "{object}")?;
        }
        (Format::Text, Some(StatusCode::OK)) => writeln!(out, "{asked}")?,
        (Format::Text, Some(status)) => {
            let address = address.expect("whoever has answered has an address");
            writeln!(err, "orderd: the daemon at {address} is not {asked} ({}): {said}", status.as_u16())?;
        }
        (Format::Text, None) => writeln!(err, "orderd: {said}")?,
    }
    Ok(exit)
}
