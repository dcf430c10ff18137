//! The warning of a filter that finds nothing because of a name that there is not: the same for all commands, and for the daemon.

use std::io::{self, Write};

use super::Done;
use crate::cli::Exit;
use crate::cli::ledger_source::{LedgerSource, SourceError};
use crate::dead_letters::{has_names, unknown_names};
use crate::escape::escaped;
use crate::ledger::DeadLetterFilter;

/// Groups that are searched for the names that there are.
const MAX_GROUPS: usize = 10_000;

/// Warns of the names in a filter that no dead letter has in any state, and of a replay that there is not.
pub(super) async fn warn_of_unknown_names(
    filter: &DeadLetterFilter,
    source: &LedgerSource,
    err: &mut dyn Write,
) -> io::Result<Done> {
    match unknown(filter, source).await {
        Ok(Some(names)) => writeln!(err, "orderd: warning: {}", escaped(&names))?,
        Ok(None) => {}
        Err(error) => return Ok(Err(error)),
    }
    Ok(Ok(Exit::Done))
}

async fn unknown(filter: &DeadLetterFilter, source: &LedgerSource) -> Result<Option<String>, SourceError> {
    if !has_names(filter) {
        return Ok(None);
    }
    let stored = source.groups(DeadLetterFilter::default(), MAX_GROUPS).await?;
    let has_replay = match filter.replay {
        Some(replay) => source.has_replay(replay).await?,
        None => true,
    };
    Ok(unknown_names(filter, &stored.groups, has_replay))
}
