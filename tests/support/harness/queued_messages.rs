//! The messages in the dead letter queue and in the unrouted queue, or in orderd's store of those, which an audit must account for.
//!
//! Reading leaves them in the queues; collecting removes them, so that the queues may be deleted.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use orderd::amqp::Connector;
use orderd::message::{Consumer, Delivery, ExchangeNames, HeaderValue, Settlement, names};
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
    /// The ids of dead letters that were replayed, and processed then.
    pub replayed: HashSet<String>,
    /// The same of unrouted messages.
    pub replayed_unrouted: HashSet<String>,
    /// How often messages were replayed, by id.
    pub replays: HashMap<String, usize>,
}

impl QueuedMessages {
    /// Reads both queues, and leaves the messages in them; then the store of the ledger in this directory. A message may move there
    /// meanwhile, and then is read twice.
    pub async fn read(connector: &Connector, ledger: &Path) -> Outcome<QueuedMessages> {
        let mut read = QueuedMessages::default();
        read.add(connector, false).await?;
        read.with_stored(ledger)
    }

    /// These, and what orderd has stored from the queues in the ledger in this directory.
    pub fn with_stored(&self, ledger: &Path) -> Outcome<QueuedMessages> {
        let mut all = self.clone();
        let ledger = audit::open(ledger)?;
        let mut select = ledger.prepare(
            "SELECT source, message_id, reason, EXISTS (SELECT 1 FROM replay_letters AS copies
                 WHERE copies.letter_id = letters.id AND copies.state IN ('processed', 'cancelled'))
             FROM stored_dead_letters AS letters WHERE message_id IS NOT NULL
             -- Those of orders that have ended otherwise are discarded; what has failed again is the dead letter that it has become.
             AND state <> 'discarded' AND NOT EXISTS (SELECT 1 FROM replay_letters WHERE letter_id = letters.id AND came_back_as IS NOT NULL)",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (source, id, reason): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            match (source == ExchangeNames::UNROUTED_QUEUE, row.get(3)?) {
                (true, false) => drop(all.unrouted.insert(id)),
                (true, true) => drop(all.replayed_unrouted.insert(id)),
                (false, false) => all.dead_letters.push((id, reason)),
                (false, true) => drop(all.replayed.insert(id)),
            }
        }
        let mut select = ledger.prepare(
            "SELECT message_id, count(*) FROM replay_letters JOIN stored_dead_letters ON stored_dead_letters.id = letter_id
             WHERE message_id IS NOT NULL AND replay_letters.state NOT IN ('skipped', 'returned') GROUP BY message_id",
        )?;
        all.replays =
            select.query_map([], |row| Ok((row.get(0)?, row.get::<_, u32>(1)? as usize)))?.collect::<Result<_, _>>()?;
        Ok(all)
    }

    /// Removes the messages from both queues and adds them to those collected before.
    pub async fn collect(&mut self, connector: &Connector) -> Outcome<()> {
        self.add(connector, true).await
    }

    async fn add(&mut self, connector: &Connector, remove: bool) -> Outcome<()> {
        for delivery in receive_all(connector, ExchangeNames::DEAD_LETTER_QUEUE, remove).await? {
            let reason = delivery.message.headers.get(names::DEAD_LETTER_REASON).and_then(HeaderValue::as_text);
            let reason = reason.unwrap_or("none given").to_owned();
            self.dead_letters.extend(delivery.message.properties.message_id.map(|id| (id, reason)));
        }
        let unrouted = receive_all(connector, ExchangeNames::UNROUTED_QUEUE, remove).await?;
        self.unrouted.extend(unrouted.into_iter().filter_map(|delivery| delivery.message.properties.message_id));
        Ok(())
    }
}

async fn receive_all(connector: &Connector, queue: &str, remove: bool) -> Outcome<Vec<Delivery>> {
    let mut subscription = connector.subscribe(queue, u16::MAX).await?;
    let mut messages = Vec::new();
    while let Ok(Some(delivery)) = timeout(SILENCE, subscription.deliveries.next()).await {
        messages.push(delivery);
    }
    if messages.len() >= usize::from(u16::MAX) {
        return Err(format!("{queue} holds more messages than can be inspected").into());
    }
    if remove {
        messages.iter().for_each(|delivery| subscription.settler.settle(delivery.id, Settlement::Ack));
    }
    // The broker requeues deliveries that are unacknowledged when the subscription closes.
    subscription.settler.close().await?;
    Ok(messages)
}
