//! `orderd dead-letters edit`.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::Asked;
use crate::chain::chain;
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::output::write_json;
use crate::cli::report::ledger_exit;
use crate::cli::{Exit, Format};
use crate::config::{Config, Sources, load_ledger_directory};
use crate::dead_letters::EditRequest;
use crate::escape::escaped;
use crate::files::create_new_file;
use crate::ledger::{DeadLetterDetail, LedgerLocation};
use crate::random::random_hex;

/// The editor if the environment names none.
const DEFAULT_EDITOR: &str = "vi";

/// Arguments of `orderd dead-letters edit`.
#[derive(Debug, Args)]
pub(super) struct EditArgs {
    /// Number of the dead letter
    #[arg(value_name = "ID")]
    id: i64,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &EditArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let client = match args.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let location = match Config::load(sources) {
        Ok(loaded) => loaded.config.ledger.location(),
        Err(error) => match load_ledger_directory(sources) {
            Some(directory) => LedgerLocation::Directory(directory),
            None => return Ok(Err(AdminClientError::Load(error))),
        },
    };
    let detail = match location.reader().dead_letter(args.id).await {
        Ok(Some(detail)) => detail,
        Ok(None) => {
            writeln!(err, "orderd: there is no dead letter {}: orderd dead-letters list", args.id)?;
            return Ok(Ok(Exit::Refused));
        }
        Err(error) => {
            writeln!(err, "orderd: cannot read the ledger: {}", chain(&error))?;
            return Ok(Ok(ledger_exit(&error)));
        }
    };
    edit(args, &client, detail, out, err).await
}

async fn edit(
    args: &EditArgs,
    client: &AdminClient,
    detail: DeadLetterDetail,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let file = std::env::temp_dir().join(format!("orderd-dead-letter-{}-{}.json", args.id, random_hex(8)?));
    // Only for this user: it contains what customers have sent.
    create_new_file(&file, 0o600)?.write_all(&detail.content.body)?;
    let written = edited(&file, &detail.content.body, err)?;
    let Some(body) = written else {
        std::fs::remove_file(&file)?;
        return Ok(Ok(Exit::Refused));
    };
    let request = EditRequest { revision: detail.content.revision, body_base64: STANDARD.encode(&body) };
    let answer = client.dead_letters::<Value>(&format!("{}/edit", args.id), Some(&json!(request))).await;
    match answer {
        Ok((json, _)) => {
            std::fs::remove_file(&file)?;
            match args.format {
                Format::Json => write_json(&json, out)?,
                Format::Text => writeln!(
                    out,
                    "dead letter {} has a new body; replay it with `orderd dead-letters replay {0}`",
                    args.id
                )?,
            }
            Ok(Ok(Exit::Done))
        }
        Err(error) => {
            // What was written is not lost.
            let shown = escaped(&file.display().to_string());
            writeln!(err, "orderd: the dead letter is unchanged; what you wrote is in {shown}")?;
            Ok(Err(match error {
                AdminClientError::Refused { message, .. } => AdminClientError::Refused { message, is_usage: false },
                other => other,
            }))
        }
    }
}

/// The new body; `None` if there is none.
fn edited(file: &Path, before: &[u8], err: &mut dyn Write) -> io::Result<Option<Vec<u8>>> {
    if !open_editor(file, err)? {
        return Ok(None);
    }
    let body = std::fs::read(file)?;
    if body == before {
        writeln!(err, "orderd: nothing was changed")?;
        return Ok(None);
    }
    Ok(Some(body))
}

/// Runs the editor. `false` if it failed.
fn open_editor(file: &Path, err: &mut dyn Write) -> io::Result<bool> {
    let named = |name: &str| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or_else(|| DEFAULT_EDITOR.to_owned());
    // As git and others do: the variable may contain arguments.
    let run = Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(file).status();
    match run {
        Ok(status) if status.success() => Ok(true),
        Ok(status) => {
            writeln!(err, "orderd: the editor {editor:?} failed ({status}); the dead letter is unchanged")?;
            Ok(false)
        }
        Err(error) => {
            writeln!(err, "orderd: cannot run the editor {editor:?}: {error}; set VISUAL or EDITOR")?;
            Ok(false)
        }
    }
}
