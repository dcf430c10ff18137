//! The messages in the dead letter queue and in the unrouted queue, or in orderd's store of those, which an audit must account for.
//!
//! It only reads, and leaves the messages in the queues.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use orderd::amqp::Connector;
use orderd::message::{Consumer, Delivery, ExchangeNames, HeaderValue, names};
use tokio::time::timeout;

use super::{Outcome, audit};

/// A queue that delivers nothing for this long is taken to have delivered all its messages.
const SILENCE: Duration = Duration::from_secs(2);

/// What the two queues hold, or held.
#[derive(Debug, Clone, Default)]
pub struct QueuedMessages {
    /// The id of each dead letter, and why it was dead-lettered.
    pub dead_letters: Vec<(String, String)>,
    /// The ids of unrouted messages.
    pub unrouted: HashSet<String>,
    /// The ids of dead letters that were replayed, and processed then; also of those whose order was processed by another delivery.
    pub replayed: HashSet<String>,
    /// The same of unrouted messages.
    pub replayed_unrouted: HashSet<String>,
    /// How often messages were replayed, by id.
    pub replays: HashMap<String, usize>,
}

impl QueuedMessages {
    /// Reads both queues, then the store of the ledger in this directory. A message may move there meanwhile, and then is read twice.
    pub async fn read(connector: &Connector, ledger: &Path) -> Outcome<QueuedMessages> {
        let dead_letters = receive_all(connector, ExchangeNames::DEAD_LETTER_QUEUE).await?;
        let unrouted = receive_all(connector, ExchangeNames::UNROUTED_QUEUE).await?;
        let mut read = QueuedMessages::stored(ledger)?;
        read.dead_letters.extend(dead_letters.into_iter().filter_map(|delivery| {
            let reason = delivery.message.headers.get(names::DEAD_LETTER_REASON).and_then(HeaderValue::as_text);
            let reason = reason.unwrap_or("none given").to_owned();
            delivery.message.properties.message_id.map(|id| (id, reason))
        }));
        read.unrouted.extend(unrouted.into_iter().filter_map(|delivery| delivery.message.properties.message_id));
        Ok(read)
    }

    /// What orderd has stored from the queues in the ledger in this directory.
    pub fn stored(ledger: &Path) -> Outcome<QueuedMessages> {
        let (mut stored, ledger) = (QueuedMessages::default(), audit::open(ledger)?);
        let mut select = ledger.prepare(
            "SELECT source, message_id, reason, state = 'discarded' OR EXISTS (SELECT 1 FROM replay_letters AS copies
                 WHERE copies.letter_id = letters.id AND copies.state IN ('processed', 'cancelled'))
             FROM stored_dead_letters AS letters WHERE message_id IS NOT NULL
             -- A person may have discarded it, or orderd because another delivery of the order was processed.
             AND (state <> 'discarded' OR EXISTS (SELECT 1 FROM orders WHERE orders.id = message_id AND status IN ('processed', 'cancelled')))
             -- What has failed again is the dead letter that it has become.
             AND NOT EXISTS (SELECT 1 FROM replay_letters WHERE letter_id = letters.id AND came_back_as IS NOT NULL)",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (source, id, reason): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            match (source == ExchangeNames::UNROUTED_QUEUE, row.get(3)?) {
                (true, false) => drop(stored.unrouted.insert(id)),
                (true, true) => drop(stored.replayed_unrouted.insert(id)),
                (false, false) => stored.dead_letters.push((id, reason)),
                (false, true) => drop(stored.replayed.insert(id)),
            }
        }
        let mut select = ledger.prepare(
            "SELECT message_id, count(*) FROM replay_letters JOIN stored_dead_letters ON stored_dead_letters.id = letter_id
             WHERE message_id IS NOT NULL AND replay_letters.state NOT IN ('skipped', 'returned') GROUP BY message_id",
        )?;
        stored.replays =
            select.query_map([], |row| Ok((row.get(0)?, row.get::<_, u32>(1)? as usize)))?.collect::<Result<_, _>>()?;
        Ok(stored)
    }
}

/// Whether orderd has taken all messages out of both queues.
pub async fn are_collected(connector: &Connector) -> Outcome<bool> {
    for queue in [ExchangeNames::DEAD_LETTER_QUEUE, ExchangeNames::UNROUTED_QUEUE] {
        if !receive_all(connector, queue).await?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn receive_all(connector: &Connector, queue: &str) -> Outcome<Vec<Delivery>> {
    let mut subscription = connector.subscribe(queue, u16::MAX).await?;
    let mut messages = Vec::new();
    while let Ok(Some(delivery)) = timeout(SILENCE, subscription.deliveries.next()).await {
        messages.push(delivery);
    }
    if messages.len() >= usize::from(u16::MAX) {
        return Err(format!("{queue} holds more messages than can be inspected").into());
    }
    // The broker requeues deliveries that are unacknowledged when the subscription closes.
    subscription.settler.close().await?;
    Ok(messages)
}
