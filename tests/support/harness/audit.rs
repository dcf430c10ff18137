//! The audit of a run: compares the ids of all published messages with those in the ledger and on the broker.
//!
//! It only reads, and only the ledger and the event files.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use orderd::domain::ExactSum;
use orderd::ledger::{LedgerLocation, Totals};
use rusqlite::{Connection, OpenFlags};

use super::Outcome;
use super::queued_messages::QueuedMessages;

/// Ids listed in one problem.
const MAX_LISTED_IDS: usize = 5;

/// The messages that a run published, all of them confirmed. Their ids begin with the run's prefix, so that other messages
/// on the broker are not counted.
#[derive(Debug, Clone)]
pub struct Published {
    /// The prefix of every id of the run.
    pub prefix: String,
    /// Orders `<prefix>ord-1` to `<prefix>ord-<orders>`.
    pub orders: u64,
    /// Orders `<prefix>typo-1` to `<prefix>typo-<unroutable>`, whose routing key matches no binding.
    pub unroutable: u64,
    /// Notifications, without those that orderd emits.
    pub notifications: u64,
    /// Analytics events, without those that orderd emits.
    pub analytics: u64,
    /// Whether exchanges or bindings were deleted meanwhile. Then any order may be in the unrouted queue instead, or as well if
    /// the producer published it twice.
    pub topology_deleted: bool,
}

impl Published {
    /// This many orders and nothing else.
    pub fn orders(orders: u64) -> Published {
        let prefix = String::new();
        Published { prefix, orders, unroutable: 0, notifications: 0, analytics: 0, topology_deleted: false }
    }
}

/// Counts from the ledger. Reading them is cheap, also while orderd runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub processed: u64,
    /// Dead-lettered orders.
    pub dead_lettered: u64,
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
            let events = "SELECT count(*) FROM events WHERE id >= ?1 AND id < ?2 AND kind = ";
            Ok(Progress {
                processed: count(
                    &ledger,
                    "SELECT count(*) FROM orders WHERE id >= ?1 AND id < ?2 AND status = 'processed'",
                )?,
                dead_lettered: count(&ledger, &format!("{dead_letters} AND identity NOT LIKE '%/%'"))?,
                dead_events: count(&ledger, &format!("{dead_letters} AND identity LIKE '%/%'"))?,
                notifications: count(&ledger, &format!("{events} 'notification'"))?,
                analytics: count(&ledger, &format!("{events} 'analytics'"))?,
            })
        };
        read().unwrap_or_default()
    }

    /// Whether all orders are processed or dead-lettered, and all events recorded: those published, and those that orderd
    /// emits: a notification and an analytics event for each processed order, an analytics event for each dead-lettered one.
    pub fn is_settled(&self, published: &Published) -> bool {
        let events = 2 * self.processed + self.dead_lettered + published.notifications + published.analytics;
        self.processed + self.dead_lettered >= published.orders
            && self.notifications + self.analytics + self.dead_events >= events
    }
}

/// Opens the ledger read-only. Waits while orderd opens or closes it.
fn open(directory: &Path) -> rusqlite::Result<Connection> {
    let ledger = Connection::open_with_flags(directory.join("orderd.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    ledger.busy_timeout(Duration::from_secs(5))?;
    Ok(ledger)
}

/// The result of comparing a finished run.
#[derive(Debug)]
pub struct Audit {
    published: Published,
    totals: Totals,
    /// Ids of processed orders.
    processed: HashSet<String>,
    /// Ids in the dead letter queue.
    dead_lettered: HashSet<String>,
    /// Number of dead-lettered messages by `x-dead-letter-reason`.
    reasons: BTreeMap<String, u64>,
    /// Ids in the unrouted queue.
    unrouted: HashSet<String>,
    /// Copies in the dead letter queue beyond the first of each message: orderd dead-letters a message again if it is killed
    /// between dead-lettering and acknowledging it.
    repeated_dead_letters: u64,
    /// Lines of the event files.
    event_lines: u64,
    /// Lines beyond the first of each event.
    repeated_event_lines: u64,
    /// Discrepancies; empty if the audit passed.
    problems: Vec<String>,
}

impl Audit {
    /// Compares what was published with the ledger in `directory` and with what was found in the queues.
    pub async fn of_run(published: Published, directory: &Path, queued: QueuedMessages) -> Outcome<Audit> {
        let mut audit = Audit {
            totals: LedgerLocation::Directory(directory.to_owned()).reader().totals().await?,
            processed: HashSet::new(),
            dead_lettered: HashSet::new(),
            reasons: BTreeMap::new(),
            unrouted: HashSet::new(),
            repeated_dead_letters: 0,
            event_lines: 0,
            repeated_event_lines: 0,
            problems: Vec::new(),
            published,
        };
        let ledger = open(directory)?;
        audit.processed = audit.ids(&ledger, "SELECT id FROM orders WHERE status = 'processed'")?;
        for (id, reason) in queued.dead_letters {
            if !id.starts_with(&audit.published.prefix) {
                continue;
            }
            if audit.dead_lettered.insert(id) {
                *audit.reasons.entry(reason).or_default() += 1;
            } else {
                audit.repeated_dead_letters += 1;
            }
        }
        audit.unrouted = queued.unrouted;
        audit.unrouted.retain(|id| id.starts_with(&audit.published.prefix));
        audit.compare_ids(&ledger)?;
        audit.compare_events(&ledger)?;
        audit.compare_sales(&ledger)?;
        Ok(audit)
    }

    fn ids(&self, ledger: &Connection, sql: &str) -> rusqlite::Result<HashSet<String>> {
        let mut query = ledger.prepare(sql)?;
        let ids = query.query_map([], |row| row.get::<_, String>(0))?;
        ids.filter(|id| id.as_ref().map_or(true, |id| id.starts_with(&self.published.prefix))).collect()
    }

    /// Checks that each published order is in exactly one place, and that no other orders exist.
    fn compare_ids(&mut self, ledger: &Connection) -> rusqlite::Result<()> {
        let Published { prefix, orders, unroutable, .. } = &self.published;
        let routable: HashSet<String> = (1..=*orders).map(|number| format!("{prefix}ord-{number}")).collect();
        let unroutable: HashSet<String> = (1..=*unroutable).map(|number| format!("{prefix}typo-{number}")).collect();
        let topology_deleted = self.published.topology_deleted;
        let settled: HashSet<String> = self.processed.union(&self.dead_lettered).cloned().collect();
        let found = if topology_deleted { settled.union(&self.unrouted).cloned().collect() } else { settled.clone() };
        let recorded = self.ids(ledger, "SELECT identity FROM dead_letters")?;
        let mut problems = Vec::new();
        let mut report = |what: &str, ids: BTreeSet<&String>| {
            if !ids.is_empty() {
                let named: Vec<_> = ids.iter().take(MAX_LISTED_IDS).map(|id| id.as_str()).collect();
                problems.push(format!("{} {what}, such as {}", ids.len(), named.join(", ")));
            }
        };
        report("orders are missing: neither processed nor dead-lettered", routable.difference(&found).collect());
        report(
            "orders were both processed and dead-lettered",
            self.processed.intersection(&self.dead_lettered).collect(),
        );
        report("orders exist that were never published", settled.difference(&routable).collect());
        report("unroutable orders are not in the unrouted queue", unroutable.difference(&self.unrouted).collect());
        if !topology_deleted {
            let unexpected = self.unrouted.difference(&unroutable).collect();
            report("messages in the unrouted queue have a matching binding", unexpected);
        }
        report(
            "messages in the dead letter queue are not in the ledger",
            self.dead_lettered.difference(&recorded).collect(),
        );
        report(
            "dead letters in the ledger are not in the dead letter queue",
            recorded.difference(&self.dead_lettered).collect(),
        );
        self.problems.extend(problems);
        Ok(())
    }

    /// Checks that a notification and an analytics event are recorded for each processed order, an analytics event for each
    /// dead-lettered one, and each event that others published.
    fn compare_events(&mut self, ledger: &Connection) -> rusqlite::Result<()> {
        let events = self.ids(ledger, "SELECT id FROM events")?;
        let expected: HashSet<String> = (self.processed.iter())
            .flat_map(|id| [format!("{id}/notification/processed"), format!("{id}/analytics/processed")])
            .chain(self.dead_lettered.iter().map(|id| format!("{id}/analytics/failed")))
            .collect();
        let not_recorded: HashSet<_> = expected.difference(&events).collect();
        let missing = not_recorded.len();
        let lost = not_recorded.iter().filter(|id| !self.unrouted.contains(**id)).count();
        if lost > 0 {
            self.problems.push(format!("{lost} events about orders are neither recorded nor unrouted"));
        }
        let emitted = expected.len() as u64;
        let by_others = events.len() as u64 - (emitted - missing as u64);
        let published = self.published.notifications + self.published.analytics;
        if by_others != published {
            self.problems.push(format!("{by_others} events by others are recorded, {published} were published"));
        }
        Ok(())
    }

    /// Checks that each recorded event has a whole line in the event files in this directory.
    pub fn compare_event_files(&mut self, ledger: &Path, files: &Path) -> Outcome<()> {
        let (mut ids, mut unreadable) = (HashSet::new(), 0_u64);
        for entry in fs::read_dir(files)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "jsonl") {
                continue;
            }
            for line in fs::read_to_string(path)?.lines() {
                self.event_lines += 1;
                let value = serde_json::from_str::<serde_json::Value>(line).ok();
                match value.as_ref().and_then(|value| value["id"].as_str()) {
                    Some(id) if ids.insert(id.to_owned()) => {}
                    Some(_) => self.repeated_event_lines += 1,
                    None => unreadable += 1,
                }
            }
        }
        let recorded = self.ids(&open(ledger)?, "SELECT id FROM events")?;
        let missing: Vec<_> = recorded.difference(&ids).take(MAX_LISTED_IDS).cloned().collect();
        if !missing.is_empty() {
            let count = recorded.difference(&ids).count();
            self.problems.push(format!("{count} recorded events have no line, such as {}", missing.join(", ")));
        }
        if unreadable > 0 {
            self.problems.push(format!("{unreadable} lines of the event files cannot be read"));
        }
        Ok(())
    }

    /// The audit as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "published": self.published.orders + self.published.unroutable,
            "processed": self.processed.len(),
            "dead_lettered": self.dead_lettered.len(),
            "dead_letter_reasons": self.reasons,
            "repeated_dead_letters": self.repeated_dead_letters,
            "unrouted": self.unrouted.len(),
            "retried": self.totals.retried,
            "event_lines": self.event_lines,
            "repeated_event_lines": self.repeated_event_lines,
            "problems": self.problems,
        })
    }

    /// Checks that the sales aggregates equal the sums over the processed orders whose analytics event is recorded, to the cent.
    /// `compare_events` has checked that the other events are unrouted: an operator can publish them again.
    fn compare_sales(&mut self, ledger: &Connection) -> Outcome<()> {
        let mut sums: BTreeMap<String, (u64, ExactSum)> = BTreeMap::new();
        let mut query = ledger.prepare(
            "SELECT currency, total FROM orders WHERE status = 'processed'
             AND EXISTS (SELECT 1 FROM events WHERE events.id = orders.id || '/analytics/processed')",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let sum = sums.entry(row.get(0)?).or_default();
            sum.0 += 1;
            sum.1.add(row.get_ref(1)?.as_str()?.parse()?);
        }
        let aggregates: BTreeMap<String, (u64, ExactSum)> = (self.totals.revenue.iter())
            .map(|(currency, revenue)| (currency.clone(), (revenue.orders, revenue.total)))
            .collect();
        if sums != aggregates {
            self.problems.push(format!("sales do not match: {sums:?} by orders, {aggregates:?} by aggregates"));
        }
        Ok(())
    }

    /// Whether there are no discrepancies.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Published { orders, unroutable, notifications, analytics, .. } = &self.published;
        let line = |f: &mut fmt::Formatter<'_>, what: &str, count: u64| writeln!(f, "  {what:<34} {count:>9}");
        line(f, "published orders", orders + unroutable)?;
        for (consumer, counts) in &self.totals.orders {
            line(f, &format!("  processed by consumer {consumer}"), counts.processed)?;
        }
        for (reason, count) in &self.reasons {
            line(f, &format!("  dead-lettered: {reason}"), *count)?;
        }
        line(f, "  unrouted", self.unrouted.len() as u64)?;
        line(f, "  dead-lettered more than once", self.repeated_dead_letters)?;
        line(f, "retried after a delay", self.totals.retried)?;
        line(f, &format!("notifications ({notifications} by others)"), self.totals.notifications)?;
        line(f, &format!("analytics events ({analytics} by others)"), self.totals.analytics)?;
        if self.event_lines > 0 {
            line(f, "lines in the event files", self.event_lines)?;
            line(f, "  repeated", self.repeated_event_lines)?;
        }
        for (currency, revenue) in &self.totals.revenue {
            writeln!(f, "  {:<34} {:>9}", format!("sold, in {currency}"), revenue.total.to_string())?;
        }
        let (published, processed, dead_lettered, unrouted) =
            (orders + unroutable, self.processed.len(), self.dead_lettered.len(), self.unrouted.len());
        writeln!(f)?;
        if self.passed() {
            return write!(
                f,
                "  {published} published = {processed} processed + {dead_lettered} dead-lettered + {unrouted} unrouted: \
                 nothing is missing"
            );
        }
        writeln!(
            f,
            "  the numbers do not add up ({published} published, {processed} processed, {dead_lettered} dead-lettered, \
             {unrouted} unrouted):"
        )?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
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
    /// Dead letters of the ledger that have not been found in the dead letter queue.
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
        let found: HashSet<&String> = queued.dead_letters.iter().map(|(id, _)| id).collect();
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
