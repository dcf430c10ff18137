//! The files that analytics events and notifications are written to.
//!
//! It never decides what is written.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::AppError;
use crate::config::Config;
use crate::files::FileState;
use crate::handlers::{EventLog, EventLogWriter};
use crate::shutdown::Shutdown;

/// The two files of JSON lines, and the threads that write them.
pub(super) struct EventLogs {
    pub analytics: EventLog,
    pub notifications: EventLog,
    writers: [EventLogWriter; 2],
}

impl EventLogs {
    /// Opens the files in `log.directory`, or in the ledger's directory if none is set. A disk that hangs delays it by seconds
    /// only. `None` if a shutdown began first.
    ///
    /// # Errors
    /// [`AppError::EventLog`].
    pub async fn start(config: &Config, shutdown: &Shutdown) -> Result<Option<Self>, AppError> {
        let [analytics, notifications] = config.event_files().map(|files| async {
            let directory = files.directory.clone();
            EventLog::start(files).await.map_err(|source| AppError::EventLog { directory, source })
        });
        // Cancel-safe: a writer whose log is dropped ends once its disk answers.
        let ((analytics, analytics_writer), (notifications, notifications_writer)) = tokio::select! {
            opened = async { tokio::try_join!(analytics, notifications) } => opened?,
            () = shutdown.begun() => return Ok(None),
        };
        Ok(Some(EventLogs { analytics, notifications, writers: [analytics_writer, notifications_writer] }))
    }

    /// Their states, by name.
    pub fn states(&self) -> BTreeMap<&'static str, watch::Receiver<FileState>> {
        [("analytics", self.analytics.state()), ("notifications", self.notifications.state())].into()
    }

    /// Opens files again that were renamed or deleted.
    pub fn reopen(&self) {
        self.analytics.reopen();
        self.notifications.reopen();
    }

    /// Waits until the threads have ended. To be called when no handler exists any more.
    pub async fn finish(self) {
        let EventLogs { analytics, notifications, writers: [first, second] } = self;
        drop((analytics, notifications));
        tokio::join!(first.finish(), second.finish());
    }
}
