//! The questions that are asked over and over: totals of all queues, details of one, alarms. It judges nothing.

use reqwest::StatusCode;

use super::answers::{Alarm, Alarms, Detail, Page, Totals, Trouble};
use super::{ManagementClient, ManagementError};

/// Queues on a page; the management API refuses more.
const PAGE_SIZE: &str = "500";
/// Pages asked for at most: a virtual host with more queues is not only orderd's.
const MOST_PAGES: u32 = 20;

/// The totals of a virtual host's queues.
#[derive(Debug, Default)]
pub(crate) struct AllTotals {
    pub queues: Vec<Totals>,
    /// Whether there was no page beyond the last one asked for.
    pub complete: bool,
}

impl ManagementClient {
    /// The totals of all queues, as fresh as the broker has them without working them out: up to 5 s old.
    pub(crate) async fn totals(&self) -> Result<AllTotals, ManagementError> {
        let mut all = AllTotals::default();
        for number in 1..=MOST_PAGES {
            let mut url = self.url(&["queues", &self.virtual_host]);
            url.query_pairs_mut()
                .append_pair("disable_stats", "true")
                .append_pair("enable_queue_totals", "true")
                .append_pair("page", &number.to_string())
                .append_pair("page_size", PAGE_SIZE);
            let page: Page = match self.ask_for(url, &[StatusCode::OK]).await {
                Ok(Some(page)) => page,
                Ok(None) => {
                    return Err(ManagementError::NoVirtualHost { virtual_host: self.virtual_host.clone() });
                }
                // Queues were deleted since the page before, and this page is out of range now.
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

    /// What the broker tells about one queue; `None`: it is not there.
    pub(crate) async fn detail(&self, queue: &str) -> Result<Option<Detail>, ManagementError> {
        self.get(&["queues", &self.virtual_host, queue]).await
    }

    /// The alarms in effect in the whole cluster, without delay. `None`: this version cannot tell.
    pub(crate) async fn alarms(&self) -> Result<Option<Vec<Alarm>>, ManagementError> {
        let wanted = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE];
        let answer: Option<Alarms> = self.ask_for(self.url(&["health", "checks", "alarms"]), &wanted).await?;
        Ok(answer.map(|answer| {
            let mut alarms = answer.alarms;
            alarms.sort();
            alarms
        }))
    }
}

impl ManagementError {
    /// What it means for the broker's view.
    pub(crate) fn trouble(&self) -> Trouble {
        match self {
            ManagementError::Unreachable { source, .. } if source.is_timeout() => Trouble::TimedOut,
            ManagementError::Unreachable { .. } | ManagementError::Tls { .. } | ManagementError::Setup { .. } => {
                Trouble::Unreachable
            }
            ManagementError::Refused { .. } => Trouble::Refused,
            ManagementError::NoVirtualHost { .. } => Trouble::NoVirtualHost,
            ManagementError::Status { .. } | ManagementError::TooLong { .. } | ManagementError::Malformed { .. } => {
                Trouble::Malformed
            }
        }
    }
}
