//! The requests that the poller makes: totals of all queues, details of one queue, alarms.

use reqwest::StatusCode;

use super::answers::{Alarm, Alarms, Detail, ManagementErrorKind, Page, Totals};
use super::{ManagementClient, ManagementError};

/// Queues per page, the management API's maximum.
const PAGE_SIZE: &str = "500";
/// The most pages requested. In a virtual host with more queues, most belong to other programs.
const MAX_PAGES: u32 = 20;

/// The totals of a virtual host's queues.
#[derive(Debug, Default)]
pub(crate) struct AllTotals {
    pub queues: Vec<Totals>,
    /// Whether all pages were read.
    pub complete: bool,
}

impl ManagementClient {
    /// The totals of all queues, from the broker's cache: up to 5 s old.
    pub(crate) async fn totals(&self) -> Result<AllTotals, ManagementError> {
        let mut all = AllTotals::default();
        for number in 1..=MAX_PAGES {
            let mut url = self.url(&["queues", &self.virtual_host]);
            url.query_pairs_mut()
                .append_pair("disable_stats", "true")
                .append_pair("enable_queue_totals", "true")
                .append_pair("page", &number.to_string())
                .append_pair("page_size", PAGE_SIZE);
            let page: Page = match self.get_with_status(url, &[StatusCode::OK]).await {
                Ok(Some(page)) => page,
                Ok(None) => {
                    return Err(ManagementError::NoVirtualHost { virtual_host: self.virtual_host.clone() });
                }
                // Queues were deleted after the previous page was read, so this page is out of range.
                Err(ManagementError::Status { status: StatusCode::BAD_REQUEST, .. }) if number > 1 => {
                    all.complete = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            all.queues.extend(page.items);
            if page.page_count.is_none_or(|count| number >= count) {
                all.complete = true;
                break;
            }
        }
        Ok(all)
    }

    /// The details of one queue; `None` if it does not exist.
    pub(crate) async fn detail(&self, queue: &str) -> Result<Option<Detail>, ManagementError> {
        self.get(&["queues", &self.virtual_host, queue]).await
    }

    /// The current alarms of the whole cluster. `None`: this version of RabbitMQ does not report them.
    pub(crate) async fn alarms(&self) -> Result<Option<Vec<Alarm>>, ManagementError> {
        let wanted = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE];
        let answer: Option<Alarms> = self.get_with_status(self.url(&["health", "checks", "alarms"]), &wanted).await?;
        Ok(answer.map(|answer| {
            let mut alarms = answer.alarms;
            alarms.sort();
            alarms
        }))
    }
}

impl ManagementError {
    /// The kind of this error.
    pub(crate) fn kind(&self) -> ManagementErrorKind {
        match self {
            ManagementError::Unreachable { source, .. } if source.is_timeout() => ManagementErrorKind::TimedOut,
            ManagementError::Unreachable { .. } | ManagementError::Tls { .. } | ManagementError::Setup { .. } => {
                ManagementErrorKind::Unreachable
            }
            ManagementError::Refused { .. } => ManagementErrorKind::Refused,
            ManagementError::NoVirtualHost { .. } => ManagementErrorKind::NoVirtualHost,
            ManagementError::Status { .. } | ManagementError::TooLong { .. } | ManagementError::Malformed { .. } => {
                ManagementErrorKind::Malformed
            }
        }
    }
}
