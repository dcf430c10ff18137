//! `orderd dead-letters edit`: asks the daemon whether the letter can be edited, and for its body, before it opens an editor.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;

use super::Asked;
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{EditDraft, EditRequest, EditedLetter};
use crate::escape::escaped;
use crate::files::create_new_file;
use crate::random::random_hex;

/// The editor if the environment names none.
const DEFAULT_EDITOR: &str = "vi";

/// Arguments of `orderd dead-letters edit`.
#[derive(Debug, Args)]
pub(super) struct EditArgs {
    /// Number of the dead letter
    #[arg(value_name = "ID")]
    id: i64,
    /// Take the new body from this file instead of an editor
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Accept a new body that is another order than the present one
    #[arg(long)]
    change_order_id: bool,
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
    let question = EditRequest { dry_run: true, ..EditRequest::default() };
    let path = format!("{}/edit", args.id);
    let draft: EditDraft = match client.dead_letters(&path, Some(&json!(question))).await {
        Ok((_, draft)) => draft,
        Err(error) => return Ok(Err(refused(error))),
    };
    let Ok(before) = STANDARD.decode(&draft.body_base64) else {
        return Ok(Err(client.unusable_answer("the body is not Base64")));
    };
    if let Some(order) = draft.order_id.as_deref().filter(|_| draft.is_accepted) {
        let order = escaped(order);
        writeln!(
            err,
            "orderd: order {order} was accepted before it failed: its lines, amounts, currency and customer must stay as they are, other \
             fields may change"
        )?;
    }
    let written = match &args.file {
        Some(file) => match std::fs::read(file) {
            Ok(body) => Written { body, file: file.clone(), is_temporary: false },
            Err(error) => {
                writeln!(err, "orderd: cannot read {file:?}: {error}")?;
                return Ok(Ok(Exit::Usage));
            }
        },
        None => {
            let file = std::env::temp_dir().join(format!("orderd-dead-letter-{}-{}.json", args.id, random_hex(8)?));
            // Only for this user: it contains what customers have sent.
            create_new_file(&file, 0o600)?.write_all(&before)?;
            if !open_editor(&file, err)? {
                std::fs::remove_file(&file)?;
                return Ok(Ok(Exit::Refused));
            }
            Written { body: std::fs::read(&file)?, file, is_temporary: true }
        }
    };
    if written.body == before {
        writeln!(err, "orderd: nothing was changed")?;
        written.remove()?;
        return Ok(Ok(Exit::Refused));
    }
    send(args, &client, draft.revision, &written, out, err).await
}

/// What was written.
struct Written {
    body: Vec<u8>,
    file: PathBuf,
    is_temporary: bool,
}

impl Written {
    fn remove(&self) -> io::Result<()> {
        if self.is_temporary { std::fs::remove_file(&self.file) } else { Ok(()) }
    }
}

async fn send(
    args: &EditArgs,
    client: &AdminClient,
    revision: i64,
    written: &Written,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let request = EditRequest {
        dry_run: false,
        revision: Some(revision),
        body_base64: Some(STANDARD.encode(&written.body)),
        change_order_id: args.change_order_id,
    };
    match client.dead_letters::<EditedLetter>(&format!("{}/edit", args.id), Some(&json!(request))).await {
        Ok((json, edited)) => {
            written.remove()?;
            match args.format {
                Format::Json => write_json(&json, out)?,
                Format::Text => write_edited(&edited, out)?,
            }
            Ok(Ok(Exit::Done))
        }
        Err(error) => {
            // What was written is not lost.
            let shown = escaped(&written.file.display().to_string());
            let id = args.id;
            writeln!(
                err,
                "orderd: the dead letter is unchanged; what you wrote is in {shown}: orderd dead-letters edit {id} --file {shown}"
            )?;
            Ok(Err(refused(error)))
        }
    }
}

fn write_edited(edited: &EditedLetter, out: &mut dyn Write) -> io::Result<()> {
    let EditedLetter { id, revision: _, order_id, former_order_id } = edited;
    if let Some(former) = former_order_id {
        let now = order_id
            .as_deref()
            .map_or_else(|| "no order that is known".to_owned(), |id| format!("order {}", escaped(id)));
        writeln!(out, "dead letter {id} was order {}, and is {now}", escaped(former))?;
    }
    writeln!(out, "dead letter {id} has a new body; replay it with `orderd dead-letters replay {id}`")
}

/// A letter that cannot be edited, or a body that is not accepted, is no wrong argument.
fn refused(error: AdminClientError) -> AdminClientError {
    match error {
        AdminClientError::Refused { message, .. } => AdminClientError::Refused { message, is_usage: false },
        other => other,
    }
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
