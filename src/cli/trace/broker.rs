//! How much waits in the queues in which a message may be, asked of the management API.

use serde::{Deserialize, Serialize};

use super::Whereabouts;
use crate::config::Config;
use crate::management::{ManagementClient, ManagementError};

/// What the broker counted in a queue, up to some seconds ago. It says nothing for a moment after it has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Depth {
    /// Messages that nobody has been given.
    #[serde(rename(deserialize = "messages_ready"))]
    pub ready: Option<u64>,
    /// Messages that somebody has been given and not settled.
    #[serde(rename(deserialize = "messages_unacknowledged"))]
    pub unacknowledged: Option<u64>,
}

/// Asks for the depth of every queue, if there is one to ask for.
///
/// # Errors
/// The first question that gets no answer.
pub(super) async fn measure(config: &Config, places: &mut [Whereabouts]) -> Result<(), ManagementError> {
    let virtual_host = &config.broker.virtual_host;
    let client = ManagementClient::new(&config.management, virtual_host)?;
    for queue in places.iter_mut().flat_map(|place| &mut place.queues) {
        queue.depth = client.get(&["queues", virtual_host, &queue.name]).await?;
    }
    Ok(())
}
