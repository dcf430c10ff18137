//! The files of analytics events and notifications, for as long as the daemon runs.

use tokio::task::JoinHandle;

use super::AppError;
use crate::config::Config;
use crate::handlers::EventLog;
use crate::telemetry::{self, Files};

/// The files of JSON lines and the threads that write them.
pub(super) struct EventLogs {
    pub analytics: EventLog,
    pub notifications: EventLog,
    writers: [JoinHandle<()>; 2],
}

impl EventLogs {
    /// Opens the files.
    ///
    /// # Errors
    /// [`AppError::EventLog`].
    pub fn start(config: &Config) -> Result<Self, AppError> {
        let files = Files {
            directory: config.log.directory.clone().unwrap_or_else(|| config.ledger.directory.clone()),
            rotation: config.log.rotation.into(),
            keep: config.log.keep,
        };
        let open = |name: &str| telemetry::rolling(&files, name, "jsonl").map_err(AppError::EventLog);
        let (analytics, analytics_writer) = EventLog::start(open("analytics")?);
        let (notifications, notifications_writer) = EventLog::start(open("notifications")?);
        Ok(EventLogs { analytics, notifications, writers: [analytics_writer, notifications_writer] })
    }

    /// Waits until the writers have ended. To be called when all handlers are gone.
    pub async fn finish(self) {
        let EventLogs { analytics, notifications, writers } = self;
        drop((analytics, notifications));
        for writer in writers {
            let _ = writer.await;
        }
    }
}
