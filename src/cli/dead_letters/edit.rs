//! `orderd dead-letters edit`: asks the daemon whether the letter can be edited, and for its body, before it opens an editor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::Asked;
use super::interrupt::{Interrupt, interrupted};
use crate::chain::chain;
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{EditDraft, EditRequest, EditedLetter, MAX_EDITED_BYTES};
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
    /// The revision that the file is an edit of: refused if somebody has edited the dead letter since [default: the last one]
    #[arg(long, value_name = "N", requires = "file")]
    revision: Option<i64>,
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
    let (mut interrupt, question) = (Interrupt::new()?, json!(question));
    let draft: EditDraft = match interrupt.unless(client.dead_letters(&path, Some(&question))).await {
        Some(Ok((_, draft))) => draft,
        Some(Err(error)) => return Ok(Err(refused(error))),
        None => return interrupted("the dead letter is unchanged", err).map(Ok),
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
        Some(file) => match read_body(file) {
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
            if let Some(exit) = open_editor(&file, err)? {
                std::fs::remove_file(&file)?;
                return Ok(Ok(exit));
            }
            // Ctrl-C in the editor was meant for the editor.
            interrupt = Interrupt::new()?;
            Written { body: read_body(&file)?, file, is_temporary: true }
        }
    };
    if written.body == before {
        writeln!(err, "orderd: nothing was changed")?;
        written.remove()?;
        return Ok(Ok(Exit::Refused));
    }
    let revision = args.revision.unwrap_or(draft.revision);
    if written.body.len() > MAX_EDITED_BYTES {
        let mib = MAX_EDITED_BYTES >> 20;
        let kept = if written.is_temporary { written.kept(args, (revision, None)) } else { String::new() };
        writeln!(err, "orderd: {:?} has more than {mib} MiB; the dead letter is unchanged{kept}", written.file)?;
        return Ok(Ok(Exit::Refused));
    }
    let request = EditRequest {
        dry_run: false,
        revision: Some(revision),
        body_base64: Some(STANDARD.encode(&written.body)),
        change_order_id: args.change_order_id,
    };
    let request = json!(request);
    let answer = interrupt.unless(client.dead_letters::<EditedLetter>(&path, Some(&request))).await;
    let newer = match &answer {
        Some(Err(AdminClientError::Refused { .. })) => newer_revision(&client, &path, &question, revision).await,
        Some(Ok(_) | Err(_)) | None => None,
    };
    finish(args, (revision, newer), answer, &written, out, err)
}

/// The revision that the body has now, if somebody else has edited it since this one.
async fn newer_revision(client: &AdminClient, path: &str, question: &Value, revision: i64) -> Option<i64> {
    let (_, draft) = client.dead_letters::<EditDraft>(path, Some(question)).await.ok()?;
    Some(draft.revision).filter(|now| *now != revision)
}

/// A new body; of one that is too large the beginning, which is too large as well.
fn read_body(file: &Path) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    File::open(file)?.take(MAX_EDITED_BYTES as u64 + 1).read_to_end(&mut body)?;
    Ok(body)
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

    /// What was written is not lost. The command that is named replaces what somebody else has edited meanwhile only if that is said.
    /// `newer`: the revision that this is.
    fn kept(&self, args: &EditArgs, (revision, newer): (i64, Option<i64>)) -> String {
        let (id, file) = (args.id, escaped(&self.file.display().to_string()));
        let again = |revision: i64| {
            let change_order_id = if args.change_order_id { " --change-order-id" } else { "" };
            format!("orderd dead-letters edit {id} --file {file} --revision {revision}{change_order_id}")
        };
        match (newer, self.is_temporary) {
            (Some(newer), _) => format!(
                "; what you wrote is in {file}: compare it with revision {newer} (orderd dead-letters show {id}), which it would replace, \
                 then {}",
                again(newer)
            ),
            (None, true) => format!("; what you wrote is in {file}: correct it there, then {}", again(revision)),
            (None, false) => format!("; what you wrote is still in {file}"),
        }
    }
}

/// Says what the daemon has answered. Without an answer, and after a refusal, what was written is kept.
fn finish(
    args: &EditArgs,
    revisions: (i64, Option<i64>),
    answer: Option<Result<(Value, EditedLetter), AdminClientError>>,
    written: &Written,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let id = args.id;
    let maybe = || {
        let kept = written.kept(args, revisions);
        format!("the daemon may have accepted the new body, see `orderd dead-letters show {id}`{kept}")
    };
    match answer {
        None => interrupted(&maybe(), err).map(Ok),
        Some(Ok((json, edited))) => {
            written.remove()?;
            match args.format {
                Format::Json => write_json(&json, out)?,
                Format::Text => write_edited(&edited, out)?,
            }
            Ok(Ok(Exit::Done))
        }
        Some(Err(error)) => {
            let error = refused(error);
            writeln!(err, "orderd: {}", escaped(&chain(&error)))?;
            match error.may_be_done() {
                true => writeln!(err, "orderd: {}", maybe())?,
                false => writeln!(err, "orderd: the dead letter is unchanged{}", written.kept(args, revisions))?,
            }
            Ok(Ok(error.exit()))
        }
    }
}

fn write_edited(edited: &EditedLetter, out: &mut dyn Write) -> io::Result<()> {
    let EditedLetter { id, revision: _, order_id, former_order_id, queue } = edited;
    if let Some(former) = former_order_id {
        let now = order_id
            .as_deref()
            .map_or_else(|| "no order that is known".to_owned(), |id| format!("order {}", escaped(id)));
        writeln!(out, "dead letter {id} was order {}, and is {now}", escaped(former))?;
    }
    let to = if queue.is_some() { "" } else { " --to QUEUE" };
    writeln!(out, "dead letter {id} has a new body; replay it with `orderd dead-letters replay {id}{to}`")
}

/// A letter that cannot be edited, or a body that is not accepted, is no wrong argument.
fn refused(error: AdminClientError) -> AdminClientError {
    match error {
        AdminClientError::Refused { message, .. } => AdminClientError::Refused { message, is_usage: false },
        other => other,
    }
}

/// Runs the editor. The exit code if it failed.
fn open_editor(file: &Path, err: &mut dyn Write) -> io::Result<Option<Exit>> {
    let named = |name: &str| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or_else(|| DEFAULT_EDITOR.to_owned());
    // As git and others do: the variable may contain arguments. Without the trap, a shell that waits for an editor ends with Ctrl-C
    // although the editor does not; it does not pass the trap on.
    let run = Command::new("sh").arg("-c").arg(format!("trap : INT; {editor} \"$1\"")).arg("sh").arg(file).status();
    match run {
        Ok(status) if status.success() => Ok(None),
        Ok(status) => {
            writeln!(err, "orderd: the editor {editor:?} failed ({status}); the dead letter is unchanged")?;
            let interrupted = rustix::process::Signal::INT.as_raw();
            // The second one is how a shell says it.
            let is_interrupted = status.signal() == Some(interrupted) || status.code() == Some(128 + interrupted);
            Ok(Some(if is_interrupted { Exit::Interrupted } else { Exit::Refused }))
        }
        Err(error) => {
            writeln!(err, "orderd: cannot run the editor {editor:?}: {error}; set VISUAL or EDITOR")?;
            Ok(Some(Exit::Refused))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tempfile::TempDir;

    use super::*;
    use crate::cli::admin_client::test_server::{Answer, serve};
    use crate::handlers;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        edit: EditArgs,
    }

    /// What an edit of dead letter 7 with this new body says, and its exit code, if the daemon answers so to the new body.
    async fn edit(body: &[u8], answer: Answer) -> (Exit, String) {
        edit_with(body, vec![draft(0), answer]).await
    }

    fn draft(revision: i64) -> Answer {
        let draft =
            EditDraft { id: 7, revision, body_base64: STANDARD.encode("old"), order_id: None, is_accepted: false };
        Answer::Json(200, json!(draft).to_string())
    }

    async fn edit_with(body: &[u8], answers: Vec<Answer>) -> (Exit, String) {
        let address = serve(answers).await.to_string();
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("body.json");
        std::fs::write(&file, body).unwrap();
        let arguments = ["edit", "7", "--address", &address, "--file", file.to_str().unwrap()];
        let args = Cli::try_parse_from(arguments).unwrap().edit;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let asked = run(&args, &handlers::sources(), &mut out, &mut err).await.unwrap();
        assert!(out.is_empty());
        (asked.unwrap(), String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn an_edit_without_an_answer_does_not_say_that_the_dead_letter_is_unchanged() {
        let timed_out = r#"{"error":"answer_timeout","message":"the answer took too long; try again"}"#;
        for answer in [Answer::Lost, Answer::Json(503, timed_out.to_owned()), Answer::Json(200, "?".to_owned())] {
            let (exit, text) = edit(b"new", answer.clone()).await;
            assert_eq!(exit, Exit::Unavailable, "{answer:?}: {text}");
            let expected =
                "the daemon may have accepted the new body, see `orderd dead-letters show 7`; what you wrote";
            assert!(text.contains(expected) && !text.contains("unchanged"), "{answer:?}: {text}");
        }
        let refused = r#"{"error":"conflict","message":"quantity: must be at least 1"}"#;
        let (exit, text) = edit(b"new", Answer::Json(409, refused.to_owned())).await;
        assert!(exit == Exit::Refused && text.contains("the dead letter is unchanged"), "{text}");
    }

    #[tokio::test]
    async fn after_somebody_elses_edit_the_command_that_is_named_can_succeed_and_says_what_it_replaces() {
        let refused = Answer::Json(409, r#"{"error":"conflict","message":"edited meanwhile"}"#.to_owned());
        let (exit, text) = edit_with(b"new", vec![draft(0), refused.clone(), draft(3)]).await;
        assert!(
            exit == Exit::Refused && text.contains("compare it with revision 3") && text.contains("--revision 3"),
            "{text}"
        );
        let (_, text) = edit_with(b"new", vec![draft(0), refused, draft(0)]).await;
        assert!(!text.contains("--revision"), "nobody has edited it: {text}");
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_is_refused_before_it_is_sent() {
        let too_large = vec![b' '; MAX_EDITED_BYTES + 1];
        let (exit, text) = edit(&too_large, Answer::Lost).await;
        assert!(exit == Exit::Refused, "{text}");
        assert!(text.contains("has more than 16 MiB; the dead letter is unchanged"), "{text}");
        // Not even as far as memory goes.
        assert_eq!(read_body(Path::new("/dev/zero")).unwrap().len(), MAX_EDITED_BYTES + 1);
    }
}
