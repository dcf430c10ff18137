//! Where commands that show what was recorded read it: from a running daemon, else from the ledger of this machine.
//!
//! Both give the same values, so a command has one output. It prints nothing but what a person has to know about the choice.

mod replays;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::admin_client::{AdminClient, AdminClientError, DaemonTarget, DocumentLines, Query};
use super::report::ledger_exit;
use super::{Exit, find_ledger};
use crate::chain::chain;
use crate::config::{Config, Sources};
use crate::dead_letters::WholeLetter;
use crate::escape::escaped;
use crate::ledger::trace::Trace;
use crate::ledger::{
    DeadLetter, DeadLetterDetail, DeadLetterFilter, DeadLetterGroups, DeadLetterPage, DeadLetterQuery, JournalFilter,
    JournalPage, JournalQuery, LedgerReader, OpenError, ReplayReader, WholeDeadLetters,
};

/// How long a daemon may take to answer whether it gives us access, before the ledger is read instead.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Items of a page that is asked of a daemon.
const PAGE: usize = 500;
/// Dead letters of an export that are read from the ledger at a time.
const EXPORT_PAGE: usize = 500;
/// The bytes that their bodies take at most, and those of one more.
const EXPORT_BYTES: usize = 4 << 20;

/// Where a command reads.
pub(super) enum LedgerSource {
    /// A running daemon.
    Daemon(AdminClient),
    /// The ledger of this machine.
    Ledger {
        reader: Arc<dyn LedgerReader>,
        /// The same for replays.
        replays: Arc<dyn ReplayReader>,
        /// Why no daemon was asked, if another token would change that.
        no_token: bool,
    },
}

/// A source, and the configuration of this machine if it is valid.
pub(super) struct OpenedSource {
    pub source: LedgerSource,
    pub config: Option<Config>,
}

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// From the daemon.
    #[error(transparent)]
    Daemon(#[from] AdminClientError),
    /// From the ledger.
    #[error(
        "cannot read the ledger: {}{}", chain(.error),
        if *.no_token { "; to ask the daemon, name a file with the token of a user in admin.users with --token-file" } else { "" }
    )]
    Ledger { error: OpenError, no_token: bool },
}

impl SourceError {
    /// The exit code of a command that fails with it.
    pub fn exit(&self) -> Exit {
        match self {
            SourceError::Daemon(error) => error.exit(),
            SourceError::Ledger { error, .. } => ledger_exit(error),
        }
    }

    /// Writes it, and returns the exit code.
    pub fn report(&self, err: &mut dyn Write) -> io::Result<Exit> {
        writeln!(err, "orderd: {}", escaped(&self.to_string()))?;
        Ok(self.exit())
    }
}

/// What was read.
type Read<T> = Result<T, SourceError>;

impl LedgerSource {
    /// Chooses a source. A daemon whose address is given is asked, and must answer. Else the daemon of the configuration is asked,
    /// if it runs and gives access.
    ///
    /// # Errors
    /// The outer error when `err` cannot be written; the inner one is the exit code if there is no source, once `err` says why.
    pub async fn open(
        target: &DaemonTarget,
        sources: &Sources,
        err: &mut dyn Write,
    ) -> io::Result<Result<OpenedSource, Exit>> {
        if target.has_address() {
            let opened = match target.client(sources, err)? {
                Ok(client) => probe(&client).await.map(|()| client),
                Err(error) => Err(error),
            };
            return match opened {
                Ok(client) => {
                    let config = Config::load_usable(sources).ok().map(|(loaded, _)| loaded.config);
                    Ok(Ok(OpenedSource { source: LedgerSource::Daemon(client), config }))
                }
                Err(error) => SourceError::from(error).report(err).map(Err),
            };
        }
        let (location, config) = match find_ledger(sources, err)? {
            Ok(found) => found,
            Err(exit) => return Ok(Err(exit)),
        };
        let mut no_token = false;
        if let Some(config) = &config {
            match daemon_of(target, config, sources).await {
                Ok(client) => {
                    let source = LedgerSource::Daemon(client);
                    return Ok(Ok(OpenedSource { source, config: Some(config.clone()) }));
                }
                Err(NoDaemon::Fails(error)) => return SourceError::from(error).report(err).map(Err),
                Err(NoDaemon::Silent(error)) => {
                    writeln!(err, "orderd: {}; reading the ledger instead", escaped(&chain(&error)))?;
                }
                Err(NoDaemon::NoToken) => no_token = true,
                Err(NoDaemon::None) => {}
            }
        }
        let source = LedgerSource::Ledger { reader: location.reader(), replays: location.replay_reader(), no_token };
        Ok(Ok(OpenedSource { source, config }))
    }

    /// A page of dead letters.
    pub async fn letters(&self, query: DeadLetterQuery) -> Read<DeadLetterPage> {
        let client = match self {
            LedgerSource::Daemon(client) => client,
            LedgerSource::Ledger { reader, .. } => return self.opened(reader.dead_letters(query).await),
        };
        let DeadLetterQuery { filter, mut before, mut after, limit } = query;
        let (mut letters, mut more) = (Vec::new(), true);
        while more && letters.len() < limit {
            let mut parameters = letter_parameters(&filter);
            parameters.push(("limit", (limit - letters.len()).min(PAGE).to_string()));
            parameters.extend(before.map(|before| ("before", before.to_string())));
            parameters.extend(after.map(|after| ("after", after.to_string())));
            let list: LetterList = existing(client.read(&["dead-letters"], &parameters).await)?;
            more = list.next.is_some();
            (before, after) = if after.is_some() { (None, list.next.or(after)) } else { (list.next, None) };
            letters.extend(list.dead_letters);
        }
        Ok(DeadLetterPage { letters, more })
    }

    /// Dead letters by cause, at most `limit` groups.
    pub async fn groups(&self, filter: DeadLetterFilter, limit: usize) -> Read<DeadLetterGroups> {
        match self {
            LedgerSource::Daemon(client) => {
                let mut parameters = letter_parameters(&filter);
                parameters.push(("limit", limit.to_string()));
                existing(client.read(&["dead-letters", "groups"], &parameters).await)
            }
            LedgerSource::Ledger { reader, .. } => {
                let mut groups = self.opened(reader.dead_letter_groups(filter).await)?;
                groups.shorten(limit);
                Ok(groups)
            }
        }
    }

    /// One dead letter, with its content in this revision or the last one; `None` if there is none with this number or no such revision.
    pub async fn letter(&self, id: i64, revision: Option<i64>) -> Read<Option<WholeLetter>> {
        match self {
            LedgerSource::Daemon(client) => {
                let revision = revision.map(|revision| ("revision", revision.to_string()));
                Ok(client.read(&["dead-letters", &id.to_string()], &revision.into_iter().collect()).await?)
            }
            LedgerSource::Ledger { reader, .. } => {
                Ok(self.opened(reader.dead_letter_revision(id, revision).await)?.map(WholeLetter::from))
            }
        }
    }

    /// All dead letters that a filter finds, the oldest first.
    pub async fn export(&self, filter: DeadLetterFilter) -> Read<LetterExport> {
        Ok(match self {
            LedgerSource::Daemon(client) => {
                let parameters = letter_parameters(&filter);
                LetterExport::Daemon(client.read_lines(&["dead-letters", "export"], &parameters).await?)
            }
            LedgerSource::Ledger { reader, no_token, .. } => LetterExport::Ledger(Box::new(PagedExport {
                reader: Arc::clone(reader),
                no_token: *no_token,
                filter,
                after: Some(0),
                page: Vec::new().into_iter(),
            })),
        })
    }

    /// A page of the journal.
    pub async fn journal(&self, query: JournalQuery) -> Read<JournalPage> {
        let client = match self {
            LedgerSource::Daemon(client) => client,
            LedgerSource::Ledger { reader, .. } => return self.opened(reader.journal(query).await),
        };
        let JournalQuery { filter, before, limit } = query;
        let mut page = JournalPage { entries: Vec::new(), next: before };
        loop {
            let mut parameters = journal_parameters(&filter);
            parameters.push(("limit", (limit - page.entries.len()).min(PAGE).to_string()));
            parameters.extend(page.next.map(|before| ("before", before.to_string())));
            let further: JournalPage = existing(client.read(&["journal"], &parameters).await)?;
            page.entries.extend(further.entries);
            page.next = further.next;
            if page.next.is_none() || page.entries.len() >= limit {
                return Ok(page);
            }
        }
    }

    /// The history of an order, which is empty if nothing is recorded about it.
    pub async fn trace(&self, id: &str) -> Read<Trace> {
        match self {
            // In a path, these lead elsewhere.
            LedgerSource::Daemon(_) if matches!(id, "." | "..") => {
                let message = "an order with this id can be read from the ledger only".to_owned();
                Err(AdminClientError::Refused { message, is_usage: true }.into())
            }
            LedgerSource::Daemon(client) => {
                let found = client.read(&["orders", id], &Query::new()).await?;
                Ok(found.unwrap_or_else(|| Trace::empty(id)))
            }
            LedgerSource::Ledger { reader, .. } => self.opened(reader.trace(id).await),
        }
    }

    fn opened<T>(&self, read: Result<T, OpenError>) -> Read<T> {
        let no_token = matches!(self, LedgerSource::Ledger { no_token: true, .. });
        read.map_err(|error| SourceError::Ledger { error, no_token })
    }
}

/// A page of dead letters, as a daemon answers.
#[derive(Deserialize)]
struct LetterList {
    dead_letters: Vec<DeadLetter>,
    next: Option<i64>,
}

/// Why the daemon of the configuration is not asked.
enum NoDaemon {
    /// None runs, or it cannot be asked.
    None,
    /// Its token cannot be read.
    NoToken,
    /// It does not answer as it should.
    Silent(AdminClientError),
    /// It rejects the token that was given.
    Fails(AdminClientError),
}

async fn daemon_of(target: &DaemonTarget, config: &Config, sources: &Sources) -> Result<AdminClient, NoDaemon> {
    let client = match target.client_of(config, sources) {
        Ok(client) => client,
        Err(AdminClientError::NoAddress { .. }) => return Err(NoDaemon::None),
        Err(error) => return Err(NoDaemon::Fails(error)),
    };
    if !client.has_token() {
        return Err(NoDaemon::NoToken);
    }
    match probe(&client).await {
        Ok(()) => Ok(client),
        Err(AdminClientError::Unreachable { .. }) => Err(NoDaemon::None),
        Err(error) if target.has_token_file() => Err(NoDaemon::Fails(error)),
        // A daemon with another ledger: it does not know our token.
        Err(AdminClientError::Rejected { .. }) => Err(NoDaemon::None),
        Err(error) => Err(NoDaemon::Silent(error)),
    }
}

/// Whether the daemon answers, and gives access.
async fn probe(client: &AdminClient) -> Result<(), AdminClientError> {
    let parameters = vec![("limit", "1".to_owned())];
    client.read_within::<JournalPage>(&["journal"], &parameters, PROBE_DEADLINE).await.map(drop)
}

/// What is always there.
fn existing<T>(read: Result<Option<T>, AdminClientError>) -> Read<T> {
    read?.ok_or_else(|| {
        let message = "the daemon does not have what this command reads: it is of another version".to_owned();
        AdminClientError::Refused { message, is_usage: false }.into()
    })
}

fn letter_parameters(filter: &DeadLetterFilter) -> Query {
    let DeadLetterFilter {
        states,
        source,
        reason,
        code,
        consumer,
        product,
        customer,
        order,
        since,
        until,
        text,
        min_retries,
        currency,
        min_total,
        routing_key,
        replay,
    } = filter;
    let state = match states.as_slice() {
        [] => "any".to_owned(),
        [state] => state.as_str().to_owned(),
        states => unreachable!("a command asks for one state or for any, not for {states:?}"),
    };
    let mut parameters = vec![("state", state)];
    let mut add = |name, value: Option<String>| parameters.extend(value.map(|value| (name, value)));
    add("source", source.map(|source| source.as_str().to_owned()));
    add("replay", replay.map(|replay| replay.to_string()));
    add("min_retries", min_retries.map(|retries| retries.to_string()));
    add("min_total", min_total.map(|total| total.to_string()));
    add("since", since.map(|since| since.to_string()));
    add("until", until.map(|until| until.to_string()));
    for (name, value) in [
        ("reason", reason),
        ("code", code),
        ("consumer", consumer),
        ("product", product),
        ("customer", customer),
        ("order", order),
        ("text", text),
        ("currency", currency),
        ("routing_key", routing_key),
    ] {
        add(name, value.clone());
    }
    parameters
}

fn journal_parameters(filter: &JournalFilter) -> Query {
    let JournalFilter { since, until, actor, action } = filter;
    let (since, until) = (since.map(|since| since.to_string()), until.map(|until| until.to_string()));
    let values = [("since", since), ("until", until), ("actor", actor.clone()), ("action", action.clone())];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Dead letters that are read while they are handed on, so that memory does not grow with their number.
pub(super) enum LetterExport {
    /// From a daemon.
    Daemon(DocumentLines),
    /// From the ledger.
    Ledger(Box<PagedExport>),
}

/// An export from the ledger.
pub(super) struct PagedExport {
    reader: Arc<dyn LedgerReader>,
    no_token: bool,
    filter: DeadLetterFilter,
    /// The number after which the next page begins; `None` after the last page.
    after: Option<i64>,
    page: std::vec::IntoIter<DeadLetterDetail>,
}

impl LetterExport {
    /// The next one; `None` after the last one.
    pub async fn next(&mut self) -> Read<Option<WholeLetter>> {
        match self {
            LetterExport::Daemon(lines) => Ok(lines.next().await?),
            LetterExport::Ledger(export) => export.next().await,
        }
    }
}

impl PagedExport {
    async fn next(&mut self) -> Read<Option<WholeLetter>> {
        loop {
            if let Some(detail) = self.page.next() {
                return Ok(Some(detail.into()));
            }
            let Some(after) = self.after else { return Ok(None) };
            let filter = self.filter.clone();
            let query = DeadLetterQuery { filter, before: None, after: Some(after), limit: EXPORT_PAGE };
            let read = self.reader.whole_dead_letters(query, EXPORT_BYTES).await;
            let WholeDeadLetters { letters, more } =
                read.map_err(|error| SourceError::Ledger { error, no_token: self.no_token })?;
            self.after = letters.last().map(|detail| detail.letter.id).filter(|_| more);
            self.page = letters.into_iter();
        }
    }
}
