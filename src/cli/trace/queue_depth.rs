//! The number of messages in the queues that may contain a message, from the management API.

use serde::{Deserialize, Serialize};

use super::MessageLocation;
use crate::config::Config;
use crate::management::{ManagementClient, ManagementError};

/// The broker's counts of a queue, a few seconds old. Shortly after the broker's start there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueDepth {
    /// Messages not delivered to a consumer.
    #[serde(rename(deserialize = "messages_ready"))]
    pub ready: Option<u64>,
    /// Messages delivered and not settled.
    #[serde(rename(deserialize = "messages_unacknowledged"))]
    pub unacknowledged: Option<u64>,
}

/// Asks the broker for the depth of every queue, and fills it in.
///
/// # Errors
/// The first request that fails.
pub(super) async fn add_depths(config: &Config, locations: &mut [MessageLocation]) -> Result<(), ManagementError> {
    let virtual_host = &config.broker.virtual_host;
    let client = ManagementClient::new(&config.management, virtual_host)?;
    for queue in locations.iter_mut().flat_map(|location| &mut location.queues) {
        queue.depth = client.get(&["queues", virtual_host, &queue.name]).await?;
    }
    Ok(())
}
