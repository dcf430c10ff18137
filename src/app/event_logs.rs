//! The files that analytics events and notifications are written to.
//!
//! It never decides what is written.

use tokio::task::JoinHandle;

use super::AppError;
use crate::config::Config;
use crate::handlers::EventLog;

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
    pub fn start(config: &Config) -> Result<Self, AppError> {
        let [analytics, notifications] = config.event_files().map(|files| {
            let directory = files.directory.clone();
            EventLog::start(files).map_err(|source| AppError::EventLog { directory, source })
        });
        let ((analytics, analytics_writer), (notifications, notifications_writer)) = (analytics?, notifications?);
        Ok(EventLogs { analytics, notifications, writers: [analytics_writer, notifications_writer] })
    }

    /// Opens files again that were renamed or deleted.
    pub fn reopen(&self) {
        self.analytics.reopen();
        self.notifications.reopen();
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
