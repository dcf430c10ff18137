//! The files that analytics events and notifications are written to.
//!
//! It never decides what is written.

use std::path::Path;

use tokio::task::JoinHandle;

use super::AppError;
use crate::config::Log;
use crate::handlers::EventLog;
use crate::telemetry::{self, Files};

/// The two files of JSON lines, and the tasks that write them.
pub(super) struct EventLogs {
    pub analytics: EventLog,
    pub notifications: EventLog,
    writers: [JoinHandle<()>; 2],
}

impl EventLogs {
    /// Opens the files in `log.directory`, or in the ledger's directory if none is set.
    ///
    /// # Errors
    /// [`AppError::EventLog`].
    pub fn start(log: &Log, ledger_directory: &Path) -> Result<Self, AppError> {
        let files = Files {
            directory: log.directory.clone().unwrap_or_else(|| ledger_directory.to_owned()),
            rotation: log.rotation.into(),
            keep: log.keep,
        };
        let open = |name: &str| telemetry::rolling(&files, name, "jsonl").map_err(AppError::EventLog);
        let (analytics, analytics_writer) = EventLog::start(open("analytics")?);
        let (notifications, notifications_writer) = EventLog::start(open("notifications")?);
        Ok(EventLogs { analytics, notifications, writers: [analytics_writer, notifications_writer] })
    }

    /// Waits until everything is written. To be called when no handler exists any more.
    pub async fn finish(self) {
        let EventLogs { analytics, notifications, writers } = self;
        drop((analytics, notifications));
        for writer in writers {
            let _ = writer.await;
        }
    }
}
