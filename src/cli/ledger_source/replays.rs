//! Replays, from a daemon or from the ledger.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{LedgerSource, Read};
use crate::cli::admin_client::AdminClientError;
use crate::dead_letters::{ListedReplay, ReplayLetters, ReplayReport, read_replay, read_replay_letters, read_replays};
use crate::ledger::{OpenError, ReplayReader};

/// Letters of a replay that are read at a time.
const PAGE: usize = 1_000;

/// The latest replays, the last one first.
#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct ReplayList {
    pub replays: Vec<ListedReplay>,
}

impl LedgerSource {
    /// The latest replays, the last one first.
    pub async fn replays(&self) -> Read<ReplayList> {
        match self {
            LedgerSource::Daemon(client) => Ok(client.dead_letters("replays", None).await?.1),
            LedgerSource::Ledger { replays, .. } => {
                Ok(ReplayList { replays: self.opened(read_replays(&**replays, Timestamp::now()).await)? })
            }
        }
    }

    /// A page of the letters of a replay, those after this number.
    pub async fn replay_letters(&self, id: i64, after: i64) -> Read<ReplayLetters> {
        match self {
            LedgerSource::Daemon(client) => {
                let path = format!("replays/{id}/letters?after={after}&limit={PAGE}");
                Ok(client.dead_letters(&path, None).await?.1)
            }
            LedgerSource::Ledger { replays, .. } => {
                let letters = read_replay_letters(&**replays, id, None, after, PAGE).await;
                self.known(id, letters)
            }
        }
    }

    /// A replay as it is recorded, which is not followed.
    pub async fn recorded_replay(&self, replays: &dyn ReplayReader, id: i64) -> Read<ReplayReport> {
        self.known(id, read_replay(replays, id, Timestamp::now()).await)
    }

    /// Whether there is a replay with this number.
    pub async fn has_replay(&self, id: i64) -> Read<bool> {
        let read = match self {
            LedgerSource::Daemon(client) => client.dead_letters::<ReplayReport>(&format!("replays/{id}"), None).await,
            LedgerSource::Ledger { replays, .. } => {
                return Ok(self.opened(replays.replay(id, Timestamp::now()).await)?.is_some());
            }
        };
        match read {
            Ok(_) => Ok(true),
            Err(AdminClientError::Refused { is_usage: false, .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn known<T>(&self, id: i64, read: Result<Option<T>, OpenError>) -> Read<T> {
        self.opened(read)?.ok_or_else(|| {
            // As a daemon refuses it.
            AdminClientError::Refused { message: format!("there is no replay {id}"), is_usage: false }.into()
        })
    }
}
