//! `orderd journal verify`.

use std::io::{self, Write};

use clap::Args;

use crate::cli::output::write_json;
use crate::cli::text::counted;
use crate::cli::{Exit, Format};
use crate::escape::escaped;
use crate::ledger::{JournalHash, JournalProblem, JournalVerification, LedgerReader, OpenError};

/// Arguments of `orderd journal verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A hash that an earlier verification or the log has shown: also finds that the journal was written anew since, or is an older copy
    #[arg(long, value_name = "HASH")]
    expect: Option<JournalHash>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &VerifyArgs,
    reader: &dyn LedgerReader,
    out: &mut dyn Write,
) -> io::Result<Result<Exit, OpenError>> {
    let verification = match reader.verify_journal(args.expect).await {
        Ok(verification) => verification,
        Err(error) => return Ok(Err(error)),
    };
    match args.format {
        Format::Text => write_text(&verification, out)?,
        Format::Json => write_json(&verification, out)?,
    }
    Ok(Ok(if verification.problem_count == 0 { Exit::Done } else { Exit::Refused }))
}

fn write_text(verification: &JournalVerification, out: &mut dyn Write) -> io::Result<()> {
    let JournalVerification { entries, head, problem_count, problems } = verification;
    for JournalProblem { kind: _, seq, detail } in problems {
        match seq {
            0 => writeln!(out, "{}", escaped(detail))?,
            seq => writeln!(out, "entry {seq} {}", escaped(detail))?,
        }
    }
    let result = match problem_count {
        0 => "all as they were written".to_owned(),
        count => counted(*count, "problem"),
    };
    writeln!(out, "{}: {result}", counted(*entries, "entry"))?;
    if head.seq > 0 {
        writeln!(out, "last entry {}, hash {}", head.seq, head.hash)?;
    }
    Ok(())
}
