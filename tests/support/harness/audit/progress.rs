//! What has been settled while a run lasts: counts from the ledger, and what it lacks.
//!
//! It only reads.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::Connection;

use super::super::Outcome;
use super::super::queued_messages::QueuedMessages;
use super::{Published, open};

/// Counts from the ledger. Reading them is cheap, also while orderd runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub processed: u64,
    /// Cancelled once they were processed.
    pub cancelled: u64,
    /// Dead-lettered orders that are neither processed nor cancelled.
    pub dead_lettered: u64,
    /// Dead-lettered orders that were replayed, and processed then.
    pub replayed: u64,
    pub notifications: u64,
    pub analytics: u64,
    /// Dead-lettered events: none unless something is wrong with them.
    pub dead_events: u64,
}

impl Progress {
    /// Reads the ledger in `directory`; zeros if there is none yet.
    pub fn read(directory: &Path, prefix: &str) -> Progress {
        let count = |ledger: &Connection, sql: &str| {
            let range = [prefix.to_owned(), format!("{prefix}\u{10FFFF}")];
            ledger.query_row(sql, range, |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
        };
        let read = || -> rusqlite::Result<Progress> {
            let ledger = open(directory)?;
            let dead_letters = "SELECT count(*) FROM dead_letters WHERE identity >= ?1 AND identity < ?2";
            let ended =
                "EXISTS (SELECT 1 FROM orders WHERE orders.id = identity AND status IN ('processed', 'cancelled'))";
            let events = "SELECT count(*) FROM events WHERE id >= ?1 AND id < ?2 AND kind = ";
            Ok(Progress {
                processed: count(
                    &ledger,
                    "SELECT count(*) FROM orders WHERE id >= ?1 AND id < ?2 AND status = 'processed'",
                )?,
                cancelled: count(
                    &ledger,
                    "SELECT count(*) FROM orders WHERE id >= ?1 AND id < ?2 AND status = 'cancelled'",
                )?,
                dead_lettered: count(&ledger, &format!("{dead_letters} AND identity NOT LIKE '%/%' AND NOT {ended}"))?,
                replayed: count(&ledger, &format!("{dead_letters} AND {ended}"))?,
                dead_events: count(&ledger, &format!("{dead_letters} AND identity LIKE '%/%'"))?,
                notifications: count(&ledger, &format!("{events} 'notification'"))?,
                analytics: count(&ledger, &format!("{events} 'analytics'"))?,
            })
        };
        read().unwrap_or_default()
    }

    /// Some orders that are processed, from different times.
    pub fn some_processed(directory: &Path, prefix: &str, count: usize) -> Outcome<HashSet<String>> {
        let ledger = open(directory)?;
        let mut query = ledger.prepare("SELECT id FROM orders WHERE status = 'processed'")?;
        let ids = query.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
        let ids: Vec<String> = ids.into_iter().filter(|id| id.starts_with(prefix)).collect();
        let step = (ids.len() / count.max(1)).max(1);
        Ok(ids.into_iter().step_by(step).take(count).collect())
    }

    /// Orders that are processed, cancelled or dead-lettered.
    pub fn settled_orders(&self) -> u64 {
        self.processed + self.cancelled + self.dead_lettered
    }

    /// Whether all orders are processed or dead-lettered, those cancelled that were to be, and all events recorded: those published, and those that orderd
    /// emits: a notification and an analytics event for each processed order, an analytics event for each dead-lettered one, replayed
    /// or not.
    pub fn is_settled(&self, published: &Published) -> bool {
        let own = 2 * self.processed + 4 * self.cancelled + self.dead_lettered + self.replayed;
        let events = own + published.notifications + published.analytics;
        self.settled_orders() >= published.orders
            && self.cancelled >= published.cancelled.len() as u64
            && self.notifications + self.analytics + self.dead_events >= events
    }
}

/// What is in the queues but not settled in the ledger, or the reverse.
#[derive(Debug, Default)]
pub struct Unsettled {
    /// Orders that are unrouted and nowhere in the ledger.
    pub orders: u64,
    /// Notifications by orderd that are unrouted and not recorded.
    pub notifications: u64,
    /// Analytics events by orderd that are unrouted and not recorded.
    pub analytics: u64,
    /// Messages that were dead-lettered, and whose dead letter orderd has not stored.
    pub dead_letters: u64,
}

impl Unsettled {
    /// Compares the messages collected from the queues with the ledger in `directory`.
    pub fn of(queued: &QueuedMessages, directory: &Path) -> Outcome<Unsettled> {
        let ledger = open(directory)?;
        let ids = |sql: &str| -> rusqlite::Result<HashSet<String>> {
            ledger.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
        };
        let recorded = ids("SELECT identity FROM dead_letters")?;
        let mut settled = ids("SELECT id FROM orders WHERE status = 'processed' UNION SELECT id FROM events")?;
        settled.extend(recorded.iter().cloned());
        // The copy of a replayed one that failed again may be unrouted.
        let found = queued.dead_letters.iter().map(|(id, _)| id).chain(&queued.replayed).chain(&queued.unrouted);
        let found: HashSet<&String> = found.collect();
        let dead_letters = recorded.iter().filter(|id| !found.contains(id)).count() as u64;
        let mut unsettled = Unsettled { dead_letters, ..Unsettled::default() };
        for id in queued.unrouted.difference(&settled) {
            match id.split('/').nth(1) {
                Some("notification") => unsettled.notifications += 1,
                Some(_) => unsettled.analytics += 1,
                None => unsettled.orders += 1,
            }
        }
        Ok(unsettled)
    }
}

/// The ids of the first `published` orders that are not settled, and of the events about the others that are not recorded.
pub fn unsettled_ids(directory: &Path, published: u64) -> Outcome<HashSet<String>> {
    let mut ledger = open(directory)?;
    // One snapshot.
    let snapshot = ledger.transaction()?;
    let ids = |sql: &str| -> rusqlite::Result<HashSet<String>> {
        snapshot.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
    };
    let processed = ids("SELECT id FROM orders WHERE status = 'processed'")?;
    let (dead, events) = (ids("SELECT identity FROM dead_letters")?, ids("SELECT id FROM events")?);
    let orders = (1..=published).map(|number| format!("ord-{number}"));
    let mut unsettled: HashSet<String> = orders.filter(|id| !processed.contains(id) && !dead.contains(id)).collect();
    let of_processed = |id: &String| [format!("{id}/notification/processed"), format!("{id}/analytics/processed")];
    let of_dead = dead.iter().map(|id| format!("{id}/analytics/failed"));
    unsettled.extend(processed.iter().flat_map(of_processed).chain(of_dead).filter(|id| !events.contains(id)));
    Ok(unsettled)
}
